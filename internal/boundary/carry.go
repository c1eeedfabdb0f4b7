package boundary

import (
	"context"
	"fmt"
	"net"

	"creel/internal/policy"
)

// Carry takes a connection for one of the guest's to host and port, from the
// decision on until it has ended. With it the edge is measured without a
// machine and a card. The caller waits for it before the edge is closed.
func (e *Edge) Carry(ctx context.Context, host string, port uint16, guest net.Conn) error {
	d := e.rules.Load().Policy.Decide(policy.Request{Op: policy.Connect, Host: host, Port: port})
	if !d.Allow || d.Protocol != policy.TLS {
		return fmt.Errorf("carry to %s: no TLS is allowed there: %w", d.Target(), guest.Close())
	}
	ctx, f := e.begin(ctx, d)
	defer e.flows.remove(f)
	f.accept(guest)
	e.secure(ctx, f, guest)
	return nil
}
