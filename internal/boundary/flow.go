package boundary

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"creel/internal/audit/event"
	"creel/internal/boundary/egress"
	"creel/internal/policy"
)

// flow is one connection of the guest, or one exchange of datagrams, and what
// was allowed for it.
type flow struct {
	req     policy.Request // Connect, as it was asked
	inspect bool           // requests are asked for one by one

	mu      sync.Mutex
	rule    *policy.Rule // in force; the budget that is charged
	guest   net.Conn     // nil: not accepted yet
	outside []*metered   // open, for all that is known
	ended   bool
}

// accept makes the guest's connection part of the flow.
func (f *flow) accept(guest net.Conn) {
	f.mu.Lock()
	f.guest = guest
	ended := f.ended
	f.mu.Unlock()
	if ended {
		abort(guest)
	}
}

// reached makes a connection to the outside part of the flow.
func (f *flow) reached(m *metered) {
	f.mu.Lock()
	f.outside = append(f.outside, m)
	ended := f.ended
	f.mu.Unlock()
	if ended {
		m.Close()
	}
}

func (f *flow) left(m *metered) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if i := slices.Index(f.outside, m); i >= 0 {
		f.outside = slices.Delete(f.outside, i, i+1)
	}
}

// reset ends the flow for both sides, at once.
func (f *flow) reset() {
	if guest := f.end(); guest != nil {
		abort(guest)
	}
}

// end closes what the flow has open outside; the guest's side is its server's.
func (f *flow) end() (guest net.Conn) {
	f.mu.Lock()
	outside := slices.Clone(f.outside)
	f.ended, guest = true, f.guest
	f.mu.Unlock()
	for _, m := range outside {
		m.Close()
	}
	return guest
}

func (f *flow) charged() *policy.Rule {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.rule
}

func (f *flow) charge(r *policy.Rule) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rule = r
}

// flows are all that are open.
type flows struct {
	mu     sync.Mutex
	open   map[*flow]struct{}
	closed bool
}

func (fs *flows) add(f *flow) {
	fs.mu.Lock()
	if fs.open == nil {
		fs.open = map[*flow]struct{}{}
	}
	fs.open[f] = struct{}{}
	closed := fs.closed
	fs.mu.Unlock()
	if closed {
		f.reset()
	}
}

func (fs *flows) remove(f *flow) {
	fs.mu.Lock()
	delete(fs.open, f)
	fs.mu.Unlock()
	f.end()
}

func (fs *flows) each(do func(*flow)) {
	fs.mu.Lock()
	all := make([]*flow, 0, len(fs.open))
	for f := range fs.open {
		all = append(all, f)
	}
	fs.mu.Unlock()
	for _, f := range all {
		do(f)
	}
}

func (fs *flows) closeAll() {
	fs.mu.Lock()
	fs.closed = true
	fs.mu.Unlock()
	fs.each((*flow).reset)
}

// stillAllowed asks other rules about an open flow, and lets them charge it.
func (e *Edge) stillAllowed(p *policy.Policy, f *flow) bool {
	d := p.Decide(f.req)
	if !d.Allow || d.Inspect != f.inspect {
		return false
	}
	old := f.charged()
	if d.Rule.ProtocolAt(f.req.Port) != old.ProtocolAt(f.req.Port) || d.Rule.Upstream != old.Upstream {
		return false
	}
	f.mu.Lock()
	outside := slices.Clone(f.outside)
	f.mu.Unlock()
	for _, m := range outside {
		req := f.req
		req.Op, req.Addr = policy.Dial, m.address.Addr()
		if m.address.IsValid() && !p.Decide(req).Allow {
			return false
		}
	}
	if !f.inspect { // requests charge their own rules
		f.charge(d.Rule)
	}
	return true
}

var errBudget = errors.New("a budget is used up")

// spend charges an act, or closes what the spent budget is about.
func (e *Edge) spend(f *flow, u policy.Usage) policy.Decision {
	d := e.meter.Use(e.rules.Load().Policy, f.charged(), u, time.Now())
	if d.Allow {
		return d
	}
	d.Request = f.req
	spent := d.Rule // nil: the task's
	if d.Why != policy.WhyBudget || d.Limit == "requests_per_minute" {
		return d
	}
	e.flows.each(func(other *flow) {
		if spent == nil || other.charged() == spent {
			other.reset()
		}
	})
	e.recordAfter(event.KindBudget, event.Budget{Limit: d.Limit, Rule: d.RuleName(), Host: destination(d).Host})
	e.deny(d)
	return d
}

// dial connects a flow to where it is allowed to go. What it returns charges
// every byte, before it passes.
func (e *Edge) dial(ctx context.Context, f *flow) (*metered, error) {
	if e.cfg.Dialer == nil {
		return nil, errors.New("this sandbox has no network")
	}
	host := f.req.Host
	if host == "" {
		host = f.req.Addr.String()
	}
	if d := e.spend(f, policy.Usage{Connections: 1, Host: host}); !d.Allow {
		return nil, errBudget
	}
	w := &witness{edge: e, flow: f}
	target := egress.Target{Host: f.req.Host, Addr: f.req.Addr, Port: f.req.Port, Protocol: f.req.Protocol}
	conn, err := e.cfg.Dialer.Dial(ctx, e.rules.Load().Policy, target, w)
	if err != nil {
		if w.id != 0 {
			e.recordAfter(event.KindDisconnected, event.Disconnected{ID: w.id, Host: host, Port: f.req.Port, Error: egress.Class(err)})
		}
		if denied, ok := errors.AsType[*egress.Denied](err); ok {
			e.deny(denied.Decision)
		}
		return nil, err
	}
	m := &metered{Conn: conn, edge: e, flow: f, id: w.id, address: w.address, host: host, began: time.Now()}
	f.reached(m)
	return m, nil
}

// witness puts lookups and dials of one flow on record.
type witness struct {
	edge *Edge
	flow *flow

	id      int64 // of the last dial
	address netip.AddrPort
}

func (w *witness) Lookup(ctx context.Context, host string) error {
	d := policy.Decision{Allow: true, Why: policy.WhyRule, Rule: w.flow.charged(), Request: w.flow.req}
	to := destination(d)
	to.Host = host
	return w.edge.record(ctx, event.KindLookup, to)
}

func (w *witness) Dial(ctx context.Context, a egress.Attempt) error {
	if w.id != 0 { // another address is tried
		w.edge.recordAfter(event.KindDisconnected, event.Disconnected{ID: w.id, Host: w.flow.req.Host, Port: w.flow.req.Port, Error: "failed"})
	}
	address := a.Name
	if a.Address.IsValid() {
		address = a.Address.String()
	}
	to := destination(a.Decision)
	to.Host = destination(policy.Decision{Request: w.flow.req}).Host // the name rather than the address
	to.Port = w.flow.req.Port
	w.id = w.edge.ids.Add(1)
	if err := w.edge.record(ctx, event.KindConnection, event.Connection{Destination: to, ID: w.id, Address: address, Via: a.Via}); err != nil {
		return err
	}
	w.address = a.Address
	return nil
}

// maxCharge bounds what is charged at once, and so how far a budget can be
// overrun.
const maxCharge = 64 << 10

// metered is a connection to the outside that charges every byte.
type metered struct {
	net.Conn
	edge    *Edge
	flow    *flow
	id      int64
	address netip.AddrPort // not valid where a proxy resolves
	host    string
	began   time.Time
	out, in atomic.Int64
	once    sync.Once
	failed  atomic.Pointer[error]
}

func (m *metered) Write(p []byte) (n int, err error) {
	for {
		part := p[n:min(n+maxCharge, len(p))]
		if d := m.edge.spend(m.flow, policy.Usage{BytesOut: int64(len(part))}); !d.Allow {
			return n, m.fail(errBudget)
		}
		k, err := m.Conn.Write(part)
		n += k
		m.out.Add(int64(k))
		if err != nil || n == len(p) {
			return n, err
		}
	}
}

func (m *metered) Read(p []byte) (int, error) {
	n, err := m.Conn.Read(p[:min(len(p), maxCharge)])
	if n > 0 {
		if d := m.edge.spend(m.flow, policy.Usage{BytesIn: int64(n)}); !d.Allow {
			return 0, m.fail(errBudget)
		}
		m.in.Add(int64(n))
	}
	return n, err
}

func (m *metered) fail(err error) error {
	m.failed.Store(&err)
	return err
}

// CloseWrite tells the other side that no more comes.
func (m *metered) CloseWrite() error {
	if c, ok := m.Conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return m.Close()
}

// Close also puts on record what has passed.
func (m *metered) Close() error {
	err := m.Conn.Close()
	m.once.Do(func() {
		m.flow.left(m)
		d := event.Disconnected{
			ID: m.id, Host: m.host, Port: m.flow.req.Port, BytesOut: m.out.Load(), BytesIn: m.in.Load(),
			DurationMS: time.Since(m.began).Milliseconds(),
		}
		if why := m.failed.Load(); why != nil {
			d.Error = (*why).Error()
		}
		m.edge.recordAfter(event.KindDisconnected, d)
	})
	return err
}

// carry copies both directions until both have ended or one has failed.
func carry(guest net.Conn, outside *metered, up io.Reader) {
	var done sync.WaitGroup
	done.Go(func() { pass(outside, up, guest, outside) })
	done.Go(func() { pass(guest, outside, guest, outside) })
	done.Wait()
}

// pass copies one direction. Its end is told to the receiver; a failure ends
// both directions.
func pass(to io.Writer, from io.Reader, guest net.Conn, outside *metered) {
	_, err := io.CopyBuffer(struct{ io.Writer }{to}, struct{ io.Reader }{from}, make([]byte, maxCharge))
	if err == nil {
		if half, ok := to.(interface{ CloseWrite() error }); ok {
			err = half.CloseWrite()
		}
	}
	if err != nil {
		abort(guest)
		outside.Close()
	}
}

// abort resets a connection of the guest, where it can be.
func abort(c net.Conn) {
	if r, ok := c.(interface{ Reset() }); ok {
		r.Reset()
		return
	}
	c.Close()
}
