package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"creel/internal/guest/api"
	"creel/internal/sandbox"
	"creel/internal/wire"
)

// task is one started process and this side of its standard streams.
type task struct {
	pid    int
	child  *child
	stdin  *os.File // nil where the process has none of the host's
	stdout *os.File // the terminal where there is one
	stderr *os.File // nil with a terminal
	tty    bool
}

func (t *task) close() {
	for _, f := range []*os.File{t.stdin, t.stdout, t.stderr} {
		if f != nil {
			f.Close() // a second close of the terminal does nothing
		}
	}
}

// serveExec runs one process. It ends with the process, once both outputs are
// with the host; other processes that still hold them are not waited for. A
// host that closes the stream hangs up: the process ends too.
func (a *Agent) serveExec(ctx context.Context, s *wire.Stream) {
	var p sandbox.Process
	if err := s.Body(&p); err != nil {
		s.Send(ctx, api.ExecReply{Error: invalid(err)})
		return
	}
	t, err := a.start(p, a.platform.Started)
	if err != nil {
		s.Send(ctx, api.ExecReply{Error: refusal(err)})
		return
	}
	var others, outputs sync.WaitGroup
	defer others.Wait()
	defer s.Close()
	defer t.close()
	if s.Send(ctx, api.ExecReply{PID: t.pid}) != nil {
		a.hangUp(t)
		return
	}
	others.Go(func() { a.control(ctx, s, t) })
	if t.stdin != nil {
		others.Go(func() { feed(s.Reader(api.ChannelIn), t) })
	}
	outputs.Go(func() { pump(s.Writer(api.ChannelOut), t.stdout) })
	if t.stderr != nil {
		outputs.Go(func() { pump(s.Writer(api.ChannelErr), t.stderr) })
	} else {
		s.Writer(api.ChannelErr).Close()
	}
	select {
	case <-t.child.done:
	case <-ctx.Done():
		a.hangUp(t)
		outputs.Wait()
		return
	}
	if !t.tty { // a terminal is hung up by the end of its session's leader
		t.stdout.SetReadDeadline(time.Unix(1, 0))
		t.stderr.SetReadDeadline(time.Unix(1, 0))
	}
	outputs.Wait()
	s.Send(ctx, a.exit(t.child.status))
}

// hangUpGrace is how long a process may take to end that was hung up on.
const hangUpGrace = 5 * time.Second

// hangUp ends a process whose host has gone, and its process group, as the end
// of a terminal does: with SIGHUP, and where the process takes no notice of
// that, for good. What has begun a session of its own goes on.
func (a *Agent) hangUp(t *task) {
	a.reaper.signalGroup(t.pid, t.child, syscall.SIGHUP) // first: a closed output may end its leader alone
	t.close()
	timer := time.NewTimer(a.grace)
	defer timer.Stop()
	select {
	case <-t.child.done:
	case <-timer.C:
		a.reaper.signalGroup(t.pid, t.child, syscall.SIGKILL)
	}
}

// feed copies the host's input to the process. A terminal's end of input is
// typed, not closed.
func feed(from io.Reader, t *task) {
	_, err := io.Copy(t.stdin, from)
	if !t.tty {
		t.stdin.Close()
	} else if err == nil {
		t.stdin.Write([]byte{4})
	}
}

func (a *Agent) control(ctx context.Context, s *wire.Stream, t *task) {
	for {
		var c api.ExecControl
		if s.Recv(ctx, &c) != nil {
			return
		}
		if c.Resize != nil && t.tty {
			resize(t.stdout, c.Resize.Rows, c.Resize.Cols)
		}
		if c.Signal >= 1 && c.Signal <= 64 {
			a.reaper.signal(t.pid, t.child, syscall.Signal(c.Signal))
		}
	}
}

// pump copies an output to the host until all its writers are gone, or its
// read deadline says that the process has ended: then what is in the pipe at
// that moment is the rest.
func pump(to io.WriteCloser, from *os.File) {
	defer to.Close()
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			drain(to, from, buf)
			return
		}
		if err != nil {
			return // end of file, or EIO from a terminal that was hung up
		}
	}
}

func drain(to io.Writer, from *os.File, buf []byte) {
	from.SetReadDeadline(time.Time{})
	conn, err := from.SyscallConn()
	if err != nil {
		return
	}
	left := 0
	conn.Control(func(fd uintptr) { left, err = unix.IoctlGetInt(int(fd), unix.TIOCINQ) })
	for err == nil && left > 0 {
		var n int
		n, err = from.Read(buf[:min(left, len(buf))])
		left -= n
		if _, werr := to.Write(buf[:n]); werr != nil {
			return
		}
	}
}

func (a *Agent) exit(status syscall.WaitStatus) api.ExecExit {
	if !status.Signaled() {
		return api.ExecExit{Code: status.ExitStatus()}
	}
	e := api.ExecExit{Code: sandbox.ExitSignalBase + int(status.Signal()), Signal: int(status.Signal())}
	if status.Signal() == syscall.SIGKILL {
		kills := a.platform.OOMKills()
		a.mu.Lock()
		e.OOMKilled = kills > a.oomSeen
		a.oomSeen = max(a.oomSeen, kills)
		a.mu.Unlock()
	}
	return e
}

// start runs a process in the cgroup that wrap gives it; an *api.Error says why
// it cannot.
func (a *Agent) start(p sandbox.Process, wrap func(func(cgroup int) error) error) (*task, error) {
	if len(p.Args) == 0 {
		return nil, &api.Error{Code: api.CodeInvalid, Message: "no command given"}
	}
	acc, err := a.account(p.User)
	if err != nil {
		return nil, err
	}
	dir := p.Dir
	if dir == "" {
		dir = "/"
	}
	if err := os.MkdirAll(a.path(dir), 0o755); err != nil {
		return nil, fmt.Errorf("working directory: %w", err)
	}
	env := a.environment(p, acc)
	file, err := a.executable(p.Args[0], dir, lookupEnv(env, "PATH"))
	if err != nil {
		return nil, err
	}
	attr := &syscall.ProcAttr{Dir: dir, Env: env, Sys: &syscall.SysProcAttr{
		Setsid:     true,
		Credential: &syscall.Credential{Uid: acc.uid, Gid: acc.gid, Groups: acc.groups},
	}}
	if a.root != "/" {
		attr.Sys.Chroot = a.root
	}
	t := &task{tty: p.TTY}
	theirs, err := t.open(p, acc, attr)
	defer func() {
		for _, fd := range theirs {
			unix.Close(fd)
		}
	}()
	if err == nil {
		err = wrap(func(cgroup int) (err error) {
			if cgroup >= 0 {
				attr.Sys.UseCgroupFD, attr.Sys.CgroupFD = true, cgroup
			}
			t.pid, t.child, err = a.reaper.start(func() (int, error) { return syscall.ForkExec(file, p.Args, attr) })
			if err != nil {
				return execError(p.Args[0], err)
			}
			return nil
		})
	}
	if err != nil {
		t.close()
		return nil, err
	}
	return t, nil
}

// rehearse starts this program as a task would be started, and waits for its
// end, which comes at once: see cmd/creel-guest.
func (a *Agent) rehearse() error {
	a.executable("sh", "/", defaultPath) // a look, for the kernel to have looked there
	return a.platform.Rehearse(func(cgroup int) error {
		t, err := a.start(sandbox.Process{Args: []string{"/proc/self/exe"}}, func(fork func(int) error) error { return fork(cgroup) })
		if err != nil {
			return err
		}
		defer t.close()
		<-t.child.done
		return nil
	})
}

// environment puts the process's own variables over the identity's, over what
// Docker sets where nobody does.
func (a *Agent) environment(p sandbox.Process, acc account) []string {
	a.mu.Lock()
	env := []string{"PATH=" + defaultPath, "HOSTNAME=" + a.hostname}
	shared := a.env
	a.mu.Unlock()
	if p.TTY {
		env = append(env, "TERM=xterm")
	}
	env = append(env, "HOME="+acc.home)
	at := map[string]int{}
	for i, e := range env {
		name, _, _ := strings.Cut(e, "=")
		at[name] = i
	}
	for _, list := range [][]string{shared, p.Env} {
		for _, e := range list {
			name, _, _ := strings.Cut(e, "=")
			if i, ok := at[name]; ok {
				env[i] = e
				continue
			}
			at[name] = len(env)
			env = append(env, e)
		}
	}
	return env
}

func lookupEnv(env []string, name string) string {
	for _, e := range env {
		if v, ok := strings.CutPrefix(e, name+"="); ok {
			return v
		}
	}
	return ""
}
