package boundary

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"creel/internal/audit/event"
	"creel/internal/boundary/egress"
	"creel/internal/policy"
)

// flow is one connection of the guest, or one exchange of datagrams, and what
// was allowed for it.
type flow struct {
	req     policy.Request     // Connect, as it was asked
	inspect bool               // requests are asked for one by one
	read    bool               // as HTTP, by whatever way
	inbound bool               // let in by a published port; no rule is about it
	stop    context.CancelFunc // of what is done for it
	dialing sync.WaitGroup     // added to with mu held, and not once it has ended

	mu      sync.Mutex
	rule    *policy.Rule   // that allowed it, or its last request
	asked   []*policy.Rule // of requests under way, the oldest first
	guest   net.Conn       // nil: not accepted yet
	outside []*metered     // open, for all that is known
	ended   bool

	// Of a connection by address: what it was held against.
	held   bool           // against owners
	owners []policy.Owner // whose it is not
	called string         // the name in its ClientHello
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

// dials announces a dial, whose end is told to dialing. It is not to be begun
// where the flow has ended.
func (f *flow) dials() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ended {
		return false
	}
	f.dialing.Add(1)
	return true
}

// reached makes a connection to the outside part of the flow.
func (f *flow) reached(m *metered) {
	f.mu.Lock()
	f.outside = append(f.outside, m)
	ended := f.ended
	f.mu.Unlock()
	if ended {
		m.Reset()
	}
}

func (f *flow) left(m *metered) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if i := slices.Index(f.outside, m); i >= 0 {
		f.outside = slices.Delete(f.outside, i, i+1)
	}
}

// reset ends the flow for both sides, at once. why, where it is not nil, is
// for the record.
func (f *flow) reset(why error) {
	f.mu.Lock()
	f.ended = true
	guest, outside := f.guest, slices.Clone(f.outside)
	f.mu.Unlock()
	if why != nil {
		for _, m := range outside {
			m.fail(why) // before there is another reason
		}
	}
	if guest != nil {
		abort(guest)
	}
	f.stop()
	for _, m := range outside {
		m.Reset()
	}
}

// finish is for the flow's server, whose part the guest's side is. When it
// returns, nothing is done for the flow any more.
func (f *flow) finish() {
	f.mu.Lock()
	f.ended = true
	outside := slices.Clone(f.outside)
	f.mu.Unlock()
	f.stop()
	for _, m := range outside {
		m.Close()
	}
	f.dialing.Wait()
}

// charged is the rule whose budget pays. Of requests under way it is one that
// limits bytes: on one connection of HTTP/2 their bytes cannot be told apart,
// and none shall pass for another's.
func (f *flow) charged() *policy.Rule {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range f.asked {
		if r.Budget.BytesOut > 0 || r.Budget.BytesIn > 0 {
			return r
		}
	}
	return f.rule
}

func (f *flow) charge(r *policy.Rule) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rule = r
}

// asks notes a request that is under way.
func (f *flow) asks(r *policy.Rule) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked = append(f.asked, r)
}

// answered is the end of a request. Its rule may be another policy's by now.
func (f *flow) answered(r *policy.Rule) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if i := slices.IndexFunc(f.asked, func(o *policy.Rule) bool { return o.Key() == r.Key() }); i >= 0 {
		f.asked = slices.Delete(f.asked, i, i+1)
	}
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
		f.reset(nil)
	}
}

func (fs *flows) remove(f *flow) {
	fs.mu.Lock()
	delete(fs.open, f)
	fs.mu.Unlock()
	f.finish()
}

// buffer is how much a connection is copied with at once: the first get what
// full speed needs.
func (fs *flows) buffer() int {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if len(fs.open) > wideFlows {
		return narrowCopy
	}
	return maxCharge
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
	fs.each(func(f *flow) { f.reset(nil) })
}

// begin makes a connection known that was decided about; it lasts no longer
// than ctx.
func (e *Edge) begin(ctx context.Context, d policy.Decision) (context.Context, *flow) {
	ctx, stop := context.WithCancel(ctx)
	f := &flow{req: d.Request, inspect: d.Inspect, read: d.Inspect || d.Protocol == policy.HTTP, rule: d.Rule, stop: stop}
	e.flows.add(f)
	e.recheck(f) // rules may have come between the decision and now
	return ctx, f
}

var (
	errRules   = errors.New("the policy was changed")
	errSecrets = errors.New("the secrets were changed")
)

// recheck ends a flow that the rules in force do not allow.
func (e *Edge) recheck(f *flow) {
	if !e.stillAllowed(e.rules.Load().Policy, f) {
		f.reset(errRules)
	}
}

// stillAllowed asks other rules about an open flow, and lets them charge it.
func (e *Edge) stillAllowed(p *policy.Policy, f *flow) bool {
	if f.inbound {
		return true
	}
	d := p.Decide(f.req)
	if !d.Allow || d.Inspect != f.inspect {
		return false
	}
	old := f.charged()
	if d.Rule.ProtocolAt(f.req.Port) != old.ProtocolAt(f.req.Port) || d.Rule.Upstream != old.Upstream {
		return false
	}
	if f.req.Host == "" && !f.stillUnowned(p) {
		return false
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, m := range f.outside {
		if !p.Decide(m.dialled).Allow {
			return false
		}
	}
	for i, r := range f.asked {
		like := p.Like(r)
		if like == nil {
			return false
		}
		f.asked[i] = like
	}
	f.rule = d.Rule
	return true
}

var errBudget = errors.New("a budget is used up")

// spend charges an act to a rule, or, where it was let in, to the task alone; or
// closes what the spent budget is about.
func (e *Edge) spend(f *flow, r *policy.Rule, u policy.Usage) policy.Decision {
	var d policy.Decision
	if f.inbound {
		d = e.meter.UseTask(e.rules.Load().Policy, u, time.Now())
	} else {
		d = e.meter.Use(e.rules.Load().Policy, r, u, time.Now())
	}
	if d.Allow {
		return d
	}
	d.Request = f.req
	if d.Why != policy.WhyBudget {
		return d
	}
	e.deny(d)
	if d.Limit == "requests_per_minute" {
		return d // it recovers
	}
	spent, of := d.Rule, d.Limit // nil: the task's
	if spent != nil {
		of += " " + spent.Key()
	}
	if _, again := e.overdrawn.LoadOrStore(of, true); again {
		return d
	}
	e.flows.each(func(other *flow) {
		if spent == nil || other.charged() == spent {
			other.reset(errBudget)
		}
	})
	e.recordAfter(event.KindBudget, event.Budget{Limit: d.Limit, Rule: d.RuleName(), Host: destination(d).Host})
	return d
}

// dial connects a flow to where it is allowed to go. What it returns charges
// every byte, before it passes.
func (e *Edge) dial(ctx context.Context, f *flow) (*metered, error) {
	if e.cfg.Dialer == nil {
		return nil, errors.New("this sandbox has no network")
	}
	if !f.dials() {
		return nil, net.ErrClosed
	}
	defer f.dialing.Done()
	if e.outside.Add(1) > maxOutside {
		e.outside.Add(-1)
		return nil, fmt.Errorf("%d connections to the outside are open, and no more are allowed", maxOutside)
	}
	host := f.req.Host
	if host == "" {
		host = f.req.Addr.String()
	}
	m := &metered{charging: charging{edge: e, flow: f}, host: host}
	rules := e.rules.Load()
	err := e.connectTo(ctx, m, rules.Policy)
	if err != nil {
		e.outside.Add(-1)
		return nil, err
	}
	f.reached(m)
	if e.rules.Load() != rules {
		e.recheck(f) // the other rules have not seen where it leads
	}
	return m, nil
}

// connectTo charges a connection and makes it.
func (e *Edge) connectTo(ctx context.Context, m *metered, p *policy.Policy) error {
	f := m.flow
	if d := e.spend(f, f.charged(), policy.Usage{Connections: 1, Host: m.host}); !d.Allow {
		return &egress.Denied{Decision: d}
	}
	w := &witness{edge: e, flow: f}
	target := egress.Target{Host: f.req.Host, Addr: f.req.Addr, Port: f.req.Port, Protocol: f.req.Protocol}
	conn, err := e.cfg.Dialer.Dial(ctx, p, target, w)
	if err != nil {
		if w.id != 0 {
			e.note(event.KindDisconnected, event.Disconnected{ID: w.id, Host: m.host, Port: f.req.Port, Error: egress.Class(err)})
		}
		if denied, ok := errors.AsType[*egress.Denied](err); ok {
			e.deny(denied.Decision)
		}
		e.upstreamFailed(f, err, w.id != 0)
		return err
	}
	m.Conn, m.id, m.dialled, m.began = conn, w.id, w.dialled, time.Now()
	return nil
}

// witness puts lookups and dials of one flow on record.
type witness struct {
	edge *Edge
	flow *flow

	id      int64 // of the last dial
	dialled policy.Request
}

func (w *witness) Lookup(ctx context.Context, host string) error {
	d := policy.Decision{Allow: true, Why: policy.WhyRule, Rule: w.flow.charged(), Request: w.flow.req}
	to := destination(d)
	to.Host = host
	return w.edge.record(ctx, event.KindLookup, to)
}

func (w *witness) Dial(ctx context.Context, a egress.Attempt) error {
	if w.id != 0 { // another address is tried
		w.edge.note(event.KindDisconnected, event.Disconnected{ID: w.id, Host: w.flow.req.Host, Port: w.flow.req.Port, Error: "failed"})
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
	w.dialled = a.Decision.Request
	return nil
}
