// Package keeper is one run of one sandbox, from boundary to receipt: the
// process that owns the VMM, the guest's control connection, the streams, the
// exit status and the undo stack, and serves the run's versioned socket.
//
// The main type is [Run]. The package must not know Docker or the command line,
// and must not choose anything: what is wanted arrives complete in the
// [launch.Config].
package keeper

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"runtime/debug"
	"sync"
	"time"

	"creel/internal/audit"
	"creel/internal/audit/event"
	"creel/internal/boundary"
	"creel/internal/boundary/canary"
	"creel/internal/guest/api"
	"creel/internal/guest/host"
	"creel/internal/keeper/launch"
	"creel/internal/keeper/rundir"
	"creel/internal/policy/tier"
	"creel/internal/sandbox"
	"creel/internal/secret"
	"creel/internal/undo"
	"creel/internal/vm"
)

// Parts are the pieces of a template that a clone is made from, and the
// sandbox's own writable disk.
type Parts struct {
	Memory, State *os.File
	CPU           string // model that the template's guest sees
	Disks         []vm.Disk
	Close         func() error
}

// Deps are what a run acts with.
type Deps struct {
	Driver      vm.Driver
	Confinement vm.Confinement // of the VMM
	Parts       func(context.Context) (*Parts, error)
	Waiting     *Waiting // a machine to use instead of starting one; or nil
	Audit       audit.Recorder
	Dir         *os.Root // the sandbox's directory
	Network     Network
	Memory      Memory                            // of this process
	Room        func(disk *os.File) (Room, error) // nil: the host's disk is not watched
	Confine     func() error                      // locks this process in; nothing is opened by path after it
	Log         *slog.Logger
}

// deadlines are of the steps that a guest or a client could drag out.
type deadlines struct {
	identity  time.Duration
	start     time.Duration
	lastWords time.Duration // of a machine whose connections have ended
	goodbye   time.Duration // usage and sync at the end
	farewell  time.Duration // clients fetching the last output and messages, and hanging up
	kill      time.Duration // from SIGKILL to the end of the machine
	timeout   time.Duration // from a timeout's signal to SIGKILL
	last      time.Duration // from that SIGKILL, or that of a stop, to the end of the machine; after a timeout for usage and sync, too
	vmm       time.Duration // for a command to the VMM
	beat      time.Duration // between two signs of life of the guest
	mute      time.Duration // of a VMM that does not say a word
	look      time.Duration // between two looks at the host's disk, where there is much room
}

// usual is generous with the guest: emulation on a busy machine is slow.
var usual = deadlines{
	identity: 60 * time.Second, start: 60 * time.Second, lastWords: 2 * time.Second,
	goodbye: 10 * time.Second, farewell: 5 * time.Second, kill: 10 * time.Second,
	timeout: 4 * time.Second, last: time.Second, vmm: 5 * time.Second, beat: 5 * time.Second,
	mute: 60 * time.Second, look: time.Second,
}

// Run is one clone, one start of it.
type Run struct {
	cfg   launch.Config
	deps  Deps
	limit deadlines
	undo  undo.Stack

	clone    *Waiting       // once it is restored
	machine  vm.Machine     // its
	edge     *boundary.Edge // nil until it is open
	canaries []canary.Canary
	room     *heeded     // takes all records
	owed     *audit.Owed // records of what does not wait for them
	notes    notes
	stale    chan struct{} // the written status is not what is known

	pushing sync.Mutex // one change of secrets at a time
	pausing sync.Mutex // one pause or resumption at a time
	grants  []secret.Grant

	guest *host.Client
	out   *hub
	log   *rundir.Log // nil unless the sandbox is kept

	ready   chan struct{} // closed when the clone is ready or the start has failed
	running chan struct{} // closed when the task runs
	over    chan struct{} // closed, with mu held, when the task has ended or will never run
	ended   chan struct{} // closed when nothing remains and status is final

	serving sync.WaitGroup // clients
	tending sync.WaitGroup // the task's output and end; joined before over is closed
	stdin   chan struct{}  // held by the client that writes to the task

	mu       sync.Mutex
	status   sandbox.Status
	failure  error // why the run failed, if it did
	task     *host.Exec
	starting bool
	detached bool // by its user: the run goes on without the client that started it
	kept     bool // disk and log outlive the run
	exit     *api.ExecExit
	abrupt   bool              // the guest is not asked anything any more
	clients  map[net.Conn]bool // connected now
	leaving  bool              // no client is let in any more
}

// New makes a run that has not begun.
func New(cfg launch.Config, deps Deps) *Run {
	stale := make(chan struct{}, 1)
	room := &heeded{Recorder: deps.Audit, log: deps.Log, stale: stale}
	deps.Audit = room
	owed := audit.NewOwed(deps.Audit, func(kind audit.Kind, err error) {
		deps.Log.Error("what was done is not on record yet", "kind", kind, "err", err)
	})
	return &Run{
		cfg: cfg, deps: deps, room: room, owed: owed, limit: usual, out: newHub(),
		ready: make(chan struct{}), running: make(chan struct{}),
		over: make(chan struct{}), ended: make(chan struct{}),
		stdin: make(chan struct{}, 1), stale: stale, clients: map[net.Conn]bool{},
		status: sandbox.Status{
			ID: cfg.Spec.ID, Name: cfg.Spec.Name, State: sandbox.StateCreated,
			CreatedAt: time.Now(), TemplateDigest: cfg.Template,
			Confinement: deps.Confinement.Level, Accel: cfg.Accel, KeeperPID: os.Getpid(),
		},
		kept: cfg.Spec.Keep && !cfg.Helper,
	}
}

// Do performs the run and returns when nothing of it remains and every client
// has its answer. Cancelling ctx kills the task. The error is for the keeper's
// own log; clients learn of it from the status.
func (r *Run) Do(ctx context.Context) error {
	defer r.watchMemory()()
	up, cancel := context.WithCancel(ctx)
	var watch sync.WaitGroup
	watch.Go(func() { // a run that is ended while it comes up stops coming up
		select {
		case <-r.over:
		case <-up.Done():
		}
		cancel()
	})
	if err := r.bringUp(up); err != nil {
		r.end(err)
	}
	cancel()
	watch.Wait()
	watch.Go(r.refreshStatus)
	watch.Go(r.heedFaults)
	watch.Go(r.keepReserve)
	close(r.ready)
	r.await(ctx)
	watch.Wait()
	return r.finish()
}

// step is one named step of a start. Its record is durable before it is done.
type step struct {
	name string
	do   func(context.Context) error
}

func (r *Run) bringUp(ctx context.Context) error {
	machine := "machine"
	if r.deps.Waiting != nil {
		machine = "standby" // is taken
	}
	for _, s := range []step{
		{machine, r.startMachine},
		{"boundary", r.openBoundary},
		{"confine", func(context.Context) error { return r.deps.Confine() }},
		{"log", r.openLog}, // its file belongs to the user that goes on with it
		{"identity", r.makeFresh},
	} {
		if err := r.record(ctx, event.KindStep, event.Step{Step: s.name}); err != nil {
			return err
		}
		if err := s.do(ctx); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	return r.saveStatus()
}

// openLog begins the log of a task that is kept. The others' output is for
// whoever is attached.
func (r *Run) openLog(context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.kept {
		return nil
	}
	return r.beginLog()
}

// beginLog keeps what the task writes from now on. mu is held.
func (r *Run) beginLog() error {
	log, err := rundir.New(r.deps.Dir)
	if err != nil {
		return err
	}
	r.log = log
	r.out.keep(log.Append, func(err error) { r.deps.Log.Error("the task's log ends here", "err", err) })
	return nil
}

// keptLog is nil unless the sandbox is kept.
func (r *Run) keptLog() *rundir.Log {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.log
}

func (r *Run) startMachine(ctx context.Context) error {
	w := r.deps.Waiting
	if w == nil {
		parts, err := r.deps.Parts(ctx)
		if err != nil {
			return err
		}
		c := vm.Config{Shape: r.cfg.Shape, Accel: r.cfg.Accel, Confinement: r.deps.Confinement}
		if w, err = Restore(ctx, r.deps.Driver, c, parts); err != nil {
			return err
		}
	}
	r.undo.Push("template parts", w.parts.Close)
	r.undo.Push("machine", w.machine.Close)
	r.clone, r.machine = w, w.machine
	r.mu.Lock()
	r.status.VMMPID = w.machine.PID()
	r.mu.Unlock()
	return nil
}

// end lets the run end: the task has ended, or reason says why it has not. The
// first call decides.
func (r *Run) end(reason error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.endLocked(reason)
}

func (r *Run) endLocked(reason error) {
	if !r.isOver() {
		r.failure = reason
		close(r.over)
	}
}

// isOver is stable while mu is held.
func (r *Run) isOver() bool {
	select {
	case <-r.over:
		return true
	default:
		return false
	}
}

// abandon ends the run without asking the guest.
func (r *Run) abandon(reason error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.isOver() {
		r.abrupt = true
		r.endLocked(reason)
	}
}

// kill ends the run without asking the guest.
func (r *Run) kill() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.isOver() {
		return
	}
	r.abrupt = true
	if r.task == nil {
		r.endLocked(errors.New("it was killed before its task was started"))
		return
	}
	if r.exit == nil {
		r.exit = &api.ExecExit{Code: sandbox.ExitSignalBase + sigkill, Signal: sigkill}
	}
	r.endLocked(nil)
}

// tell puts on record what ends the run or takes rights away, as soon as that
// can be: it never keeps it from being done.
func (r *Run) tell(kind audit.Kind, data any) {
	r.owed.Tell(audit.Event{Kind: kind, Sandbox: string(r.cfg.Spec.ID), Data: data})
}

// record is for what must not be done without one.
func (r *Run) record(ctx context.Context, kind audit.Kind, data any) error {
	err := r.deps.Audit.Append(ctx, audit.Event{Kind: kind, Sandbox: string(r.cfg.Spec.ID), Data: data})
	if err != nil {
		return fmt.Errorf("record %s: %w", kind, err)
	}
	return nil
}

// await returns when the run has to end: the task has ended, the machine has
// died, or it was told to stop.
func (r *Run) await(ctx context.Context) {
	// What the start needed is given back, some 3 MiB, where a run lasts.
	lasts := time.AfterFunc(time.Second, debug.FreeOSMemory)
	defer lasts.Stop()
	var machineDone, guestDone <-chan struct{}
	if r.machine != nil {
		machineDone = r.machine.Done()
	}
	if r.guest != nil {
		guestDone = r.guest.Done()
	}
	select {
	case <-r.over:
	case <-ctx.Done():
		r.end(errors.New("its keeper was told to end"))
	case <-machineDone:
		r.end(r.lost(nil))
	case <-guestDone:
		r.end(r.lost(fmt.Errorf("the guest agent was lost: %w", orUnknown(r.guest.Err()))))
	}
}

// lost says why the guest is not there any more: err, unless the machine has
// ended. Its last words say more than the end of a connection to it, which may
// be seen first.
func (r *Run) lost(err error) error {
	timer := time.NewTimer(r.limit.lastWords)
	defer timer.Stop()
	select {
	case <-r.machine.Done():
		return ended(r.machine.Err())
	case <-timer.C:
		return err
	}
}

// explained is err or, where the conversation with the guest has ended, why the
// run has: that the other side has gone is no reason. It is for every error that
// a client gets.
func (r *Run) explained(err error) error {
	select {
	case <-r.ready: // else whoever brings the clone up says it
	default:
		return err
	}
	if _, said := errors.AsType[*api.Error](err); said || err == errNotRunning || r.guest == nil || r.guest.Err() == nil {
		return err
	}
	// Whoever waits for the guest is about to learn it.
	if r.overWithin(context.Background(), 2*r.limit.lastWords) {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.failure != nil {
			return r.failure
		}
	}
	return err
}

// endedByGuest is the end of a machine by what the guest's kernel was told to
// do. It was the task's end, too.
type endedByGuest struct{ error }

// ended says how a machine has ended that nobody closed.
func ended(err error) error {
	if err == nil {
		return endedByGuest{errors.New("the guest powered itself off")}
	}
	if byGuest, ok := errors.AsType[*vm.GuestEnded](err); ok {
		if byGuest.Panicked {
			return byGuest
		}
		return endedByGuest{byGuest}
	}
	return fmt.Errorf("the VM ended unexpectedly: %w", err)
}

func orUnknown(err error) error {
	if err == nil {
		return errors.New("it gave no reason")
	}
	return err
}

// finish takes everything down, proves it on record, and lets clients read the
// final status.
func (r *Run) finish() error {
	r.sayGoodbye()
	undone := r.undo.Unwind()
	r.lastFault()
	// Only clients that do not read the output can hold it up, and not for long.
	defer time.AfterFunc(r.limit.farewell, r.out.dropAll).Stop()
	r.tending.Wait()
	r.out.end()
	if log := r.keptLog(); log != nil {
		log.End()
	}
	r.settle(undone)
	final := r.Status()
	ctx := context.Background()
	recorded := errors.Join(
		r.record(ctx, audit.KindExit, event.Exit{
			ExitCode: final.ExitCode, Error: tier.Hide(final.Error), OOMKilled: final.OOMKilled, TimedOut: final.TimedOut,
			Unrecorded: r.owed.Close(),
		}),
		r.record(ctx, audit.KindCleanup, event.Cleanup{Complete: undone == nil}),
	)
	err := errors.Join(undone, recorded, r.saveStatus(), r.removeSocket())
	close(r.ended)
	r.mu.Lock()
	r.leaving = true
	r.mu.Unlock()
	defer time.AfterFunc(r.limit.farewell, r.hangUp).Stop()
	r.serving.Wait()
	return err
}

// sayGoodbye asks a guest that still listens what the task used and, where the
// disk is kept, to write it out.
func (r *Run) sayGoodbye() {
	r.mu.Lock()
	abrupt, kept, patience := r.abrupt, r.kept, r.limit.goodbye
	if r.status.TimedOut {
		patience = r.limit.last
	}
	r.mu.Unlock()
	if abrupt || r.guest == nil || r.guest.Err() != nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	defer r.loseGuestAfter(ctx)()
	if usage, err := r.guest.Usage(ctx); err == nil {
		r.mu.Lock()
		r.status.MemoryPeakBytes = usage.MemoryPeakBytes
		r.status.DiskWrittenBytes = usage.DiskWrittenBytes
		r.mu.Unlock()
	}
	if !kept && !r.cfg.Helper {
		return
	}
	if err := r.guest.Shutdown(ctx); err != nil {
		r.deps.Log.Warn("guest did not write out its disk", "err", err)
	}
}

// loseGuestAfter ends the conversation when ctx ends: a guest that does not
// even take bytes blocks the write, which has no other end. The returned
// function calls it off.
func (r *Run) loseGuestAfter(ctx context.Context) func() bool {
	return context.AfterFunc(ctx, func() { r.guest.Close() })
}

// settle makes the status final.
func (r *Run) settle(undone error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.status.State = sandbox.StateExited
	r.status.FinishedAt = time.Now()
	r.status.VMMPID = 0
	r.status.Paused = false
	if r.exit != nil {
		r.status.ExitCode = r.exit.Code
		r.status.OOMKilled = r.exit.OOMKilled
	}
	switch {
	case r.failure != nil:
		r.status.Error = r.failure.Error()
		r.status.ExitCode = exitCode(r.failure)
	case r.status.DiskFault != "":
		r.status.Error = r.status.DiskFault
		if r.status.ExitCode == 0 { // the task may not know
			r.status.ExitCode = sandbox.ExitCreel
		}
	}
	if undone != nil {
		r.status.Error = errors.Join(r.failure, undone).Error()
		r.status.ExitCode = sandbox.ExitCreel
	}
}

// exitCode is what Docker's command line returns for a task that did not start,
// or was killed with its VM.
func exitCode(err error) int {
	if _, ok := errors.AsType[endedByGuest](err); ok {
		return sandbox.ExitSignalBase + sigkill
	}
	switch api.ErrorCode(err) {
	case api.CodeNotFound:
		return sandbox.ExitNotFound
	case api.CodeNotExecutable:
		return sandbox.ExitNotExecutable
	default:
		return sandbox.ExitCreel
	}
}

// Status is a copy of what is known now.
func (r *Run) Status() sandbox.Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.withEdge(r.status)
}
