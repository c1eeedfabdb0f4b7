package egress

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

const (
	maxNameservers = 3 // resolv.conf(5)
	rounds         = 2 // over the nameservers
	queryTimeout   = 4 * time.Second
	// familyGrace is how much longer one address family is waited for once the
	// other has answered: some nameservers never answer for AAAA.
	familyGrace = 500 * time.Millisecond
	maxDatagram = 1232 // bytes, announced by EDNS
)

// resolver is a stub resolver. The standard library's would read files and
// follow the host's search list; here every name is complete.
type resolver struct{ servers []netip.AddrPort }

// errNoName is a nameserver's word that there is no such name, or that it has
// no address of that family.
var errNoName = errors.New("no such name")

// lookup returns IPv4 and IPv6 addresses by turns, so that the first few have
// both.
func (r *resolver) lookup(ctx context.Context, host string) ([]netip.Addr, error) {
	name, err := dnsmessage.NewName(host + ".")
	if err != nil {
		return nil, &failure{NoSuchName, err}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type answer struct {
		family int
		addrs  []netip.Addr
		err    error
	}
	answers := make(chan answer)
	for family, kind := range []dnsmessage.Type{dnsmessage.TypeA, dnsmessage.TypeAAAA} {
		go func() {
			addrs, err := r.ask(ctx, dnsmessage.Question{Name: name, Type: kind, Class: dnsmessage.ClassINET})
			answers <- answer{family, addrs, err}
		}()
	}
	var found [2][]netip.Addr
	failed := error(nil)
	for range found {
		a := <-answers
		found[a.family] = a.addrs
		if a.err == nil {
			grace := time.AfterFunc(familyGrace, cancel)
			defer grace.Stop()
		} else if failed == nil || errors.Is(failed, errNoName) {
			failed = a.err
		}
	}
	if addrs := byTurns(found[0], found[1]); len(addrs) > 0 {
		return addrs, nil
	}
	if errors.Is(failed, errNoName) {
		return nil, &failure{NoSuchName, failed}
	}
	return nil, &failure{ResolverFailed, failed}
}

func byTurns(a, b []netip.Addr) (out []netip.Addr) {
	for i := range max(len(a), len(b)) {
		if i < len(a) {
			out = append(out, a[i])
		}
		if i < len(b) {
			out = append(out, b[i])
		}
	}
	return out
}

// ask tries one nameserver after the other.
func (r *resolver) ask(ctx context.Context, q dnsmessage.Question) ([]netip.Addr, error) {
	err := errors.New("the host has no nameserver; see /etc/resolv.conf")
	for range rounds {
		for _, server := range r.servers {
			var addrs []netip.Addr
			addrs, err = exchange(ctx, server, q)
			if err == nil || errors.Is(err, errNoName) || ctx.Err() != nil {
				return addrs, err
			}
			err = fmt.Errorf("ask nameserver %s: %w", server, err)
		}
	}
	return nil, err
}

// exchange asks over UDP, and over TCP where the answer is longer.
func exchange(ctx context.Context, server netip.AddrPort, q dnsmessage.Question) (addrs []netip.Addr, err error) {
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	id := uint16(rand.Uint32())
	query, err := newQuery(id, q)
	if err != nil {
		return nil, err
	}
	truncated := false
	for _, network := range []string{"udp", "tcp"} {
		conn, err := connect(ctx, network, server)
		if err != nil {
			return nil, err
		}
		err = within(ctx, conn, func() error {
			receive := receiveDatagram
			if network == "tcp" {
				receive = receiveStream
				query = append(binary.BigEndian.AppendUint16(nil, uint16(len(query))), query...)
			}
			if _, err := conn.Write(query); err != nil {
				return err
			}
			var p dnsmessage.Parser
			header, err := receive(conn, &p, id, q)
			if truncated = header.Truncated; err != nil || truncated {
				return err
			}
			addrs, err = readAnswers(&p, header, q.Type)
			return err
		})
		conn.Close()
		if err != nil || !truncated {
			return addrs, err
		}
	}
	return nil, errors.New("answer is truncated over TCP")
}

func newQuery(id uint16, q dnsmessage.Question) ([]byte, error) {
	var opt dnsmessage.ResourceHeader
	if err := opt.SetEDNS0(maxDatagram, dnsmessage.RCodeSuccess, false); err != nil {
		return nil, err
	}
	m := dnsmessage.Message{
		Header:      dnsmessage.Header{ID: id, RecursionDesired: true},
		Questions:   []dnsmessage.Question{q},
		Additionals: []dnsmessage.Resource{{Header: opt, Body: &dnsmessage.OPTResource{}}},
	}
	return m.Pack()
}

// receiveDatagram passes over what does not answer the question: it may be
// forged.
func receiveDatagram(conn net.Conn, p *dnsmessage.Parser, id uint16, q dnsmessage.Question) (dnsmessage.Header, error) {
	buf := make([]byte, maxDatagram)
	for {
		n, err := conn.Read(buf)
		if err != nil {
			return dnsmessage.Header{}, err
		}
		if header, ok := start(p, buf[:n], id, q); ok {
			return header, nil
		}
	}
}

func receiveStream(conn net.Conn, p *dnsmessage.Parser, id uint16, q dnsmessage.Question) (dnsmessage.Header, error) {
	var size [2]byte
	if _, err := io.ReadFull(conn, size[:]); err != nil {
		return dnsmessage.Header{}, err
	}
	buf := make([]byte, binary.BigEndian.Uint16(size[:]))
	if _, err := io.ReadFull(conn, buf); err != nil {
		return dnsmessage.Header{}, err
	}
	header, ok := start(p, buf, id, q)
	if !ok {
		return header, errors.New("answer is to another question")
	}
	return header, nil
}

// start reads up to the answers, and is not ok where they are not to q.
func start(p *dnsmessage.Parser, msg []byte, id uint16, q dnsmessage.Question) (dnsmessage.Header, bool) {
	header, err := p.Start(msg)
	if err != nil || !header.Response || header.ID != id {
		return header, false
	}
	got, err := p.Question()
	if err != nil || got.Type != q.Type || got.Class != q.Class || !strings.EqualFold(got.Name.String(), q.Name.String()) {
		return header, false
	}
	return header, p.SkipAllQuestions() == nil
}

// readAnswers takes the addresses, at the end of whatever chain of aliases the
// nameserver followed.
func readAnswers(p *dnsmessage.Parser, header dnsmessage.Header, kind dnsmessage.Type) (addrs []netip.Addr, err error) {
	switch header.RCode {
	case dnsmessage.RCodeSuccess:
	case dnsmessage.RCodeNameError:
		return nil, errNoName
	default:
		return nil, fmt.Errorf("answer is %s", strings.TrimPrefix(header.RCode.String(), "RCode"))
	}
	for len(addrs) < maxAddresses/2 {
		h, err := p.AnswerHeader()
		switch {
		case errors.Is(err, dnsmessage.ErrSectionDone) && len(addrs) > 0:
			return addrs, nil
		case errors.Is(err, dnsmessage.ErrSectionDone) && !header.Authoritative && !header.RecursionAvailable:
			return nil, errors.New("answer is a referral: not a resolver")
		case errors.Is(err, dnsmessage.ErrSectionDone):
			return nil, errNoName
		case err != nil:
			return nil, fmt.Errorf("read answer: %w", err)
		case h.Type != kind || h.Class != dnsmessage.ClassINET:
			err = p.SkipAnswer()
		case kind == dnsmessage.TypeA:
			var a dnsmessage.AResource
			a, err = p.AResource()
			addrs = append(addrs, netip.AddrFrom4(a.A))
		default:
			var a dnsmessage.AAAAResource
			a, err = p.AAAAResource()
			addrs = append(addrs, netip.AddrFrom16(a.AAAA))
		}
		if err != nil {
			return nil, fmt.Errorf("read answer: %w", err)
		}
	}
	return addrs, nil
}
