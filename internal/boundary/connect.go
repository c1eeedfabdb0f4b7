package boundary

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"time"

	"creel/internal/audit/event"
	"creel/internal/boundary/credential"
	"creel/internal/boundary/hello"
	"creel/internal/boundary/netstack"
	"creel/internal/boundary/web"
	"creel/internal/policy"
)

// helloTimeout is for a guest that has connected and says nothing.
const helloTimeout = 60 * time.Second

// judge decides about a connection by where it leads: by name where the
// address is one that a name was given.
func (e *Edge) judge(to netip.AddrPort, p policy.Protocol) policy.Decision {
	req := policy.Request{Op: policy.Connect, Port: to.Port(), Protocol: p}
	if host, ok := e.names.Host(to.Addr()); ok {
		req.Host = host
	} else {
		req.Addr = to.Addr()
		if namePool.Contains(to.Addr()) {
			return policy.Decision{Request: req, Why: policy.WhyNoRule}
		}
	}
	return e.rules.Load().Policy.Decide(req)
}

// connect decides about a connection that the guest asks for, before it is
// answered.
func (e *Edge) connect(ctx context.Context, a *netstack.Attempt) {
	d := e.judge(a.Destination(), "")
	if !d.Allow {
		e.deny(d)
		a.Refuse()
		return
	}
	ctx, f := e.begin(ctx, d)
	defer e.flows.remove(f)
	if !e.unowned(ctx, f) {
		a.Refuse()
		return
	}
	if d.Protocol == policy.TCP {
		e.opaque(ctx, f, a)
		return
	}
	guest, err := a.Accept()
	if err != nil {
		return
	}
	f.accept(guest)
	if d.Protocol == policy.HTTP {
		e.web.Serve(ctx, guest, e.site(ctx, f, false), nil)
		return
	}
	e.secure(ctx, f, guest)
}

// opaque joins the guest to the outside without looking in, but for marks.
func (e *Edge) opaque(ctx context.Context, f *flow, a *netstack.Attempt) {
	e.join(ctx, f, a, func(guest net.Conn, outside *metered) {
		e.unread(f)
		e.carry(guest, outside, e.searched(f, guest))
	})
}

// join answers the guest once the other side has answered, and refuses it where
// that fails. Both are closed when do has returned.
func (e *Edge) join(ctx context.Context, f *flow, a *netstack.Attempt, do func(guest net.Conn, outside *metered)) {
	outside, err := e.dial(ctx, f)
	if err != nil {
		a.Refuse()
		return
	}
	defer outside.Close()
	guest, err := a.Accept()
	if err != nil {
		return
	}
	defer guest.Close()
	f.accept(guest)
	do(guest, outside)
}

// searched is what the guest sends on an opaque connection, up to a mark. On one
// that was let in, no mark is harmless.
func (e *Edge) searched(f *flow, guest net.Conn) io.Reader {
	marks := e.wallet.Load().Marks(f.req.Host)
	if marks.Empty() {
		return guest
	}
	return web.Search(guest, marks, func(names []string) {
		e.alert(policy.Decision{Request: f.req, Rule: f.charged()}, credential.Found{Mark: names[0], Where: "stream"})
	})
}

// secure reads the beginning of a TLS connection, and splices or opens it.
func (e *Edge) secure(ctx context.Context, f *flow, guest net.Conn) {
	guest.SetReadDeadline(time.Now().Add(helloTimeout))
	said, head, err := hello.Read(guest)
	guest.SetReadDeadline(time.Time{})
	if err == nil {
		err = e.mayGreet(f, said)
	}
	if err != nil {
		e.denyHello(f, guest, err)
		return
	}
	begun := &replayed{Conn: guest, head: bytes.NewReader(head)}
	if f.inspect {
		host := f.req.Host
		if host == "" {
			host = f.req.Addr.String()
		}
		e.web.Serve(ctx, begun, e.site(ctx, f, true), e.authority.Config(host))
		return
	}
	defer guest.Close()
	e.unread(f)
	outside, err := e.dial(ctx, f)
	if err != nil {
		abort(guest)
		return
	}
	defer outside.Close()
	e.carry(guest, outside, begun)
}

// helloDenied is a greeting that is not what the connection was allowed for.
type helloDenied struct{ reason, hint string }

func (d helloDenied) Error() string { return d.reason }

// mayGreet holds a ClientHello against the name that was connected to.
func (e *Edge) mayGreet(f *flow, said hello.Hello) error {
	if said.ECH {
		if rule := f.charged(); rule.ECH && !f.inspect {
			return nil // the name is hidden, and the rule says that it may be
		}
		return helloDenied{"encrypted ClientHello hides the name", fmt.Sprintf("write `ech: allow` in rule %q of a policy file, or switch it off in the client", f.charged().Name)}
	}
	name, err := policy.CleanHost(said.ServerName)
	switch {
	case f.req.Host == "" && said.ServerName == "":
		return nil // an address was connected to, and none is sent as a name
	case said.ServerName == "":
		return helloDenied{"the ClientHello names no server", "let the client send the name (SNI)"}
	case err == nil && name == f.req.Host:
		return nil
	case err == nil && f.req.Host == "":
		f.callBy(name)
		d := f.named(e.rules.Load().Policy)
		if d.Allow {
			return nil
		}
		return helloDenied{fmt.Sprintf("the ClientHello names %.100q, the connection is to %s: %s", said.ServerName, f.req.Addr, d.Reason()), d.Hint()}
	}
	return helloDenied{fmt.Sprintf("the ClientHello names %.100q, the connection is to %s", said.ServerName, destination(policy.Decision{Request: f.req}).Host), ""}
}

// accessDenied is a TLS alert: fatal, access_denied (RFC 8446 6.2).
var accessDenied = []byte{21, 3, 3, 0, 2, 2, 49}

// denyHello tells the client in its own protocol.
func (e *Edge) denyHello(f *flow, guest net.Conn, err error) {
	defer guest.Close()
	d := policy.Decision{Request: f.req, Rule: f.charged(), Why: policy.WhyProtocol, Protocol: policy.TLS}
	var denied helloDenied
	switch {
	case errors.As(err, &denied):
		guest.Write(accessDenied)
		e.denyWords(d, denied.reason, denied.hint)
	case errors.Is(err, hello.ErrNotTLS):
		abort(guest)
		e.denyWords(d, "no TLS is spoken", "allow the port with `protocol: tcp` in a policy file, if that is meant")
	case errors.Is(err, hello.ErrMalformed), errors.Is(err, hello.ErrTooLong), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, os.ErrDeadlineExceeded):
		abort(guest)
		e.denyWords(d, "the ClientHello cannot be read", "")
	default:
		abort(guest) // it left, or was ended: nothing was asked for
	}
}

// replayed is a connection whose first bytes were read before.
type replayed struct {
	net.Conn
	head *bytes.Reader // nil once it was read again
}

func (r *replayed) Read(p []byte) (int, error) {
	if r.head != nil {
		n, _ := r.head.Read(p)
		if r.head.Len() == 0 {
			r.head = nil
		}
		return n, nil
	}
	return r.Conn.Read(p)
}

// Reset passes the wish on.
func (r *replayed) Reset() { abort(r.Conn) }

// mayResolve decides whether a name has an address, and counts.
func (e *Edge) mayResolve(host string) bool {
	req := policy.Request{Op: policy.Resolve, Host: host}
	if e.markedName(req) {
		return false
	}
	d := e.rules.Load().Policy.Decide(req)
	if !d.Allow {
		e.deny(d)
		return false
	}
	e.tallies.Add(counted{kind: event.KindName, to: destination(d)})
	return true
}

// oddName counts a question about what is no host name.
func (e *Edge) oddName(name string) {
	req := policy.Request{Op: policy.Resolve, Host: printable(name)}
	if !e.markedName(req) {
		e.deny(policy.Decision{Request: req, Why: policy.WhyHost})
	}
}

// markedName looks for marks in a name that is asked for.
func (e *Edge) markedName(req policy.Request) bool {
	found := e.wallet.Load().InName(req.Host)
	if found == "" {
		return false
	}
	e.alert(policy.Decision{Request: req}, credential.Found{Mark: found, Where: "name"})
	return true
}
