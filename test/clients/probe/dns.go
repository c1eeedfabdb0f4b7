package main

import (
	"context"
	"encoding/base32"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

func dnsTries() []try {
	return []try{
		{"dns-name", "NAME: its addresses; reached is that there are any", 1, dnsName},
		{"dns-type", "NAME [TYPE...]: every type and class, by UDP; reached is any record but an A", 1, dnsType},
		{"dns-direct", "ADDRESS NAME: a query past the gateway, by UDP and TCP", 2, dnsDirect},
		{"dns-tunnel", "SUFFIX: data in labels below a name, for the types that tunnels use; reached is any success", 1, dnsTunnel},
		{"dns-garbage", "queries that are none; reached is any answer that is no error", 0, dnsGarbage},
	}
}

// query is a message that asks one thing.
func query(name string, kind dnsmessage.Type, class dnsmessage.Class) ([]byte, error) {
	n, err := dnsmessage.NewName(strings.TrimSuffix(name, ".") + ".")
	if err != nil {
		return nil, err
	}
	m := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: 0x5151, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: n, Type: kind, Class: class}},
	}
	return m.Pack()
}

// plainQuery asks for the addresses of a name that is known to be right.
func plainQuery(name string) []byte {
	b, err := query(name, dnsmessage.TypeA, dnsmessage.ClassINET)
	if err != nil {
		panic(err)
	}
	return b
}

// exchange sends a message and reads one answer. It tells whether the message left.
func (p *prober) exchange(ctx context.Context, network string, to netip.AddrPort, message []byte) (answer []byte, sent bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, p.wait)
	defer cancel()
	c, err := new(net.Dialer).DialContext(ctx, network, to.String())
	if err != nil {
		return nil, network == "tcp" && !isLocal(err), err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(p.wait)); err != nil {
		return nil, false, err
	}
	return converse(c, network == "tcp", message)
}

// converse sends one message, with its length before it on a stream.
func converse(c net.Conn, stream bool, message []byte) (answer []byte, sent bool, err error) {
	if stream {
		message = append(binary.BigEndian.AppendUint16(nil, uint16(len(message))), message...)
	}
	if _, err := c.Write(message); err != nil {
		return nil, false, err
	}
	if stream {
		var length [2]byte
		if _, err := io.ReadFull(c, length[:]); err != nil {
			return nil, true, err
		}
		answer = make([]byte, binary.BigEndian.Uint16(length[:]))
		_, err = io.ReadFull(c, answer)
		return answer, true, err
	}
	answer = make([]byte, 1<<16)
	n, err := c.Read(answer)
	return answer[:n], true, err
}

// reply is what an answer says.
type reply struct {
	rcode     dnsmessage.RCode
	addresses []netip.Addr
	others    []string // types of every other record, in whatever section, but for OPT
}

func parseReply(b []byte) (reply, error) {
	var parser dnsmessage.Parser
	h, err := parser.Start(b)
	if err == nil && !h.Response {
		err = errors.New("the answer is a question")
	}
	if err == nil {
		err = parser.SkipAllQuestions()
	}
	r := reply{rcode: h.RCode}
	for _, section := range []func() (dnsmessage.Resource, error){parser.Answer, parser.Authority, parser.Additional} {
		for err == nil {
			var record dnsmessage.Resource
			if record, err = section(); err != nil {
				break
			}
			switch body := record.Body.(type) {
			case *dnsmessage.AResource:
				r.addresses = append(r.addresses, netip.AddrFrom4(body.A))
			case *dnsmessage.OPTResource:
			default:
				r.others = append(r.others, record.Header.Type.String())
			}
		}
		if errors.Is(err, dnsmessage.ErrSectionDone) {
			err = nil
		}
	}
	return r, err
}

// lookUp asks the resolver of the sandbox.
func (p *prober) lookUp(ctx context.Context, name string, kind dnsmessage.Type, class dnsmessage.Class) (r reply, sent bool, err error) {
	b, err := query(name, kind, class)
	if err != nil {
		return reply{}, false, err
	}
	answer, sent, err := p.exchange(ctx, "udp", p.dns, b)
	if err != nil {
		return reply{}, sent, err
	}
	r, err = parseReply(answer)
	return r, sent, err
}

func dnsName(ctx context.Context, p *prober, args []string) (result, error) {
	r, sent, err := p.lookUp(ctx, args[0], dnsmessage.TypeA, dnsmessage.ClassINET)
	if err != nil {
		return result{Sent: sent, Detail: cause(err)}, nil
	}
	return result{Sent: sent, Reached: len(r.addresses) > 0, Detail: fmt.Sprintf("%s %v %v", r.rcode, r.addresses, r.others)}, nil
}

func dnsType(ctx context.Context, p *prober, args []string) (result, error) {
	var kinds []dnsmessage.Type
	for _, word := range args[1:] {
		n, err := strconv.ParseUint(word, 10, 16)
		if err != nil {
			return result{}, err
		}
		kinds = append(kinds, dnsmessage.Type(n))
	}
	if len(kinds) == 0 {
		for n := range 262 { // all that are assigned, in one row, and transfers and ANY
			kinds = append(kinds, dnsmessage.Type(n))
		}
		kinds = append(kinds, 32768, 32769, 65280, 65399, 65535) // and those far off and for private use
	}
	out, counts := result{}, tally{}
	for _, kind := range kinds {
		for _, class := range classes(kind) {
			r, sent, err := p.lookUp(ctx, args[0], kind, class)
			out.Sent = out.Sent || sent
			text := cause(err)
			if err == nil {
				text = fmt.Sprintf("%s with %d addresses", r.rcode, len(r.addresses))
			}
			if len(r.others) > 0 {
				out.Reached = true
				text += fmt.Sprintf(" and %v for type %d class %d", r.others, kind, class)
			}
			counts[text]++
		}
	}
	out.Detail = counts.String()
	return out, nil
}

// classes are all of them for the types that tunnels use.
func classes(kind dnsmessage.Type) []dnsmessage.Class {
	switch kind {
	case dnsmessage.TypeA, dnsmessage.TypeTXT, 10, 255:
		return []dnsmessage.Class{dnsmessage.ClassINET, 0, 2, dnsmessage.ClassCHAOS, dnsmessage.ClassHESIOD, 254, 255}
	}
	return []dnsmessage.Class{dnsmessage.ClassINET}
}

func dnsDirect(ctx context.Context, p *prober, args []string) (result, error) {
	to, err := endpoint(args[0], "53")
	if err != nil {
		return result{}, err
	}
	b, err := query(args[1], dnsmessage.TypeA, dnsmessage.ClassINET)
	if err != nil {
		return result{}, err
	}
	var out result
	var details []string
	for _, network := range []string{"udp", "tcp"} {
		answer, sent, err := p.exchange(ctx, network, to, b)
		out.Sent, out.Reached = out.Sent || sent, out.Reached || err == nil
		detail := network + ": " + cause(err)
		if err == nil {
			r, err := parseReply(answer)
			detail = fmt.Sprintf("%s: %s %v %s", network, r.rcode, r.addresses, cause(err))
		}
		details = append(details, detail)
	}
	out.Detail = strings.Join(details, "; ")
	return out, nil
}

func dnsTunnel(ctx context.Context, p *prober, args []string) (result, error) {
	encoding := base32.HexEncoding.WithPadding(base32.NoPadding)
	out, counts := result{}, tally{}
	for _, kind := range []dnsmessage.Type{1, 2, 5, 6, 10, 15, 16, 24, 25, 28, 33, 35, 64, 65, 255, 65399} {
		data := encoding.EncodeToString(fmt.Appendf(nil, "the key is sk-0123456789, sent as type %d", kind))
		var labels []string
		for len(data) > 0 {
			n := min(len(data), 63)
			labels, data = append(labels, data[:n]), data[n:]
		}
		r, sent, err := p.lookUp(ctx, strings.Join(append(labels, args[0]), "."), kind, dnsmessage.ClassINET)
		out.Sent = out.Sent || sent
		text := cause(err)
		if err == nil {
			text = r.rcode.String()
			out.Reached = out.Reached || r.rcode == dnsmessage.RCodeSuccess
		}
		counts[text]++
	}
	out.Detail = counts.String()
	return out, nil
}

// dnsGarbage must not stop the resolver: the last one is a good query.
func dnsGarbage(ctx context.Context, p *prober, _ []string) (result, error) {
	good := plainQuery("garbage.invalid")
	loop := append([]byte{0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0}, 0xc0, 12, 0, 1, 0, 1)
	many := append([]byte{}, good...)
	many[5] = 200
	answerItself := append([]byte{}, good...)
	answerItself[2] |= 0x80
	update := append([]byte{}, good...)
	update[2] = 5 << 3
	quick := *p
	quick.wait = min(p.wait, time.Second/2) // most have no answer
	out, counts := result{}, tally{}
	for _, b := range [][]byte{{0}, {0, 1}, good[:12], good[:len(good)-1], loop, many, answerItself, update, make([]byte, 65000), append(good, make([]byte, 500)...)} {
		answer, sent, err := quick.exchange(ctx, "udp", p.dns, b)
		out.Sent = out.Sent || sent
		text := cause(err)
		if err == nil {
			r, err := parseReply(answer)
			text = r.rcode.String() + " " + cause(err)
			out.Reached = out.Reached || err == nil && r.rcode == dnsmessage.RCodeSuccess
		}
		counts[text]++
	}
	_, _, err := p.exchange(ctx, "udp", p.dns, good)
	out.Detail = counts.String() + "; then a good query: " + cause(err)
	return out, nil
}
