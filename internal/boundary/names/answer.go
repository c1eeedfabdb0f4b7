package names

import (
	"encoding/binary"
	"errors"

	"golang.org/x/net/dns/dnsmessage"
)

const (
	// MaxAnswer is the most bytes of an answer: header, question, one address
	// and an empty OPT record. Any client takes it in one datagram, whatever
	// it advertises.
	MaxAnswer = 12 + 255 + 4 + 16 + 11

	maxQuery   = 4096 // bytes; a padded query has some hundred
	maxExtra   = 4    // records behind the question, of which EDNS takes one
	timeToLive = 60   // seconds; the address holds for longer, but the permission may not
	udpPayload = 1232 // bytes that we say we take in one datagram
)

// Answer is the response to one message, at most [MaxAnswer] bytes, or nil for
// what is worth none: a response, or less than a header.
//
// A denied name is answered with NXDOMAIN, an allowed one with its address for
// type A and with no data for every other type, ANY included. No answer has an
// SOA record, so that no cache may keep a denial (RFC 2308 section 5) and a
// changed policy holds at once. Where the addresses are spent a new name gets
// SERVFAIL: the usual stub resolvers take it as a failure that may pass, and
// not as the truth about the name.
func (n *Names) Answer(query []byte) []byte {
	var p dnsmessage.Parser
	head, err := p.Start(query)
	if err != nil || head.Response {
		return nil
	}
	r := response{head: dnsmessage.Header{
		ID: head.ID, Response: true, OpCode: head.OpCode,
		RecursionDesired: head.RecursionDesired, RecursionAvailable: true, // else Go's resolver takes no data for a referral
	}}
	if head.OpCode != 0 {
		return r.pack(dnsmessage.RCodeNotImplemented)
	}
	if r.question, r.edns, err = parse(&p, query); err != nil {
		return r.pack(dnsmessage.RCodeFormatError)
	}
	r.asked = true
	if r.question.Class != dnsmessage.ClassINET {
		return r.pack(dnsmessage.RCodeRefused)
	}
	host, ok := n.allowed(r.question.Name.String())
	if !ok {
		return r.pack(dnsmessage.RCodeNameError)
	}
	if r.question.Type == dnsmessage.TypeA {
		if r.addr, r.answered = n.address(host); !r.answered {
			return r.pack(dnsmessage.RCodeServerFailure)
		}
	}
	return r.pack(dnsmessage.RCodeSuccess)
}

// parse reads what follows the header: exactly one question, and nothing else
// but a few additional records.
func parse(p *dnsmessage.Parser, query []byte) (q dnsmessage.Question, edns bool, err error) {
	counts := [4]uint16{}
	for i := range counts {
		counts[i] = binary.BigEndian.Uint16(query[4+2*i:])
	}
	if len(query) > maxQuery || counts[0] != 1 || counts[1] != 0 || counts[2] != 0 || counts[3] > maxExtra {
		return q, false, errors.New("a query has one question")
	}
	if q, err = p.Question(); err != nil {
		return q, false, err
	}
	for _, skip := range []func() error{p.SkipAllQuestions, p.SkipAllAnswers, p.SkipAllAuthorities} {
		if err := skip(); err != nil {
			return q, false, err
		}
	}
	for {
		h, err := p.AdditionalHeader()
		if err == dnsmessage.ErrSectionDone {
			return q, edns, nil
		}
		if err == nil {
			err = p.SkipAdditional()
		}
		if err != nil {
			return q, false, err
		}
		edns = edns || h.Type == dnsmessage.TypeOPT
	}
}

// response is what an answer is made of.
type response struct {
	head     dnsmessage.Header
	asked    bool // question is there, and is echoed in the case it came in
	question dnsmessage.Question
	edns     bool
	answered bool
	addr     [4]byte
}

// pack is nil where an answer cannot be encoded, which no parsed question
// should bring about.
func (r *response) pack(code dnsmessage.RCode) []byte {
	r.head.RCode = code
	b := dnsmessage.NewBuilder(make([]byte, 0, 512), r.head)
	b.EnableCompression()
	var faults []error
	if r.asked {
		faults = append(faults, b.StartQuestions(), b.Question(r.question))
	}
	if r.answered {
		h := dnsmessage.ResourceHeader{Name: r.question.Name, Class: dnsmessage.ClassINET, TTL: timeToLive}
		faults = append(faults, b.StartAnswers(), b.AResource(h, dnsmessage.AResource{A: r.addr}))
	}
	if r.edns {
		var h dnsmessage.ResourceHeader
		faults = append(faults, h.SetEDNS0(udpPayload, 0, false), b.StartAdditionals(), b.OPTResource(h, dnsmessage.OPTResource{}))
	}
	out, err := b.Finish()
	if errors.Join(append(faults, err)...) != nil {
		return nil
	}
	return out
}
