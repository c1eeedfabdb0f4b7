package egress

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"time"

	"creel/internal/policy"
)

// question is what policy is asked about each address of one target.
type question struct {
	policy *policy.Policy
	req    policy.Request
}

// ask returns the decisions for those addresses that the policy allows, at
// most as many as are tried; the error has the first refusal where it allows
// none. The address to dial is the one in the decision.
func (d *Dialer) ask(ctx context.Context, q *question, addrs []netip.Addr) (allowed []policy.Decision, err error) {
	var refusal *Denied
	var asked []netip.Addr
	for _, addr := range addrs {
		addr = addr.Unmap()
		if addr.Zone() != "" || slices.Contains(asked, addr) {
			continue
		}
		asked = append(asked, addr)
		req := q.req
		req.Op, req.Addr = policy.Dial, addr
		// Of the other classes an own address is no special case, and some of
		// them, such as multicast, can be bound.
		if c := policy.AddressClass(addr); c == policy.Public || c == policy.Private {
			if req.Own, err = d.own.has(ctx, addr); err != nil {
				return nil, fmt.Errorf("see whether %s is the host's own: %w", addr, err)
			}
		}
		switch c := q.policy.Decide(req); {
		case c.Allow && len(allowed) < maxAttempts:
			allowed = append(allowed, c)
		case !c.Allow && refusal == nil:
			refusal = &Denied{c}
		}
	}
	switch {
	case len(allowed) > 0:
		return allowed, nil
	case refusal != nil:
		return nil, refusal
	}
	return nil, &failure{NoSuchName, errors.New("there is no address to connect to")}
}

// dialFirst returns the first connection that can be made.
func (d *Dialer) dialFirst(ctx context.Context, allowed []policy.Decision, to place, w Witness) (net.Conn, error) {
	var first error
	for _, c := range allowed {
		conn, err := d.try(ctx, c, to, w)
		var f *failure
		switch {
		case err == nil:
			return conn, nil
		case errors.As(err, &f) && f.class == Unrecorded:
			return nil, err
		case first == nil:
			first = err
		}
		if ctx.Err() != nil {
			break
		}
	}
	return nil, fmt.Errorf("connect to %s: %w", to, first)
}

// try makes one attempt to reach the address of a decision.
func (d *Dialer) try(ctx context.Context, c policy.Decision, to place, w Witness) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, tryTimeout)
	defer cancel()
	a := Attempt{Address: netip.AddrPortFrom(c.Request.Addr, to.port), Decision: c}
	proxied := d.proxied(c, to)
	if proxied {
		a.Via = d.proxy.String()
	}
	if err := w.Dial(ctx, a); err != nil {
		return nil, &failure{Unrecorded, fmt.Errorf("record dial of %s: %w", a.Address, err)}
	}
	switch {
	case proxied:
		return d.throughProxy(ctx, a.Address.String(), w)
	case c.Request.Protocol == policy.UDP:
		return d.connect(ctx, "udp", a.Address)
	}
	return d.connect(ctx, "tcp", a.Address)
}

// proxied says whether a connection takes the proxy: not where NO_PROXY names
// the target or the address, not to the host itself, and no datagrams.
func (d *Dialer) proxied(c policy.Decision, to place) bool {
	return d.proxy != nil && c.Request.Protocol != policy.UDP && c.Class != policy.Loopback &&
		!d.proxy.direct(to.host, to.port) && !d.proxy.direct(c.Request.Addr.String(), to.port)
}

// dialName hands a name to the proxy.
func (d *Dialer) dialName(ctx context.Context, to place, c policy.Decision, w Witness) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, tryTimeout)
	defer cancel()
	if err := w.Dial(ctx, Attempt{Name: to.String(), Via: d.proxy.String(), Decision: c}); err != nil {
		return nil, &failure{Unrecorded, fmt.Errorf("record dial of %s: %w", to, err)}
	}
	conn, err := d.throughProxy(ctx, to.String(), w)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", to, err)
	}
	return conn, nil
}

// throughProxy connects to the proxy, whose address is the operator's word and
// not asked of policy, and has it connect to target.
func (d *Dialer) throughProxy(ctx context.Context, target string, w Witness) (net.Conn, error) {
	addrs, err := d.addresses(ctx, d.proxy.place, w)
	if err != nil {
		return nil, fmt.Errorf("reach proxy: %w", err)
	}
	var conn net.Conn
	for _, addr := range addrs[:min(len(addrs), maxAttempts)] {
		conn, err = d.connect(ctx, "tcp", netip.AddrPortFrom(addr, d.proxy.place.port))
		if err == nil {
			return d.proxy.open(ctx, conn, target)
		}
	}
	return nil, &failure{ProxyFailed, fmt.Errorf("reach proxy %s: %w", d.proxy, err)}
}

// connect is given addresses alone, so that nothing is resolved.
func connect(ctx context.Context, network string, addr netip.AddrPort) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, network, addr.String())
}

// within runs f, which talks over conn, and breaks it off when ctx ends. After
// an error conn is of no more use.
func within(ctx context.Context, conn net.Conn, f func() error) error {
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	err := f()
	if !stop() {
		return ctx.Err() // the deadline is set, or is being set
	}
	return err
}

// ownAddresses tells the host's own addresses. A process that is locked in may
// not ask for the list, but it can try to bind: that works for own addresses
// alone, and sees those that came later. Where the host lets anything be bound
// (ip_nonlocal_bind), the list that was read at the start has to do.
type ownAddresses struct {
	bindsAny bool
	list     []netip.Addr // read only where bindsAny
}

func readOwnAddresses() (o ownAddresses, err error) {
	for _, never := range []string{"192.0.2.1", "2001:db8::1"} { // RFC 5737, RFC 3849: nobody's
		binds, err := o.has(context.Background(), netip.MustParseAddr(never))
		if err != nil {
			return o, fmt.Errorf("see which addresses are the host's own: %w", err)
		}
		o.bindsAny = o.bindsAny || binds
	}
	if !o.bindsAny {
		return o, nil
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return o, fmt.Errorf("list the host's addresses: %w", err)
	}
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			o.list = append(o.list, p.Addr().Unmap())
		}
	}
	return o, nil
}

// has errs when it cannot tell: a connection then is not made.
func (o *ownAddresses) has(ctx context.Context, addr netip.Addr) (bool, error) {
	if o.bindsAny {
		return slices.Contains(o.list, addr), nil
	}
	c, err := new(net.ListenConfig).ListenPacket(ctx, "udp", netip.AddrPortFrom(addr, 0).String())
	switch {
	case err == nil:
		c.Close()
		return true, nil
	case errors.Is(err, syscall.EADDRNOTAVAIL), errors.Is(err, syscall.EAFNOSUPPORT):
		return false, nil
	}
	return false, err
}
