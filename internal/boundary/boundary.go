// Package boundary is one sandbox's edge: the host's side of everything that
// crosses its network. [Open] takes charge of the sandbox's card and gives an
// [Edge], which asks the policy about each name, connection, address and
// request, puts on record what is about to happen, and then lets it happen.
// The parts have packages of their own: netstack is the wire, names the
// resolver, hello and web read what is spoken, intercept lets TLS end here,
// credential holds the secrets, and egress alone dials.
//
// The package must not know the engine, must not dial or resolve but through
// egress, and must not let anything happen whose record is not durable.
package boundary

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"creel/internal/audit"
	"creel/internal/audit/event"
	"creel/internal/boundary/credential"
	"creel/internal/boundary/egress"
	"creel/internal/boundary/intercept"
	"creel/internal/boundary/names"
	"creel/internal/boundary/netstack"
	"creel/internal/boundary/web"
	"creel/internal/policy"
	"creel/internal/sandbox"
)

// The network of every sandbox, which its template knows already.
var (
	guestAddress   = netip.MustParseAddr("192.168.127.2")
	gatewayAddress = netip.MustParseAddr("192.168.127.1")
	// namePool is for benchmarks of networks (RFC 2544), and so no address
	// that anything real has.
	namePool = netip.MustParsePrefix("198.18.0.0/16")
)

const (
	mtu        = 65000
	dnsPort    = 53
	maxNames   = 16384 // with an address of their own; each costs up to 400 bytes
	maxPending = 256   // connections that are being decided about
	maxFlows   = 1024  // connections and datagram flows at once
	maxOutside = 1024  // connections to the outside; one of HTTP/2 can ask for many
	talliesAt  = 64    // destinations that are counted apart in a second, for a while
)

// Rules are one generation of a policy.
type Rules struct {
	Policy *policy.Policy // nil: nothing is allowed
	Text   string         // canonical
	Digest string         // of Text
}

// Dialer connects to what is allowed; package egress has it.
type Dialer interface {
	Dial(ctx context.Context, p *policy.Policy, t egress.Target, w egress.Witness) (net.Conn, error)
	Roots() *x509.CertPool
	// Addresses are those of a name, or the address that it is.
	Addresses(ctx context.Context, host string, w egress.Witness) ([]netip.Addr, error)
}

// Config is what an edge is opened with.
type Config struct {
	Sandbox string   // its ID, for the record
	Network net.Conn // the card's frames; the edge owns it
	Rules   Rules
	Dialer  Dialer // nil: nothing leaves, whatever the rules
	Wallet  *credential.Wallet
	Ports   []Port // published; the edge owns their listeners
	Audit   audit.Recorder
	Owed    *audit.Owed // for Audit: what takes rights away does not wait for its record
	Log     *slog.Logger
	// Denied is told of each destination that is denied for the first time.
	// It must not block.
	Denied func(sandbox.Denial)
	// Alerted is told of each alert, after it is on record. It must not block.
	Alerted func(event.Alert)

	idle time.Duration // of flows of datagrams; 0: datagramIdle
}

// Edge is one open boundary. It is safe for use by several goroutines.
type Edge struct {
	cfg       Config
	authority *intercept.Authority
	stack     *netstack.Stack
	names     *names.Names
	web       *web.Server
	meter     policy.Meter
	tallies   *audit.Coalescer[counted]
	marks     *audit.Coalescer[counted] // alerts that are not on record one by one
	visitors  *visitors
	denials   denials
	troubles  troubles
	flows     flows
	places    places
	outside   atomic.Int64 // connections, dials too
	overdrawn sync.Map     // limit and key of the rule of each budget that is on record as used up
	ids       atomic.Int64
	roots     *x509.CertPool // of upstreams without a CA of their own

	rules  atomic.Pointer[Rules]
	wallet atomic.Pointer[credential.Wallet]

	change     sync.Mutex // one change of rules or wallet at a time
	generation int

	serving sync.WaitGroup
	stop    context.CancelFunc
	dropped sync.Once // the record of what the card let go
}

// Open takes charge of the sandbox's card. The caller closes the edge; nothing
// has crossed before Open returns.
func Open(ctx context.Context, cfg Config) (*Edge, error) {
	e, err := assemble(ctx, cfg)
	if err != nil {
		for _, p := range cfg.Ports {
			p.close()
		}
		return nil, errors.Join(err, cfg.Network.Close())
	}
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	e.stop = stop
	if err := e.serveNames(running); err != nil {
		return nil, errors.Join(err, e.Close())
	}
	e.publish(running)
	return e, nil
}

// assemble makes the parts.
func assemble(ctx context.Context, cfg Config) (*Edge, error) {
	e := &Edge{cfg: cfg, generation: 1}
	if e.cfg.idle == 0 {
		e.cfg.idle = datagramIdle
	}
	e.rules.Store(&cfg.Rules)
	e.wallet.Store(cfg.Wallet)
	var err error
	if e.authority, err = intercept.New(cfg.Sandbox[:min(12, len(cfg.Sandbox))], time.Now()); err != nil {
		return nil, err
	}
	if cfg.Dialer != nil {
		e.roots = cfg.Dialer.Roots()
	}
	if err := e.append(ctx, e.policyEvent(cfg.Rules, 1)); err != nil {
		return nil, err
	}
	e.denials.seed = maphash.MakeSeed()
	e.tallies = audit.NewCoalescer(talliesAt, ruleOf, e.recordTallies)
	e.marks = audit.NewCoalescer(talliesAt, markOf, e.recordTallies)
	e.visitors = newVisitors(e)
	e.names = names.New(names.Options{Allow: e.mayResolve, Odd: e.oddName, Pool: namePool, Max: maxNames})
	e.web = web.NewServer()
	e.stack, err = netstack.New(cfg.Network, netstack.Options{
		Guest: guestAddress, Gateway: gatewayAddress, MTU: mtu,
		TCP: e.connect, UDP: e.datagrams, MayUDP: e.mayUDP, Knock: e.knocked, MaxPending: maxPending, MaxFlows: maxFlows, UDPIdle: e.cfg.idle,
	})
	if err != nil {
		return nil, errors.Join(err, e.web.Close())
	}
	return e, nil
}

// CA is the certificate of the authority that connections are intercepted
// with, as PEM.
func (e *Edge) CA() string { return e.authority.PEM() }

// Close ends the edge; nothing of it remains when it has returned. Closing
// twice is no fault.
func (e *Edge) Close() error {
	e.stop()
	for _, p := range e.cfg.Ports {
		p.close()
	}
	e.flows.closeAll()
	err := errors.Join(e.stack.Close(), e.web.Close())
	e.serving.Wait()
	e.visitors.close()
	e.dropped.Do(e.recordDropped)
	// What was denied has crossed nothing, and without its record nothing of
	// the edge remains all the same.
	for _, c := range []*audit.Coalescer[counted]{e.tallies, e.marks} {
		if lost, unwritten := c.Close(); unwritten != nil {
			e.unrecorded(unwritten)
			e.cfg.Owed.Miss(event.KindDenied, int(lost))
		}
	}
	return err
}

func (e *Edge) serveNames(ctx context.Context) error {
	datagrams, err := e.stack.ListenUDP(dnsPort)
	if err != nil {
		return fmt.Errorf("serve names: %w", err)
	}
	streams, err := e.stack.ListenTCP(dnsPort)
	if err != nil {
		return errors.Join(fmt.Errorf("serve names: %w", err), datagrams.Close())
	}
	e.serving.Go(func() { e.names.ServeUDP(ctx, datagrams) })
	e.serving.Go(func() { e.names.ServeTCP(ctx, streams) })
	return nil
}

// SetRules puts other rules in force: for what is asked from now on, and for
// what is open. The change is on record before, unless it only takes away.
func (e *Edge) SetRules(ctx context.Context, r Rules) error {
	if e.cfg.Dialer == nil && r.Policy != nil {
		return errors.New("the sandbox was started without a network, which its keeper has given up for good; start it with a policy")
	}
	e.change.Lock()
	defer e.change.Unlock()
	if policy.TakesAway(e.rules.Load().Policy, r.Policy) {
		e.cfg.Owed.Tell(e.policyEvent(r, e.generation+1))
	} else if err := e.append(ctx, e.policyEvent(r, e.generation+1)); err != nil {
		return err
	}
	e.generation++
	e.rules.Store(&r)
	e.flows.each(func(f *flow) {
		if !e.stillAllowed(r.Policy, f) {
			f.reset(errRules)
		}
	})
	return nil
}

// SetWallet replaces what secrets are; what they were is searched for as before,
// also in what is open, where the new ones are searched for too. What cannot be
// searched for them is reset. The change is on record before.
func (e *Edge) SetWallet(ctx context.Context, w *credential.Wallet, names []string) error {
	e.change.Lock()
	defer e.change.Unlock()
	old := e.wallet.Load()
	w, err := w.After(old)
	if err != nil {
		return fmt.Errorf("%w; start another sandbox with them", err)
	}
	if err := e.record(ctx, event.KindSecrets, event.Secrets{Names: names}); err != nil {
		return err
	}
	w.Succeed(old)
	e.wallet.Store(w)
	unsearched := old.Values().Empty() && !w.Values().Empty()
	e.flows.each(func(f *flow) {
		if unsearched && f.read || !w.Like(old, f.req.Host) {
			f.reset(errSecrets)
		}
	})
	return nil
}

// Rules are those in force.
func (e *Edge) Rules() Rules { return *e.rules.Load() }

// Used is what was charged to the policy's budget so far.
func (e *Edge) Used() (u policy.Usage, hosts int) { return e.meter.Used() }

// EndOnAlert reports whether the rules in force end the task on an alert.
func (e *Edge) EndOnAlert() bool {
	p := e.rules.Load().Policy
	return p != nil && p.EndOnAlert
}
