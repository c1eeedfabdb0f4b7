package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"creel/internal/audit"
	"creel/internal/durable"
	"creel/internal/environ"
	"creel/internal/keeper/launch"
	"creel/internal/postmortem"
	"creel/internal/procs"
	"creel/internal/standby"
)

// keeperProcess is a keeper that this process has started, or that waited.
type keeperProcess struct {
	dir     string // the sandbox's
	process procs.Instance
	end     func() error // kills it
	conn    net.Conn     // the launcher's connection to it
	logPath string
	done    chan struct{}
	how     string // it has ended; valid once done is closed
}

// unknownEnd is what is known of the end of a keeper that is no child of who
// asks, and has left no word.
const unknownEnd = "its keeper was killed, or it crashed"

// launch starts the keeper, or makes one of the process that waits: its
// configuration comes by pipe, and the launcher is its first client, by a
// connection that no path names. A keeper that is started inherits the lock that
// the launcher holds, and one that waited has it already, so that there is no
// moment at which a sandbox that is starting looks abandoned.
func (e *Engine) launch(ctx context.Context, p plan, key audit.SandboxKey, lock *durable.Lock, n network) (*keeperProcess, error) {
	dir := e.store.Dir(p.Config.Spec.ID)
	order := launch.Order{Grants: n.grants, Lock: lock.File, Launch: launch.Launch{
		StateDir: e.opts.Dir, SandboxDir: dir, Dir: e.store.KeeperDir(p.Config.Spec.ID),
		UID: p.UID, OwnerUID: os.Getuid(), AuditDir: p.auditDir, AuditKey: key,
		Ports: n.listed(), Config: p.Config, Environ: environ.Own(e.opts.Settings),
	}}
	if p.Config.Spec.Policy != "" {
		order.Launch.Environ = environ.Edge(e.opts.Settings)
	}
	ours, theirs, err := procs.Pair()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	order.Conn = theirs
	kp := &keeperProcess{dir: dir, conn: ours, logPath: filepath.Join(dir, launch.LogName), done: make(chan struct{}), how: unknownEnd}
	if order.Ports, err = n.files(); err != nil {
		ours.Close()
		return nil, err
	}
	defer closeAll(order.Ports)
	start := func(files []*os.File) error { return kp.start(e.opts.KeeperCommand, files) }
	if p.waited != nil {
		start = func(files []*os.File) error { return kp.take(p.waited, files) }
	}
	if err := kp.configure(ctx, order, start); err != nil {
		ours.Close()
		return nil, err
	}
	return kp, nil
}

// configure has start make a keeper, and gives it the order. On error the keeper
// is gone.
func (kp *keeperProcess) configure(ctx context.Context, order launch.Order, start func([]*os.File) error) error {
	started := false
	err := order.Give(ctx, func(files []*os.File) error {
		if err := start(files); err != nil {
			return err
		}
		started = true
		return noteKeeper(kp.dir, kp.process) // nothing begins that could not be ended
	})
	if err == nil || !started {
		return err
	}
	kp.kill()
	return kp.explain(err)
}

// start makes a new process the keeper.
func (kp *keeperProcess) start(command []string, files []*os.File) error {
	log, err := os.OpenFile(kp.logPath, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("open keeper log: %w", err)
	}
	defer log.Close()
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Dir, cmd.Env = "/", environ.Helper() // the rest comes by pipe
	cmd.Stderr = log
	cmd.ExtraFiles = files
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start keeper: %w", err)
	}
	kp.end = cmd.Process.Kill
	kp.process, err = procs.Identify(cmd.Process.Pid) // it keeps its number until it is waited for
	kills, uncounted := postmortem.OpenKills()
	if uncounted != nil {
		kills = nil // this kernel does not count them
	}
	go func() {
		cmd.Wait()
		kp.how = postmortem.How("its keeper", cmd.ProcessState, kills)
		kills.Close()
		close(kp.done)
	}()
	if err != nil {
		return errors.Join(fmt.Errorf("look at the keeper: %w", err), kp.kill())
	}
	return nil
}

// take makes a process that waited the keeper.
func (kp *keeperProcess) take(t *standby.Taken, files []*os.File) error {
	var err error
	if kp.process, err = procs.Identify(t.PID); err != nil || t.Ended() { // its number may be another's by now
		return errors.Join(errors.New("the waiting VM has ended"), err)
	}
	if err := t.Hand(files); err != nil {
		return err
	}
	kp.end = t.Kill
	go func() { t.Wait(); t.Close(); close(kp.done) }()
	return nil
}

// kill ends the keeper, and with it its VMM, and waits until it has gone.
func (kp *keeperProcess) kill() error {
	kp.conn.Close()
	kp.end()
	<-kp.done
	return nil
}

// wait returns when the keeper has gone by itself.
func (kp *keeperProcess) wait(ctx context.Context) error {
	select {
	case <-kp.done:
		return nil
	case <-ctx.Done():
		return errors.Join(ctx.Err(), kp.kill())
	}
}

// lost is the error of a connection to the keeper that has ended before the
// run: how the keeper did, where that is known.
func (kp *keeperProcess) lost(err error) error {
	timer := time.NewTimer(keeperLeaves)
	defer timer.Stop()
	select {
	case <-kp.done:
	case <-timer.C:
		return err // it lives
	}
	return kp.explain(fmt.Errorf("the run was lost, and its VM has ended: %s", kp.how))
}

// explain adds the keeper's last words to an error of talking with it.
func (kp *keeperProcess) explain(err error) error {
	const enough = 2 << 10
	log, openErr := os.Open(kp.logPath)
	if openErr != nil {
		return err
	}
	defer log.Close()
	if info, statErr := log.Stat(); statErr == nil && info.Size() > enough {
		log.Seek(-enough, io.SeekEnd) // at worst its first words are shown
	}
	data, readErr := io.ReadAll(io.LimitReader(log, enough))
	if readErr != nil || len(data) == 0 {
		return err
	}
	return fmt.Errorf("%w\nkeeper: %s", err, strings.TrimSpace(string(data)))
}
