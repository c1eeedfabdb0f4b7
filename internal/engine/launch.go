package engine

import (
	"context"
	"encoding/json"
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
	"creel/internal/keeper"
	"creel/internal/keeper/socket"
	"creel/internal/postmortem"
	"creel/internal/procs"
	"creel/internal/secret"
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
func (e *Engine) launch(ctx context.Context, rec Record, key audit.SandboxKey, lock *durable.Lock, n network) (*keeperProcess, error) {
	dir := e.SandboxDir(rec.Config.Spec.ID)
	launch := keeper.Launch{
		Version: socket.Version, StateDir: e.opts.Dir, SandboxDir: dir, Dir: e.KeeperDir(rec.Config.Spec.ID),
		UID: rec.UID, OwnerUID: os.Getuid(), AuditDir: rec.auditDir, AuditKey: key,
		Ports: n.listed(), Config: rec.Config,
	}
	launch.Environ = environ.Own(e.opts.Settings)
	if rec.Config.Spec.Policy != "" {
		launch.Environ = environ.Edge(e.opts.Settings)
	}
	config, err := json.Marshal(launch)
	if err != nil {
		return nil, fmt.Errorf("encode keeper configuration: %w", err)
	}
	ours, theirs, err := procs.Pair()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	kp := &keeperProcess{dir: dir, conn: ours, logPath: filepath.Join(dir, LogName), done: make(chan struct{}), how: unknownEnd}
	files, err := n.files()
	if err != nil {
		ours.Close()
		return nil, err
	}
	defer closeAll(files)
	start := func(files []*os.File) error { return kp.start(e.opts.KeeperCommand, files) }
	if rec.waited != nil {
		start = func(files []*os.File) error { return kp.take(rec.waited, files) }
	}
	if err := kp.configure(ctx, start, handed{config, n.grants, append([]*os.File{theirs, lock.File}, files...)}); err != nil {
		ours.Close()
		return nil, err
	}
	return kp, nil
}

// handed is what a keeper process begins with.
type handed struct {
	config []byte
	grants []secret.Grant
	files  []*os.File // its connection, its lock, and the sockets of its ports
}

// configure starts the keeper, with its files, and writes it what comes by pipe.
// One that does not read is not waited for beyond ctx.
func (kp *keeperProcess) configure(ctx context.Context, start func([]*os.File) error, h handed) error {
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("make pipe: %w", err)
	}
	defer r.Close()
	defer w.Close()
	secrets, values, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("make pipe: %w", err)
	}
	defer secrets.Close()
	defer values.Close()
	if err := start(append([]*os.File{r, h.files[0], h.files[1], secrets}, h.files[2:]...)); err != nil { // as keeper.Handed has them
		return err
	}
	secrets.Close()
	if err := noteKeeper(kp.dir, kp.process); err != nil {
		return errors.Join(err, kp.kill()) // nothing begins that could not be ended
	}
	r.Close() // a keeper that dies unconfigured breaks the pipe, and does not block it
	defer context.AfterFunc(ctx, func() {
		w.SetWriteDeadline(time.Unix(1, 0))
		values.SetWriteDeadline(time.Unix(1, 0))
	})()
	_, err = w.Write(h.config)
	w.Close()
	if err == nil {
		err = secret.WriteGrants(values, h.grants)
	}
	if err != nil {
		err = errors.Join(context.Cause(ctx), err)
		kp.kill()
		return kp.explain(fmt.Errorf("configure keeper: %w", err))
	}
	return nil
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
