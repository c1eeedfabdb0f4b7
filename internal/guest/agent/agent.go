// Package agent is the guest's side of the conversation: PID 1 of a VM, frozen
// with it in the template, which makes a clone what the host says it is, and
// then runs and copies for the host. [Agent] serves the operations of package
// api; a [Platform] is the machine around it.
//
// The task's root owns the VM: it has every capability, and the agent does not
// defend itself against it. The package must stay small and start little: it
// runs under emulation, and what it does after a restore is what users wait
// for. It must not import host packages.
package agent

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"creel/internal/guest/api"
	"creel/internal/wire"
)

// Platform is the machine that an agent stands on; package machine is the real
// one.
type Platform interface {
	// Kernel is the kernel's release.
	Kernel() string
	// Freeze mounts what a template has mounted and settles the guest.
	Freeze(req api.FreezeRequest) error
	// Step performs one of [api.IdentitySteps].
	Step(name string, id *api.Identity) error
	SetClock(now time.Time) error
	// Alive says what keeps this process from its work, if anything does.
	Alive() error
	Usage() (api.UsageReply, error)
	// Shutdown ends every task process and makes the disks consistent.
	Shutdown(ctx context.Context) error
	// Started wraps the start of a task process: fork is called with the
	// descriptor of the task's cgroup, or -1.
	Started(fork func(cgroup int) error) error
	// Rehearse has run start a process of the agent's own and wait for its end,
	// in a cgroup of which nothing is counted as the task's.
	Rehearse(run func(cgroup int) error) error
	// OOMKills counts task processes that the kernel killed for memory.
	OOMKills() int64
}

// Agent serves one host at a time.
type Agent struct {
	platform Platform
	root     string // the task's root as this process sees it; "/" in a VM
	reaper   *reaper
	grace    time.Duration // of a process that was hung up on

	mu       sync.Mutex
	prepared bool // the root is changed; that is done once
	tried    bool // identity was begun; it is begun once
	ready    bool
	env      []string
	hostname string
	oomSeen  int64
}

// New is an agent whose task's root is the directory root. It waits for every
// child of the process that it is in: there is one agent to a process.
func New(p Platform, root string) *Agent { return newAgent(p, root, newReaper()) }

func newAgent(p Platform, root string, r *reaper) *Agent {
	return &Agent{platform: p, root: root, reaper: r, grace: hangUpGrace}
}

// Serve talks to one host over port until it goes away.
func (a *Agent) Serve(port io.ReadWriteCloser) error {
	conn := wire.NewConn(port, wire.Options{Handler: a.handle})
	<-conn.Done()
	conn.Close()
	return conn.Err()
}

func (a *Agent) handle(ctx context.Context, s *wire.Stream) {
	switch op := s.Op(); op {
	case api.OpHello:
		a.serveHello(ctx, s)
	case api.OpPing:
		answer(ctx, s, func(api.Empty) error { return a.platform.Alive() })
	case api.OpFreeze:
		answer(ctx, s, a.platform.Freeze)
	case api.OpPrepare:
		answer(ctx, s, a.prepare)
	case api.OpIdentity:
		answer(ctx, s, a.identity)
	case api.OpClock:
		answer(ctx, s, func(r api.ClockRequest) error { return a.platform.SetClock(time.Unix(0, r.UnixNano)) })
	case api.OpExec, api.OpCopyIn, api.OpCopyOut, api.OpStat, api.OpUsage, api.OpTop, api.OpShutdown:
		a.handleReady(ctx, s)
	default:
		reply(ctx, s, &api.Error{Code: api.CodeInvalid, Message: fmt.Sprintf("operation %q is not known", op)})
	}
}

// handleReady serves what needs an identity.
func (a *Agent) handleReady(ctx context.Context, s *wire.Stream) {
	a.mu.Lock()
	ready := a.ready
	a.mu.Unlock()
	if !ready {
		reply(ctx, s, &api.Error{Code: api.CodeNotReady, Message: s.Op() + " before identity"})
		return
	}
	switch s.Op() {
	case api.OpExec:
		a.serveExec(ctx, s)
	case api.OpCopyIn:
		a.serveCopyIn(ctx, s)
	case api.OpCopyOut:
		a.serveCopyOut(ctx, s)
	case api.OpStat:
		a.serveStat(ctx, s)
	case api.OpUsage:
		r, err := a.platform.Usage()
		r.Error = refusal(err)
		s.Send(ctx, r)
	case api.OpTop:
		r, err := a.top("/proc")
		r.Error = refusal(err)
		s.Send(ctx, r)
	case api.OpShutdown:
		answer(ctx, s, func(api.Empty) error { return a.platform.Shutdown(ctx) })
	}
}

func (a *Agent) serveHello(ctx context.Context, s *wire.Stream) {
	r := api.HelloReply{Version: api.Version, Kernel: a.platform.Kernel()}
	var req api.HelloRequest
	if err := s.Body(&req); err != nil {
		r.Error = invalid(err)
	}
	s.Send(ctx, r)
}

// prepare does for a clone that waits for its task what the identity will need
// and a start after it. Under emulation, what was done once goes faster.
func (a *Agent) prepare(nobody api.Identity) error {
	if err := a.performFor(nobody); err != nil {
		return err
	}
	return a.rehearse()
}

func (a *Agent) performFor(nobody api.Identity) error {
	a.mu.Lock()
	defer a.mu.Unlock() // an identity waits for its end
	if a.tried || a.prepared {
		return &api.Error{Code: api.CodeNotReady, Message: "a clone is prepared once, before its identity"}
	}
	a.tried = true // where this fails no identity is taken
	// Twice: to write a file again takes another way than to write a new one.
	for _, steps := range [][]string{api.IdentitySteps, repeatable()} {
		if err := a.perform(nobody, steps); err != nil {
			return err
		}
	}
	a.tried, a.prepared = false, true
	return nil
}

// identity makes a clone what the host says, step by step.
func (a *Agent) identity(id api.Identity) error {
	a.mu.Lock()
	tried, prepared := a.tried, a.prepared
	a.tried = true
	a.mu.Unlock()
	if tried {
		return &api.Error{Code: api.CodeNotReady, Message: "identity is given once"}
	}
	steps := api.IdentitySteps
	if prepared {
		steps = repeatable()
	}
	if err := a.perform(id, steps); err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.env, a.hostname, a.ready = id.Env, id.Hostname, true
	return nil
}

// repeatable are the steps that can be done again.
func repeatable() []string {
	return slices.DeleteFunc(slices.Clone(api.IdentitySteps), func(step string) bool { return step == "root" })
}

func (a *Agent) perform(id api.Identity, steps []string) error {
	if id.Version != api.Version {
		return &api.Error{Code: api.CodeInvalid, Message: fmt.Sprintf("version %d, this agent speaks %d", id.Version, api.Version)}
	}
	for _, step := range steps {
		err := a.platform.Step(step, &id)
		if id.FailStep == step {
			err = fmt.Errorf("made to fail")
		}
		if err != nil {
			return &api.Error{Code: api.CodeInternal, Step: step, Message: err.Error()}
		}
	}
	return nil
}

// path is where the task's path is for this process.
func (a *Agent) path(p string) string { return filepath.Join(a.root, filepath.Join("/", p)) }

// answer decodes a request, acts, and replies.
func answer[R any](ctx context.Context, s *wire.Stream, act func(R) error) {
	var req R
	if err := s.Body(&req); err != nil {
		reply(ctx, s, invalid(err))
		return
	}
	reply(ctx, s, act(req))
}

// reply ends an operation. An error of sending is the host's going away.
func reply(ctx context.Context, s *wire.Stream, err error) {
	s.Send(ctx, api.Reply{Error: refusal(err)})
}

func invalid(err error) *api.Error {
	return &api.Error{Code: api.CodeInvalid, Message: err.Error()}
}
