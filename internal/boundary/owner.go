package boundary

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"creel/internal/boundary/egress"
	"creel/internal/policy"
)

const (
	maxOwners    = 256              // names that an address is compared with
	maxPlaces    = 256              // addresses of a name that are remembered
	placesFresh  = 30 * time.Second // how long a name is not looked up again
	ownerLookups = 8                // at once
)

// unowned holds a connection by address against the names whose rules ask more
// than the address's does: an address that is theirs is reached by their name.
// TLS without a name, a hidden one, and whatever is not read at all are held
// by nothing else.
func (e *Edge) unowned(ctx context.Context, f *flow) bool {
	if f.req.Host != "" || f.charged().Upstream.Address != "" {
		return true
	}
	p := e.rules.Load().Policy
	owners := p.Owners(f.req.Port)
	deny := func(reason, hint string) bool {
		e.denyWords(policy.Decision{Request: f.req, Rule: f.charged(), Why: policy.WhyByAddress}, reason, hint)
		return false
	}
	if len(owners) > maxOwners {
		return deny(fmt.Sprintf("it may be an address of one of %d names that have rules of their own, too many to look up", len(owners)), "allow names instead of addresses")
	}
	owner, err := e.ownerOf(ctx, f, owners)
	switch {
	case err != nil:
		return deny(fmt.Sprintf("whether it is an address of %s, which has rules of its own, cannot be told: %s", owner, egress.Class(err)), "connect to a name")
	case owner != "":
		return deny(fmt.Sprintf("it is an address of %s, which has rules of its own", owner), "connect to the name "+owner)
	}
	f.mu.Lock()
	f.owners, f.held = owners, true
	f.mu.Unlock()
	// Other rules may have come meanwhile, which have not seen these owners.
	return e.stillAllowed(e.rules.Load().Policy, f)
}

// ownerOf is the name whose address a flow's is, or the one of which that
// cannot be told; "": nobody's.
func (e *Edge) ownerOf(ctx context.Context, f *flow, owners []policy.Owner) (owner string, err error) {
	type answer struct {
		host  string
		owned bool
		err   error
	}
	answers := make(chan answer, len(owners))
	slots := make(chan struct{}, ownerLookups)
	for _, o := range owners {
		slots <- struct{}{}
		go func() {
			defer func() { <-slots }()
			owned, err := e.places.has(ctx, o.At, f.req.Addr, func() ([]netip.Addr, error) {
				return e.cfg.Dialer.Addresses(ctx, o.At, &witness{edge: e, flow: f})
			})
			answers <- answer{o.Host, owned, err}
		}()
	}
	for range owners {
		a := <-answers
		switch {
		case a.owned:
			owner, err = a.host, nil
		case a.err != nil && owner == "":
			owner, err = a.host, a.err
		}
	}
	return owner, err
}

// places are the addresses that names had.
type places struct {
	mu sync.Mutex
	of map[string]*addresses
}

type addresses struct {
	mu    sync.Mutex // held while the name is looked up
	list  []netip.Addr
	until time.Time
}

// has reports whether a name has, or had, an address.
func (p *places) has(ctx context.Context, host string, addr netip.Addr, lookup func() ([]netip.Addr, error)) (bool, error) {
	p.mu.Lock()
	if p.of == nil {
		p.of = map[string]*addresses{}
	}
	a := p.of[host]
	if a == nil {
		a = &addresses{}
		p.of[host] = a
	}
	p.mu.Unlock()
	a.mu.Lock()
	defer a.mu.Unlock()
	if now := time.Now(); now.After(a.until) && ctx.Err() == nil {
		found, err := lookup()
		if err != nil {
			return slices.Contains(a.list, addr), err
		}
		for _, f := range found {
			if f = f.Unmap(); !slices.Contains(a.list, f) {
				a.list = append(a.list, f)
			}
		}
		a.list = a.list[max(0, len(a.list)-maxPlaces):]
		a.until = now.Add(placesFresh)
	}
	return slices.Contains(a.list, addr), ctx.Err()
}

// callBy notes the name that a connection by address is called by.
func (f *flow) callBy(name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.called = name
}

// named decides about the name that a connection by address is called by.
func (f *flow) named(p *policy.Policy) policy.Decision {
	f.mu.Lock()
	name := f.called
	f.mu.Unlock()
	return p.Named(policy.Request{Port: f.req.Port, Protocol: policy.TLS}, name)
}

// stillUnowned asks other rules about an open connection by address. Those that
// have more names whose address it could be want it made again.
func (f *flow) stillUnowned(p *policy.Policy) bool {
	f.mu.Lock()
	owners, called, held := f.owners, f.called, f.held
	f.mu.Unlock()
	if called != "" && !f.named(p).Allow {
		return false
	}
	return !held || !slices.ContainsFunc(p.Owners(f.req.Port), func(o policy.Owner) bool { return !slices.Contains(owners, o) })
}
