// Package engine turns a Spec into a running sandbox: it admits it, finds or
// builds the template, reserves the name and the directory, starts the keeper,
// and is from then on that keeper's client. It also finds sandboxes, removes
// them, and reconciles what a killed keeper left.
//
// The main types are [Engine] and [Sandbox]. The package must not know QEMU,
// Docker or the command line.
package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/mod/sumdb/note"

	"creel/internal/audit"
	"creel/internal/diskroom"
	"creel/internal/durable"
	"creel/internal/engine/store"
	"creel/internal/image"
	"creel/internal/keeper/launch"
	"creel/internal/keeper/socket"
	"creel/internal/policy/tier"
	"creel/internal/sandbox"
	"creel/internal/scratch"
	"creel/internal/standby"
	"creel/internal/template"
	"creel/internal/undo"
)

// Images finds images and makes root filesystems of them.
type Images interface {
	Resolve(ctx context.Context, ref string) (image.Image, error)
	RootFS(ctx context.Context, img image.Image) (image.RootFS, error)
}

// Templates finds a template, or builds it.
type Templates interface {
	For(ctx context.Context, req template.Request, progress func(string)) (template.Manifest, bool, error)
}

// Ledger is the installation's audit ledger.
type Ledger interface {
	audit.Recorder
	// OpenSandbox begins a sandbox's own log in dir and returns its key.
	OpenSandbox(ctx context.Context, id, dir string) (audit.SandboxKey, error)
	// CloseSandbox puts the log's final root on the ledger.
	CloseSandbox(ctx context.Context, id, dir string) error
	// SetAside keeps a log that could not be closed, and CloseAside closes those
	// that were kept so.
	SetAside(id, dir string) error
	CloseAside(ctx context.Context) error
	// Checkpoint is the ledger's last one; Signer signs receipts.
	Checkpoint() (string, error)
	PublicKey() (string, error)
	Signer() (note.Signer, error)
}

// Options are what an engine acts with. All are required.
type Options struct {
	Dir       string // the state directory
	Images    Images
	Templates Templates
	Ledger    Ledger
	AuditDir  string // the ledger's
	Tiers     tier.Tiers
	Secrets   Secrets
	Standby   *standby.Pool
	Accel     Accelerators
	// Scratch makes an empty writable disk of size bytes at path.
	Scratch func(ctx context.Context, path string, size int64, kind scratch.Kind) error
	// Settings are the variables of the environment that keepers read settings
	// from.
	Settings []string
	// KeeperCommand is the command line that becomes a keeper.
	KeeperCommand []string
	Log           *slog.Logger
}

// Engine makes sandboxes. It is safe for use by several goroutines, and its
// directory by several processes.
type Engine struct {
	opts  Options
	store *store.Store
	room  func(dir string) (diskroom.Room, error)

	patience time.Duration // with a keeper that is told to end its run
	leaves   time.Duration // that a keeper may take to go once its task has ended

	warned atomic.Bool // of leftovers
	stale  sync.Once   // it is said that what is shown may be out of date
}

// Sandbox is one that this process has started: its keeper's client, and the
// duty to release it.
type Sandbox struct {
	plan
	Client *socket.Client

	engine *Engine
	keeper *keeperProcess
}

// New makes an engine of a prepared state directory.
func New(o Options) *Engine {
	return &Engine{opts: o, store: store.Open(o.Dir), room: diskroom.Of, patience: answersIn, leaves: keeperLeaves}
}

// KeeperDir is what the keeper of a sandbox writes. What it holds is not trusted.
func (e *Engine) KeeperDir(id sandbox.ID) string { return e.store.KeeperDir(id) }

// Create makes a sandbox whose clone is ready to run its task. Progress gets a
// line for each thing that takes a while. Fetch is called once the Spec is
// admitted, before its image is looked for; nil: the image has to be here. On
// error nothing is left of it.
func (e *Engine) Create(ctx context.Context, spec sandbox.Spec, progress func(string), fetch func(context.Context) error) (*Sandbox, error) {
	e.tidy(ctx)
	madeUp := spec.Name == ""
	if madeUp {
		spec.Name = e.store.MakeUpName()
	}
	if err := e.admit(ctx, &spec, progress); err != nil {
		return nil, err
	}
	n := network{}
	var err error
	if n.ports, err = listen(ctx, spec.Ports); err != nil {
		return nil, err
	}
	defer func() { closePorts(n.ports) }()
	if n.grants, err = e.grants(ctx, spec.Policy); err != nil {
		return nil, err
	}
	if fetch != nil {
		if err := fetch(ctx); err != nil {
			return nil, err
		}
	}
	p, err := e.planFor(ctx, spec, progress)
	if err != nil {
		return nil, err
	}
	if err := e.recordTemplate(ctx, p.Record); err != nil {
		return nil, err
	}
	p.madeUpName = madeUp
	sb, err := e.make(ctx, p, n, e.takeStandby)
	if unfit, ok := errors.AsType[*unfitError](err); ok && ctx.Err() == nil && !e.store.Exists(spec.ID) {
		progress("warning: a VM that waited could not be used, so that another is started: " + unfit.Error())
		sb, err = e.make(ctx, p, n, nobodyWaits)
	}
	return sb, err
}

// make makes the sandbox of a record and brings it up, with a VM from waiting
// where that has one. On error nothing is left of it, or the error says what is
// and why; an [unfitError] is about the VM that waited.
func (e *Engine) make(ctx context.Context, p plan, n network, waiting takeWaiting) (_ *Sandbox, err error) {
	var lock *durable.Lock
	defer func() { lock.Close() }() // after the unwinding; the keeper has it too by then
	var steps undo.Stack
	defer func() { err = errors.Join(err, steps.Unwind()) }()
	if lock, err = e.reserve(&p, &steps, waiting); err != nil {
		return nil, err
	}
	dir := e.store.Dir(p.ID())
	spec := p.Config.Spec
	key, err := e.opts.Ledger.OpenSandbox(ctx, string(spec.ID), filepath.Join(dir, p.auditDir))
	if err != nil {
		return nil, fmt.Errorf("open the sandbox's audit log: %w", err)
	}
	if p.waited == nil {
		if err := e.opts.Scratch(ctx, filepath.Join(dir, launch.DiskName), spec.Resources.DiskBytes, diskKind(spec)); err != nil {
			return nil, fmt.Errorf("make the writable disk: %w", err)
		}
	}
	sb, err := e.bringUpSoon(ctx, p, key, lock, n)
	if err != nil {
		return nil, err
	}
	steps.Release()
	return sb, nil
}

// bringUpSoon is bringUp, with a bound for a VM that waited: it is up already,
// and where it does not answer another does.
func (e *Engine) bringUpSoon(ctx context.Context, p plan, key audit.SandboxKey, lock *durable.Lock, n network) (*Sandbox, error) {
	if p.waited == nil {
		return e.bringUp(ctx, p, key, lock, n)
	}
	soon, cancel := context.WithTimeoutCause(ctx, standbyAnswers, fmt.Errorf("it did not answer within %s", standbyAnswers))
	defer cancel()
	sb, err := e.bringUp(soon, p, key, lock, n)
	if err != nil {
		return nil, &unfitError{err}
	}
	return sb, nil
}

// bringUp starts the keeper and waits until its clone is ready. On error the
// keeper is gone.
func (e *Engine) bringUp(ctx context.Context, p plan, key audit.SandboxKey, lock *durable.Lock, n network) (*Sandbox, error) {
	kp, err := e.launch(ctx, p, key, lock, n)
	if err != nil {
		return nil, err
	}
	client, err := socket.NewClient(ctx, kp.conn, p.ID())
	if err == nil {
		if _, err = client.Ready(ctx); err != nil && client.Err() != nil && ctx.Err() == nil {
			return nil, errors.Join(kp.lost(err), kp.kill())
		}
	}
	if err != nil {
		err = kp.explain(err)
		return nil, errors.Join(err, kp.kill())
	}
	return &Sandbox{plan: p, Client: client, engine: e, keeper: kp}, nil
}

// Lost says of an error of Client what has become of the keeper, where the
// connection to it has ended. Call it before Release.
func (s *Sandbox) Lost(err error) error {
	if s.Client.Err() == nil {
		return err
	}
	return s.keeper.lost(err)
}

// Detach leaves a sandbox that was started in the foreground to its keeper. Where
// its Spec says so its record, disk and log outlive the run, as if it had been
// started in the background; otherwise the next command after its end removes
// it. Do not release it then. On error it is still this process's.
func (s *Sandbox) Detach(ctx context.Context) error {
	keep := s.Record.Config.Spec.KeepDetached
	if err := s.Client.Detach(ctx, keep); err != nil || !keep {
		return err
	}
	return s.engine.store.Change(s.ID(), func(rec *store.Record) error {
		rec.Config.Spec.Keep = true
		return nil
	})
}

// Release waits until the run's keeper has gone and removes the sandbox unless
// it is kept. Call it after Client.Wait.
func (s *Sandbox) Release(ctx context.Context) error {
	s.Client.Close()
	gone := s.keeper.wait(ctx)
	if s.Config.Helper {
		return errors.Join(gone, s.engine.endHelper(ctx, s.plan))
	}
	if s.Config.Spec.Keep {
		return errors.Join(gone, s.engine.settle(ctx, s.Record))
	}
	f, err := s.engine.look(s.ID())
	if err != nil {
		return errors.Join(gone, s.engine.remove(ctx, s.ID())) // another process was faster
	}
	return errors.Join(gone, s.engine.removeAny(ctx, f))
}
