package keeper

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"creel/internal/audit"
	"creel/internal/audit/event"
	"creel/internal/guest/api"
	"creel/internal/keeper/launch"
	"creel/internal/keeper/rundir"
	"creel/internal/keeper/socket"
	"creel/internal/procs"
	"creel/internal/sandbox"
	"creel/internal/vm"
	"creel/internal/vm/vmtest"
	"creel/internal/wire"

	"golang.org/x/sys/unix"
)

// recorder keeps events, and fails from the n-th of a kind on where told to.
type recorder struct {
	mu       sync.Mutex
	events   []audit.Event
	failFrom int        // number of the first that fails, 1 the very first; 0: none
	failKind audit.Kind // fails always
	onlyEnd  bool       // all fail but the last records of a run
}

func (r *recorder) failOnly(kind audit.Kind) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failKind = kind
}

// failAll makes every record fail from now on but those of the end, or none any
// more.
func (r *recorder) failAll(yes bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.onlyEnd = yes
}

func (r *recorder) Append(ctx context.Context, events ...audit.Event) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	for i, e := range events {
		if e.Kind == r.failKind || r.onlyEnd && e.Kind != audit.KindExit && e.Kind != audit.KindCleanup || r.failFrom > 0 && len(r.events)+i+1 >= r.failFrom {
			return errors.New("disk full")
		}
	}
	r.events = append(r.events, events...)
	return nil
}

func (r *recorder) Note(failed func(error), events ...audit.Event) {
	if err := r.Append(context.Background(), events...); err != nil {
		failed(err)
	}
}

func (r *recorder) kinds() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []string
	for _, e := range r.events {
		kind := string(e.Kind)
		if data, ok := e.Data.(event.Step); ok {
			kind += ":" + data.Step
		}
		out = append(out, kind)
	}
	return out
}

// script is a guest in memory. Its processes are words: see [script.run].
type script struct {
	// answer may serve an operation itself, and says whether it did.
	answer func(ctx context.Context, s *wire.Stream) bool
	// closed is told of each process whose stream has ended.
	closed func(args []string)
	ran    atomic.Int64 // processes started
	copied atomic.Int64
	signal atomic.Int64 // signals received
	synced atomic.Bool
}

func (g *script) serve(port net.Conn) {
	c := wire.NewConn(port, wire.Options{Handler: g.handle})
	<-c.Done()
	c.Close()
}

func (g *script) handle(ctx context.Context, s *wire.Stream) {
	if g.answer != nil && g.answer(ctx, s) {
		return
	}
	switch s.Op() {
	case api.OpExec:
		g.run(ctx, s)
	case api.OpUsage:
		s.Send(ctx, api.UsageReply{MemoryPeakBytes: 7 << 20, DiskWrittenBytes: 9})
	case api.OpCopyIn:
		n, _ := io.Copy(io.Discard, s.Reader(api.ChannelIn))
		g.copied.Add(n)
		s.Send(ctx, api.Reply{})
	case api.OpCopyOut:
		g.copied.Add(1)
		s.Send(ctx, api.Reply{})
		io.WriteString(s.Writer(api.ChannelOut), "tar")
		s.Writer(api.ChannelOut).Close()
	case api.OpStat:
		s.Send(ctx, api.StatReply{Name: "x", Size: 3})
	case api.OpShutdown:
		g.synced.Store(true)
		s.Send(ctx, api.Reply{})
	default:
		s.Send(ctx, api.Reply{})
	}
}

// run is one process: "echo words", "cat", "exit n", "wait" for a signal,
// "deaf" to every signal, "flood n" bytes, or a name that is not known.
func (g *script) run(ctx context.Context, s *wire.Stream) {
	var p sandbox.Process
	if err := s.Body(&p); err != nil {
		s.Send(ctx, api.ExecReply{Error: &api.Error{Code: api.CodeInvalid, Message: err.Error()}})
		return
	}
	g.ran.Add(1)
	if g.closed != nil {
		defer g.closed(p.Args)
	}
	signals := make(chan int, 16)
	do, refused := g.command(ctx, s, p, signals)
	if refused != nil {
		s.Send(ctx, api.ExecReply{Error: refused})
		return
	}
	s.Send(ctx, api.ExecReply{PID: 42})
	go func() {
		for {
			var c api.ExecControl
			if s.Recv(ctx, &c) != nil {
				return
			}
			g.signal.Add(1)
			signals <- c.Signal
		}
	}()
	exit := do()
	s.Writer(api.ChannelOut).Close()
	s.Writer(api.ChannelErr).Close()
	s.Send(ctx, exit)
}

func (g *script) command(ctx context.Context, s *wire.Stream, p sandbox.Process, signals chan int) (func() api.ExecExit, *api.Error) {
	out := s.Writer(api.ChannelOut)
	byArg := func() int { n, _ := strconv.Atoi(p.Args[1]); return n }
	do, known := map[string]func() api.ExecExit{
		"echo": func() api.ExecExit {
			fmt.Fprint(out, strings.Join(p.Args[1:], " "))
			fmt.Fprint(s.Writer(api.ChannelErr), "err")
			return api.ExecExit{}
		},
		"cat":  func() api.ExecExit { io.Copy(out, s.Reader(api.ChannelIn)); return api.ExecExit{} },
		"exit": func() api.ExecExit { return api.ExecExit{Code: byArg()} },
		"wait": func() api.ExecExit {
			select {
			case n := <-signals:
				return api.ExecExit{Code: 128 + n, Signal: n}
			case <-ctx.Done():
				return api.ExecExit{}
			}
		},
		"deaf":  func() api.ExecExit { <-ctx.Done(); return api.ExecExit{} },
		"flood": func() api.ExecExit { out.Write(make([]byte, byArg())); return api.ExecExit{} },
	}[p.Args[0]]
	switch {
	case p.Args[0] == "script.txt":
		return nil, &api.Error{Code: api.CodeNotExecutable, Message: "script.txt: permission denied"}
	case !known:
		return nil, &api.Error{Code: api.CodeNotFound, Message: p.Args[0] + ": not found"}
	}
	return do, nil
}

// rig is a run on a machine in memory, and all that it may leave behind.
type rig struct {
	t      *testing.T
	dir    string
	run    *Run
	guest  *script
	driver *vmtest.Driver
	audit  *recorder
	parts  atomic.Int64 // open
	stop   context.CancelFunc
	done   chan struct{}
	err    error // of Do, once done
}

// options of a rig; the zero value runs "wait" in the foreground.
type options struct {
	args  []string
	with  func(*rig, *launch.Config, *Deps)
	limit func(*deadlines)
	guest *script
	audit *recorder
}

// begin starts a run with its launcher's client connected. At the end of the
// test the run is over and nothing of it is left.
func begin(t *testing.T, o options) (*rig, *socket.Client) {
	t.Helper()
	before := goroutines()
	r := &rig{t: t, dir: t.TempDir(), guest: o.guest, audit: o.audit, done: make(chan struct{})}
	if r.guest == nil {
		r.guest = &script{}
	}
	if r.audit == nil {
		r.audit = &recorder{}
	}
	if o.args == nil {
		o.args = []string{"wait"}
	}
	r.driver = &vmtest.Driver{Guest: r.guest.serve}
	dir, err := os.OpenRoot(r.dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dir.Close() })
	cfg := launch.Config{
		Spec:       sandbox.Spec{ID: sandbox.NewID(), Name: "otter"},
		Process:    sandbox.Process{Args: o.args, Interactive: true},
		StopSignal: int(unix.SIGTERM), Shape: vm.Shape{MemoryMiB: 256, VCPUs: 1}, Accel: sandbox.AccelTCG,
	}
	deps := Deps{
		Driver: r.driver, Audit: r.audit, Dir: dir, Confine: func() error { return nil },
		Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
		Parts: func(context.Context) (*Parts, error) {
			r.parts.Add(1)
			return &Parts{CPU: "the template's", Close: func() error { r.parts.Add(-1); return nil }}, nil
		},
	}
	if o.with != nil {
		o.with(r, &cfg, &deps)
	}
	r.run = New(cfg, deps)
	r.run.limit.farewell = 300 * time.Millisecond // clients of a test stay to its end
	if o.limit != nil {
		o.limit(&r.run.limit)
	}
	client := r.start()
	t.Cleanup(func() { r.leavesNothing(before) })
	return r, client
}

func (r *rig) start() *socket.Client {
	r.t.Helper()
	l, err := socket.Listen(r.dir)
	if err != nil {
		r.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	r.stop = stop
	var serving sync.WaitGroup
	serving.Go(func() { r.run.Serve(l, os.Getuid()) })
	ours, theirs := pair(r.t)
	r.run.ServeLauncher(theirs)
	go func() {
		r.err = r.run.Do(ctx)
		serving.Wait()
		close(r.done)
	}()
	c, err := socket.NewClient(ctx, ours, r.run.cfg.Spec.ID)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { c.Close() })
	return c
}

// dial is one more client.
func (r *rig) dial() *socket.Client {
	r.t.Helper()
	c, err := socket.Dial(r.t.Context(), r.dir, r.run.cfg.Spec.ID)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { c.Close() })
	return c
}

// awaitClients waits until the keeper serves n clients and no more.
func (r *rig) awaitClients(n int) {
	r.t.Helper()
	left := func() int {
		r.run.mu.Lock()
		defer r.run.mu.Unlock()
		return len(r.run.clients)
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(20 * time.Second); left() > n; <-tick.C {
		if time.Now().After(deadline) {
			r.t.Fatal("the keeper still serves a client that has gone")
		}
	}
}

// leavesNothing ends the run where the test has not, and looks for what is left.
func (r *rig) leavesNothing(before int) {
	r.t.Helper()
	r.stop()
	r.wait()
	for _, m := range r.driver.Machines() {
		if _, err := m.Control().Write([]byte{0}); !errors.Is(err, net.ErrClosed) {
			r.t.Errorf("a machine is left: %v", err)
		}
	}
	if n := r.parts.Load(); n != 0 {
		r.t.Errorf("%d parts are left open", n)
	}
	if _, err := os.Lstat(r.dir + "/" + socket.Name); err == nil {
		r.t.Error("the socket is left")
	}
	tick := time.NewTicker(time.Millisecond) // no event tells of a goroutine's end
	defer tick.Stop()
	for deadline := time.Now().Add(5 * time.Second); goroutines() > before; <-tick.C {
		if time.Now().After(deadline) {
			buf := make([]byte, 1<<20)
			r.t.Fatalf("goroutines are left:\n%s", buf[:runtime.Stack(buf, true)])
		}
	}
}

func (r *rig) wait() {
	r.t.Helper()
	select {
	case <-r.done:
	case <-time.After(20 * time.Second):
		buf := make([]byte, 1<<20)
		r.t.Fatalf("the run does not end:\n%s", buf[:runtime.Stack(buf, true)])
	}
}

// final is the status that a client waits for, which the file must agree with.
func (r *rig) final(c *socket.Client) sandbox.Status {
	r.t.Helper()
	status, err := c.Wait(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	c.Close()
	r.wait()
	onDisk, err := rundir.ReadStatus(r.dir)
	if err != nil {
		r.t.Fatal(err)
	}
	if onDisk.State != sandbox.StateExited || onDisk.ExitCode != status.ExitCode || onDisk.Error != status.Error {
		r.t.Errorf("the file says %+v, the keeper %+v", onDisk, status)
	}
	return status
}

// goroutines counts those that run code of ours.
func goroutines() int {
	buf := make([]byte, 4<<20)
	buf = buf[:runtime.Stack(buf, true)]
	return bytes.Count(buf, []byte("created by creel/internal/keeper.(*")) +
		bytes.Count(buf, []byte("created by creel/internal/wire.")) +
		bytes.Count(buf, []byte("created by creel/internal/boundary.")) +
		bytes.Count(buf, []byte("created by creel/internal/keeper.watchClock"))
}

func pair(t *testing.T) (a, b net.Conn) {
	t.Helper()
	a, b, err := procs.Conns()
	if err != nil {
		t.Fatal(err)
	}
	return a, b
}

// started is a run whose task runs.
func started(t *testing.T, o options) (*rig, *socket.Client) {
	t.Helper()
	r, c := begin(t, o)
	if _, err := c.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := c.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	return r, c
}

func want(t *testing.T, s sandbox.Status, code int, words ...string) {
	t.Helper()
	if s.ExitCode != code || s.State != sandbox.StateExited {
		t.Errorf("ended %s with %d (%s), want %d", s.State, s.ExitCode, s.Error, code)
	}
	if len(words) == 0 && s.Error != "" {
		t.Errorf("error %q", s.Error)
	}
	for _, w := range words {
		if !strings.Contains(s.Error, w) {
			t.Errorf("error %q does not say %q", s.Error, w)
		}
	}
}

func has(kinds []string, kind string) bool { return slices.Contains(kinds, kind) }
