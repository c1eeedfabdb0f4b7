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

	"creel/internal/audit"
	"creel/internal/diskroom"
	"creel/internal/durable"
	"creel/internal/engine/process"
	"creel/internal/image"
	"creel/internal/keeper"
	"creel/internal/keeper/socket"
	"creel/internal/policy/syntax"
	"creel/internal/policy/tier"
	"creel/internal/sandbox"
	"creel/internal/scratch"
	"creel/internal/standby"
	"creel/internal/template"
	"creel/internal/undo"
	"creel/internal/vm"

	"golang.org/x/mod/sumdb/note"
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
	opts Options
	root bool // this process may drop to users of its choice
	room func(dir string) (diskroom.Room, error)

	patience time.Duration // with a keeper that is told to end its run
	leaves   time.Duration // that a keeper may take to go once its task has ended

	warned atomic.Bool // of leftovers
	stale  sync.Once   // it is said that what is shown may be out of date
}

// Sandbox is one that this process has started: its keeper's client, and the
// duty to release it.
type Sandbox struct {
	Record Record
	Client *socket.Client

	engine *Engine
	keeper *keeperProcess
}

// Create makes a sandbox whose clone is ready to run its task. Progress gets a
// line for each thing that takes a while. Fetch is called once the Spec is
// admitted, before its image is looked for; nil: the image has to be here. On
// error nothing is left of it.
func (e *Engine) Create(ctx context.Context, spec sandbox.Spec, progress func(string), fetch func(context.Context) error) (*Sandbox, error) {
	e.tidy(ctx, slog.LevelWarn)
	madeUp := spec.Name == ""
	if madeUp {
		spec.Name = e.freeName()
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
	rec, err := e.plan(ctx, spec, progress)
	if err != nil {
		return nil, err
	}
	if err := e.recordTemplate(ctx, rec); err != nil {
		return nil, err
	}
	rec.madeUpName = madeUp
	sb, err := e.make(ctx, rec, n, e.takeStandby)
	if unfit, ok := errors.AsType[*unfitError](err); ok && ctx.Err() == nil && !e.exists(spec.ID) {
		progress("warning: a VM that waited could not be used, so that another is started: " + unfit.Error())
		sb, err = e.make(ctx, rec, n, nobodyWaits)
	}
	return sb, err
}

// make makes the sandbox of a record and brings it up, with a VM from waiting
// where that has one. On error nothing is left of it, or the error says what is
// and why; an [unfitError] is about the VM that waited.
func (e *Engine) make(ctx context.Context, rec Record, n network, waiting takeWaiting) (_ *Sandbox, err error) {
	var lock *durable.Lock
	defer func() { lock.Close() }() // after the unwinding; the keeper has it too by then
	var steps undo.Stack
	defer func() { err = errors.Join(err, steps.Unwind()) }()
	if lock, err = e.reserve(&rec, &steps, waiting); err != nil {
		return nil, err
	}
	dir := e.SandboxDir(rec.Config.Spec.ID)
	spec := rec.Config.Spec
	key, err := e.opts.Ledger.OpenSandbox(ctx, string(rec.Config.Spec.ID), filepath.Join(dir, rec.auditDir))
	if err != nil {
		return nil, fmt.Errorf("open the sandbox's audit log: %w", err)
	}
	if rec.waited == nil {
		if err := e.opts.Scratch(ctx, filepath.Join(dir, ScratchName), spec.Resources.DiskBytes, diskKind(spec)); err != nil {
			return nil, fmt.Errorf("make the writable disk: %w", err)
		}
	}
	sb, err := e.bringUpSoon(ctx, rec, key, lock, n)
	if err != nil {
		return nil, err
	}
	steps.Release()
	return sb, nil
}

// bringUpSoon is bringUp, with a bound for a VM that waited: it is up already,
// and where it does not answer another does.
func (e *Engine) bringUpSoon(ctx context.Context, rec Record, key audit.SandboxKey, lock *durable.Lock, n network) (*Sandbox, error) {
	if rec.waited == nil {
		return e.bringUp(ctx, rec, key, lock, n)
	}
	soon, cancel := context.WithTimeoutCause(ctx, standbyAnswers, fmt.Errorf("it did not answer within %s", standbyAnswers))
	defer cancel()
	sb, err := e.bringUp(soon, rec, key, lock, n)
	if err != nil {
		return nil, &unfitError{err}
	}
	return sb, nil
}

// bringUp starts the keeper and waits until its clone is ready. On error the
// keeper is gone.
func (e *Engine) bringUp(ctx context.Context, rec Record, key audit.SandboxKey, lock *durable.Lock, n network) (*Sandbox, error) {
	kp, err := e.launch(ctx, rec, key, lock, n)
	if err != nil {
		return nil, err
	}
	client, err := socket.NewClient(ctx, kp.conn, rec.Config.Spec.ID)
	if err == nil {
		if _, err = client.Ready(ctx); err != nil && client.Err() != nil && ctx.Err() == nil {
			return nil, errors.Join(kp.lost(err), kp.kill())
		}
	}
	if err != nil {
		err = kp.explain(err)
		return nil, errors.Join(err, kp.kill())
	}
	return &Sandbox{Record: rec, Client: client, engine: e, keeper: kp}, nil
}

// plan decides everything about a run that is decided before it starts.
func (e *Engine) plan(ctx context.Context, spec sandbox.Spec, progress func(string)) (Record, error) {
	img, err := e.opts.Images.Resolve(ctx, spec.Image)
	if err != nil {
		return Record{}, err
	}
	task, err := process.For(spec, img.Config)
	if err != nil {
		return Record{}, err
	}
	stop, err := process.StopSignal(img.Config.StopSignal)
	if err != nil {
		return Record{}, fmt.Errorf("image %s: %w", spec.Image, err)
	}
	shape, err := vm.ShapeFor(spec.Resources.MemoryBytes, spec.Resources.CPUs)
	if err != nil {
		return Record{}, err
	}
	m, err := e.Template(ctx, img, TemplateWish{shape, spec.Accel, spec.Confinement}, progress)
	if err != nil {
		return Record{}, err
	}
	return Record{
		Version: recordVersion, Created: time.Now(), ImageID: img.ID, auditDir: auditName,
		PolicyDigest: syntax.Digest(syntax.Canonical(spec.Policy)),
		Config: keeper.Config{
			Spec: spec, Process: task, StopSignal: stop,
			Template: m.Digest, Shape: shape, Accel: m.Accel,
		},
	}, nil
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
	return s.engine.changeRecord(s.Record.Config.Spec.ID, func(rec *Record) error {
		rec.Config.Spec.Keep = true
		return nil
	})
}

// Release waits until the run's keeper has gone and removes the sandbox unless
// it is kept. Call it after Client.Wait.
func (s *Sandbox) Release(ctx context.Context) error {
	s.Client.Close()
	gone := s.keeper.wait(ctx)
	rec := s.Record
	if rec.Config.Helper {
		return errors.Join(gone, s.engine.endHelper(ctx, rec))
	}
	if rec.Config.Spec.Keep {
		return errors.Join(gone, s.engine.settle(ctx, rec))
	}
	f, err := s.engine.look(rec.Config.Spec.ID)
	if err != nil {
		return errors.Join(gone, s.engine.remove(ctx, rec.Config.Spec.ID)) // another process was faster
	}
	return errors.Join(gone, s.engine.removeAny(ctx, f))
}
