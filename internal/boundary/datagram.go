package boundary

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"time"

	"creel/internal/boundary/credential"
	"creel/internal/boundary/netstack"
	"creel/internal/policy"
)

const (
	datagramIdle = 60 * time.Second // a flow of datagrams has no other end
	maxDatagram  = 64 << 10
)

// mayUDP decides about the first datagram of a flow, and counts denials.
func (e *Edge) mayUDP(to netip.AddrPort) bool {
	d := e.judge(to, policy.UDP)
	if !d.Allow {
		e.deny(d)
	}
	return d.Allow
}

// datagrams carries one flow until it is idle.
func (e *Edge) datagrams(ctx context.Context, a *netstack.Attempt) {
	d := e.judge(a.Destination(), policy.UDP)
	if !d.Allow {
		a.Refuse()
		return
	}
	ctx, f := e.begin(ctx, d)
	defer e.flows.remove(f)
	if !e.unowned(ctx, f) {
		a.Refuse()
		return
	}
	e.join(ctx, f, a, func(guest net.Conn, outside *metered) { e.exchange(f, guest, outside) })
}

// exchange passes datagrams both ways until none has come for a while.
func (e *Edge) exchange(f *flow, guest net.Conn, outside *metered) {
	var idle sync.Mutex // around the deadline that both directions push on
	push := func() {
		idle.Lock()
		defer idle.Unlock()
		deadline := time.Now().Add(e.cfg.idle)
		guest.SetReadDeadline(deadline)
		outside.SetReadDeadline(deadline)
	}
	push()
	var done sync.WaitGroup
	done.Go(func() {
		defer outside.Close()
		e.forward(outside, guest, push, func(p []byte) bool { return e.unmarked(f, p) })
	})
	done.Go(func() {
		defer guest.Close()
		e.forward(guest, outside, push, func([]byte) bool { return true })
	})
	done.Wait()
}

// forward passes whole datagrams; a lost one is no fault.
func (e *Edge) forward(to, from net.Conn, push func(), may func([]byte) bool) {
	buf := make([]byte, maxDatagram)
	for {
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		push()
		if !may(buf[:n]) {
			return
		}
		if _, err := to.Write(buf[:n]); err == errBudget {
			return
		}
	}
}

// unmarked looks for marks in one datagram.
func (e *Edge) unmarked(f *flow, p []byte) bool {
	marks := e.wallet.Load().Marks(f.req.Host)
	if marks.Empty() {
		return true
	}
	_, found := marks.Text(string(p))
	if len(found) > 0 {
		e.alert(policy.Decision{Request: f.req, Rule: f.charged()}, credential.Found{Mark: found[0], Where: "stream"})
	}
	return len(found) == 0
}
