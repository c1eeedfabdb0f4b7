package engine

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"

	"creel/internal/audit"
	"creel/internal/engine/store"
	"creel/internal/policy"
	"creel/internal/policy/syntax"
	"creel/internal/policy/tier"
	"creel/internal/sandbox"
	"creel/internal/secret"
)

// Secrets are those that the installation keeps.
type Secrets interface {
	// Binding says where a secret may be used.
	Binding(name string) (secret.Binding, error)
	// Resolve fetches values, with fresh stand-ins.
	Resolve(ctx context.Context, names []string) ([]secret.Grant, error)
}

// network is what a run is given for its edge, before it starts.
type network struct {
	grants []secret.Grant
	ports  []published
}

// published is a port that is listened on.
type published struct {
	sandbox.Port // with the host's port that it got
	socket       interface {
		File() (*os.File, error)
		Close() error
	}
}

// listen takes the ports of a Spec. The caller closes what it gets: a keeper
// has copies.
func listen(ctx context.Context, ports []sandbox.Port) (out []published, err error) {
	defer func() {
		if err != nil {
			closePorts(out)
		}
	}()
	var config net.ListenConfig
	for _, p := range ports {
		address := net.JoinHostPort(p.HostIP, fmt.Sprint(p.HostPort))
		var bound net.Addr
		made := published{Port: p}
		if p.Proto == "udp" {
			c, err := config.ListenPacket(ctx, "udp", address)
			if err != nil {
				return out, portTaken(p, err)
			}
			made.socket, bound = c.(*net.UDPConn), c.LocalAddr()
		} else {
			l, err := config.Listen(ctx, "tcp", address)
			if err != nil {
				return out, portTaken(p, err)
			}
			made.socket, bound = l.(*net.TCPListener), l.Addr()
		}
		switch a := bound.(type) {
		case *net.TCPAddr:
			made.HostPort = uint16(a.Port)
		case *net.UDPAddr:
			made.HostPort = uint16(a.Port)
		}
		out = append(out, made)
	}
	return out, nil
}

func portTaken(p sandbox.Port, err error) error {
	return fmt.Errorf("publish port %s: %w; choose another host port, or leave it out for one that is free", p, err)
}

func closePorts(ports []published) {
	for _, p := range ports {
		p.socket.Close()
	}
}

func (n network) listed() (out []sandbox.Port) {
	for _, p := range n.ports {
		out = append(out, p.Port)
	}
	return out
}

// files are the sockets as a keeper inherits them; the caller closes them.
func (n network) files() (out []*os.File, err error) {
	for _, p := range n.ports {
		f, err := p.socket.File()
		if err != nil {
			closeAll(out)
			return nil, fmt.Errorf("hand over port %s: %w", p.Port, err)
		}
		out = append(out, f)
	}
	return out, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// judgeSecrets lists what is wrong with the secrets that a policy names: each
// has to be kept, and bound to where a rule would use it.
func (e *Engine) judgeSecrets(p *policy.Policy) (faults []string) {
	bindings := map[string]secret.Binding{}
	for _, name := range p.Secrets() {
		b, err := e.opts.Secrets.Binding(name)
		if err != nil {
			faults = append(faults, err.Error()) // which names it
			continue
		}
		bindings[name] = b
	}
	if p == nil {
		return faults
	}
	for i := range p.Rules {
		r := &p.Rules[i]
		b, kept := bindings[r.Secret]
		if r.Secret == "" || !kept {
			continue
		}
		covered := false
		for _, host := range b.Hosts {
			covered = covered || policy.Covers(host, r.Host)
		}
		if !covered {
			faults = append(faults, fmt.Sprintf("rule %q: secret %q is bound to %s, which does not cover %s; bind it to more with `creel secret set`, naming all it is for (`creel policy check` writes that line), or name other hosts",
				r.Name, r.Secret, strings.Join(b.Hosts, ", "), r.Destination()))
		}
		if err := b.MayGo(r.Upstream.Address, r.Upstream.CA, slices.Contains(r.Protocols(), policy.HTTP)); err != nil {
			for _, line := range lines(err) {
				faults = append(faults, fmt.Sprintf("rule %q: secret %q is %s", r.Name, r.Secret, line))
			}
		}
	}
	return faults
}

// grants resolves the secrets that a policy names.
func (e *Engine) grants(ctx context.Context, text string) ([]secret.Grant, error) {
	names, err := secretsOf(text)
	if err != nil || len(names) == 0 {
		return nil, err
	}
	return e.opts.Secrets.Resolve(ctx, names)
}

// secretsOf are the secrets that a policy in its canonical form names.
func secretsOf(text string) ([]string, error) {
	if text == "" {
		return nil, nil
	}
	p, _, err := syntax.Parse([]byte(text), syntax.Inputs{})
	if err != nil {
		return nil, fmt.Errorf("read policy: %w", err)
	}
	return p.Secrets(), nil
}

// SetPolicy puts another policy in force for a sandbox that runs. It is held
// against the sandbox's tier, and admitted or refused on record, as at the
// start. One that only takes rights away is put in force in any case; an error
// then says what could not be written. It takes away where it does from what is
// written down and from what is in force: an earlier change may not have been
// written down, and a keeper alone does not say what was admitted.
func (e *Engine) SetPolicy(ctx context.Context, f Found, text string, warn func(string)) error {
	spec := f.Record.Config.Spec
	less, p, err := takesAway(spec.Policy, text)
	if err != nil {
		return err
	}
	spec.Policy = text
	if less && text != "" { // nothing is less than anything
		less = e.takesAwayNow(ctx, f, text)
	}
	if !less {
		return e.setMore(ctx, f, spec, warn)
	}
	about := audit.Event{Kind: audit.KindAdmitted, Sandbox: string(spec.ID), Data: aboutSpec(&spec, p)}
	recorded := e.opts.Ledger.Append(ctx, about)
	if err := e.pushPolicy(ctx, f, nil, text); err != nil {
		return err
	}
	if err := errors.Join(recorded, e.notePolicy(spec.ID, text)); err != nil {
		return fmt.Errorf("the policy is in force for sandbox %s, but that could not be written down: %w; make room, and run the command again", spec.Name, err)
	}
	return nil
}

// setMore is SetPolicy for a policy that may allow more.
func (e *Engine) setMore(ctx context.Context, f Found, spec sandbox.Spec, warn func(string)) error {
	if err := e.admit(ctx, &spec, warn); err != nil {
		return err
	}
	grants, err := e.grants(ctx, spec.Policy)
	if err != nil {
		return err
	}
	if err := e.pushPolicy(ctx, f, grants, spec.Policy); err != nil {
		return err
	}
	return e.notePolicy(spec.ID, spec.Policy)
}

// takesAwayNow reports whether a policy surely allows nothing that the one in
// force does not. Of a keeper that does not say that it is not sure.
func (e *Engine) takesAwayNow(ctx context.Context, f Found, text string) bool {
	client, err := e.Connect(ctx, f)
	if err != nil {
		return false
	}
	defer client.Close()
	now, err := client.Policy(ctx)
	if err != nil {
		return false
	}
	less, _, err := takesAway(now, text)
	return less && err == nil
}

// takesAway reads a policy in its canonical form, and says whether it surely
// allows nothing that another, in the same form, does not.
func takesAway(from, to string) (bool, *policy.Policy, error) {
	parse := func(text string) (p *policy.Policy, err error) {
		if text != "" {
			p, _, err = syntax.Parse([]byte(text), syntax.Inputs{})
		}
		return p, err
	}
	next, err := parse(to)
	if err != nil {
		return false, nil, fmt.Errorf("read policy: %w", err)
	}
	now, err := parse(from)
	canonical := to == "" || string(syntax.Text(next)) == to
	return canonical && (err == nil || next == nil) && policy.TakesAway(now, next), next, nil
}

// pushPolicy has a sandbox's keeper put a policy in force.
func (e *Engine) pushPolicy(ctx context.Context, f Found, grants []secret.Grant, text string) error {
	client, err := e.Connect(ctx, f)
	if err != nil {
		return err
	}
	defer client.Close()
	if len(grants) > 0 {
		if err := client.SetSecrets(ctx, grants); err != nil {
			return err
		}
	}
	return client.SetPolicy(ctx, text)
}

// notePolicy writes down which policy is in force.
func (e *Engine) notePolicy(id sandbox.ID, text string) error {
	return e.store.Change(id, func(rec *store.Record) error {
		rec.Config.Spec.Policy = text
		rec.PolicyDigest = syntax.Digest(syntax.Canonical(text))
		return nil
	})
}

// PushSecrets gives new values to every running sandbox whose policy names one
// of the secrets, and returns how many there are.
func (e *Engine) PushSecrets(ctx context.Context, names []string) (sandboxes int, err error) {
	e.tidy(ctx)
	all, err := e.Peek()
	if err != nil {
		return 0, err
	}
	var errs []error
	for _, f := range all {
		if f.Damage != "" && f.Running() {
			errs = append(errs, f.errDamaged())
			continue
		}
		used, err := usedSecrets(f, names)
		if err != nil || len(used) == 0 || !f.Running() {
			errs = append(errs, err)
			continue
		}
		if err := e.pushSecrets(ctx, f, used); err != nil {
			errs = append(errs, fmt.Errorf("sandbox %s: %w", f.Record.Config.Spec.Name, err))
			continue
		}
		sandboxes++
	}
	return sandboxes, errors.Join(errs...)
}

func (e *Engine) pushSecrets(ctx context.Context, f Found, names []string) error {
	grants, err := e.opts.Secrets.Resolve(ctx, names)
	if err != nil {
		return err
	}
	client, err := e.Connect(ctx, f)
	if err != nil {
		return err
	}
	defer client.Close()
	return client.SetSecrets(ctx, grants)
}

// usedSecrets are those of names that a sandbox's policy names.
func usedSecrets(f Found, names []string) ([]string, error) {
	used, err := secretsOf(f.Record.Config.Spec.Policy)
	if err != nil {
		return nil, fmt.Errorf("sandbox %s: %w", f.Record.Config.Spec.Name, err)
	}
	return slices.DeleteFunc(used, func(name string) bool { return !slices.Contains(names, name) }), nil
}

// portsFor are a Spec's ports in the words of package tier.
func portsFor(spec *sandbox.Spec) (out []tier.Port) {
	for _, p := range spec.Ports {
		ip := net.ParseIP(p.HostIP)
		out = append(out, tier.Port{Text: p.String(), Loopback: ip != nil && ip.IsLoopback()})
	}
	return out
}
