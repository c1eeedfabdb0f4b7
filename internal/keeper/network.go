package keeper

import (
	"context"
	"fmt"
	"path"
	"strings"

	"creel/internal/audit/event"
	"creel/internal/boundary"
	"creel/internal/boundary/canary"
	"creel/internal/boundary/credential"
	"creel/internal/guest/api"
	"creel/internal/keeper/socket"
	"creel/internal/policy/syntax"
	"creel/internal/sandbox"
	"creel/internal/secret"
	"creel/internal/wire"
)

// Network is what a run's edge is made of.
type Network struct {
	Dialer boundary.Dialer // nil: nothing leaves
	Ports  []boundary.Port
	Listed []sandbox.Port // the same, for people
	Grants []secret.Grant
}

// certificate is where the guest agent puts the authority's certificate, and
// bundle where it is among those that the image trusts.
const (
	certificate = "/usr/local/share/ca-certificates/creel.crt"
	bundle      = "/etc/ssl/certs/ca-certificates.crt"
)

// trusting makes runtimes that bring their own certificates trust what the
// system does.
var trusting = []string{
	"NODE_EXTRA_CA_CERTS=" + certificate, "SSL_CERT_FILE=" + bundle, "REQUESTS_CA_BUNDLE=" + bundle,
}

// openBoundary takes charge of the sandbox's only ways out.
func (r *Run) openBoundary(ctx context.Context) error {
	rules, err := rulesOf(r.cfg.Spec.Policy)
	if err != nil {
		return err
	}
	if r.cfg.Spec.Canaries {
		r.canaries = canary.Make(home(r.cfg.Process))
	}
	wallet, err := r.walletOf(r.deps.Network.Grants)
	if err != nil {
		return err
	}
	// Held until the edge is known: a frame or a published port may be there
	// before Open has returned, and its alert then waits.
	r.mu.Lock()
	defer r.mu.Unlock()
	edge, err := boundary.Open(ctx, boundary.Config{
		Sandbox: string(r.cfg.Spec.ID), Network: r.machine.Network(), Rules: rules, Dialer: r.deps.Network.Dialer,
		Wallet: wallet, Ports: r.deps.Network.Ports, Audit: r.deps.Audit, Owed: r.owed, Log: r.deps.Log,
		Denied: r.denied, Alerted: r.alerted,
	})
	if err != nil {
		return err
	}
	r.edge, r.grants = edge, r.deps.Network.Grants
	r.undo.Push("boundary", edge.Close)
	r.status.Ports = r.deps.Network.Listed
	return nil
}

// rulesOf reads a policy in its canonical form; "" allows nothing.
func rulesOf(text string) (boundary.Rules, error) {
	rules := boundary.Rules{Text: text, Digest: syntax.Digest(syntax.Canonical(text))}
	if text == "" {
		return rules, nil
	}
	p, _, err := syntax.Parse([]byte(text), syntax.Inputs{})
	if err != nil {
		return rules, fmt.Errorf("read policy: %w", err)
	}
	rules.Policy = p
	return rules, nil
}

func (r *Run) walletOf(grants []secret.Grant) (*credential.Wallet, error) {
	if len(grants) == 0 && len(r.canaries) == 0 {
		return nil, nil
	}
	var planted []credential.Canary
	for _, c := range r.canaries {
		planted = append(planted, credential.Canary{Name: c.Name, Value: c.Value})
	}
	return credential.New(grants, planted)
}

// home is the task's home directory, as far as can be said from outside.
func home(p sandbox.Process) string {
	for _, e := range p.Env {
		if dir, ok := strings.CutPrefix(e, "HOME="); ok && path.IsAbs(dir) {
			return path.Clean(dir)
		}
	}
	user, _, _ := strings.Cut(p.User, ":")
	if user == "" || user == "root" || user == "0" || strings.Trim(user, "0123456789") == "" {
		return "/root"
	}
	return path.Join("/home", user)
}

// equip adds to a clone's identity what its edge needs it to have: the
// authority's certificate, stand-ins and canaries.
func (r *Run) equip(id *api.Identity) {
	if r.deps.Network.Dialer != nil {
		id.CACertificate = r.edge.CA()
		id.Env = append(id.Env, trusting...)
	}
	for _, g := range r.grants {
		if g.StandIn == "" {
			continue
		}
		use := g.Binding.Use
		if use.Env != "" {
			id.Env = append(id.Env, use.Env+"="+g.StandIn)
		}
		if use.File != "" {
			id.Files = append(id.Files, api.File{Path: use.File, Text: g.StandIn})
		}
	}
	for _, c := range r.canaries {
		if c.Env != "" {
			id.Env = append(id.Env, c.Env+"="+c.Value)
		}
		if c.Path != "" {
			id.Files = append(id.Files, api.File{Path: c.Path, Text: c.Text})
		}
	}
}

// denied keeps the status that others read up to date, and tells who listens.
func (r *Run) denied(d sandbox.Denial) {
	r.notes.send(d)
	select {
	case r.stale <- struct{}{}:
	default: // it is about to be written anyway
	}
}

// alerted ends the task where the policy says so.
func (r *Run) alerted(a event.Alert) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.status.Alerts++
	if a.Alert != event.AlertNames && r.edge.EndOnAlert() && !r.isOver() {
		r.abrupt = true
		r.endLocked(fmt.Errorf("the %s %q was about to leave for %s, and the policy ends the task on that", a.Alert, a.Name, a.Host))
	}
}

// refreshStatus writes the status whenever something was denied, until the
// run is over.
func (r *Run) refreshStatus() {
	for {
		select {
		case <-r.over:
			return
		case <-r.stale:
			if err := r.saveStatus(); err != nil {
				r.deps.Log.Error("the status is not up to date", "err", err)
			}
		}
	}
}

// withEdge adds what the edge has counted, and whether there is room to record
// what comes.
func (r *Run) withEdge(s sandbox.Status) sandbox.Status {
	s.AuditFull = r.room.words()
	if r.edge == nil {
		return s
	}
	s.Denials, s.Denied = r.edge.Denials()
	s.Troubles = r.edge.Troubles()
	used, _ := r.edge.Used()
	s.BytesOut, s.BytesIn = used.BytesOut, used.BytesIn
	return s
}

// servePolicy puts another policy in force. Whether it may be was decided by
// who asks.
func (r *Run) servePolicy(ctx context.Context, s *wire.Stream) error {
	var req socket.PolicyRequest
	if err := s.Body(&req); err != nil {
		return err
	}
	rules, err := rulesOf(req.Policy)
	if err != nil {
		return err
	}
	if err := r.awaitRun(ctx); err != nil {
		return err
	}
	if err := r.edge.SetRules(ctx, rules); err != nil {
		return err
	}
	return s.Send(ctx, api.Reply{})
}

// serveInForce says which policy is in force.
func (r *Run) serveInForce(ctx context.Context, s *wire.Stream) error {
	if err := r.awaitGuest(ctx); err != nil {
		return err
	}
	return s.Send(ctx, socket.PolicyReply{Policy: r.edge.Rules().Text})
}

// serveSecrets replaces and adds secrets. Stand-ins that the sandbox has stay
// as they are.
func (r *Run) serveSecrets(ctx context.Context, s *wire.Stream) error {
	fresh, err := secret.ReadGrants(s.Reader(api.ChannelIn))
	if err != nil {
		return err
	}
	if err := r.awaitRun(ctx); err != nil {
		return err
	}
	r.pushing.Lock()
	defer r.pushing.Unlock()
	grants := append([]secret.Grant{}, r.grants...)
	var names []string
	for _, g := range fresh {
		names = append(names, g.Name)
		known := false
		for i := range grants {
			if grants[i].Name == g.Name {
				g.StandIn = grants[i].StandIn
				grants[i], known = g, true
			}
		}
		if !known && g.StandIn != "" {
			return fmt.Errorf("secret %q is used by a stand-in, which only a sandbox that starts can be given", g.Name)
		}
		if !known {
			grants = append(grants, g)
		}
	}
	wallet, err := r.walletOf(grants)
	if err != nil {
		return err
	}
	if err := r.edge.SetWallet(ctx, wallet, names); err != nil {
		return err
	}
	r.grants = grants
	return s.Send(ctx, api.Reply{})
}

// serveNotes tells a client of each destination that is denied for the first
// time, from now on.
func (r *Run) serveNotes(ctx context.Context, s *wire.Stream) error {
	listener := r.notes.listen()
	defer r.notes.leave(listener)
	if err := s.Send(ctx, api.Reply{}); err != nil {
		return nil
	}
	for {
		select {
		case d := <-listener:
			if s.Send(ctx, d) != nil {
				return nil // the client has gone
			}
		case <-r.over:
			return nil
		case <-ctx.Done():
			return nil
		}
	}
}
