package keeper

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"creel/internal/guest/api"
	"creel/internal/keeper/launch"
	"creel/internal/keeper/rundir"
	"creel/internal/keeper/socket"
	"creel/internal/sandbox"
	"creel/internal/wire"
)

func TestSeveralClientsSeeTheSame(t *testing.T) {
	r, c := begin(t, options{args: []string{"cat"}})
	var outputs []func() (string, string)
	for range 3 {
		_, output := attach(t, r.dial(), socket.AttachRequest{Stdout: true, Stderr: true})
		outputs = append(outputs, output)
	}
	stdin, output := attach(t, c, everything)
	if err := c.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	// A second writer's end is not the task's.
	second, last := attach(t, r.dial(), socket.AttachRequest{Stdin: true, Stdout: true})
	io.WriteString(second, "second ")
	second.Close()
	long := strings.Repeat("x", 1<<20)
	io.WriteString(stdin, long)
	stdin.Close()
	for _, o := range append(outputs, output) {
		if out, _ := o(); len(out) != len(long)+len("second ") || !strings.Contains(out, "second ") {
			t.Errorf("a client got %d bytes", len(out))
		}
	}
	last()
	want(t, r.final(c), 0)
}

// Output waits for the slowest client and loses nothing.
func TestSlowClientGetsEverything(t *testing.T) {
	const size = 3 << 20
	r, c := begin(t, options{args: []string{"flood", fmt.Sprint(size)}})
	att, err := c.Attach(t.Context(), socket.AttachRequest{Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	defer att.Close()
	if err := c.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	select {
	case <-r.run.over:
		t.Error("the run did not wait for its client")
	case <-time.After(50 * time.Millisecond):
	}
	if n, err := io.Copy(io.Discard, att.Stdout); n != size || err != nil {
		t.Errorf("%d bytes, %v", n, err)
	}
	want(t, r.final(c), 0)
}

// Clients that do not read, some not even from their sockets, cannot hold up
// the end of a run that is told to end.
func TestClientsThatDoNotReadAreLeftBehind(t *testing.T) {
	for name, end := range map[string]func(context.Context, *rig, *socket.Client) error{
		"stop": func(ctx context.Context, _ *rig, c *socket.Client) error { return c.Stop(ctx, 0, time.Millisecond) },
		"kill": func(ctx context.Context, _ *rig, c *socket.Client) error { return c.Kill(ctx) },
		"death": func(_ context.Context, r *rig, _ *socket.Client) error {
			r.driver.Machines()[0].Die(errors.New("gone"))
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			r, c := begin(t, options{args: []string{"flood", fmt.Sprint(8 << 20)}, limit: func(d *deadlines) {
				d.kill, d.farewell = 20*time.Millisecond, 300*time.Millisecond
			}})
			lazy := r.dial()
			if _, err := lazy.Attach(t.Context(), socket.AttachRequest{Stdout: true, Stderr: true}); err != nil {
				t.Fatal(err)
			}
			stopped := stoppedClient(t, r)
			if err := c.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := end(t.Context(), r, c); err != nil {
				t.Error(err)
			}
			if _, err := c.Wait(t.Context()); err != nil {
				t.Error(err)
			}
			c.Close()
			r.wait()
			stopped.Close()
		})
	}
}

// stoppedClient attaches and then reads no more bytes.
func stoppedClient(t *testing.T, r *rig) net.Conn {
	t.Helper()
	conn, err := socket.Connect(r.dir)
	if err != nil {
		t.Fatal(err)
	}
	body, _ := json.Marshal(socket.AttachRequest{Stdout: true, Stderr: true})
	frame := func(kind, channel byte, payload []byte) {
		h := []byte{byte(len(payload)), 0, 0, 0, 1, 0, 0, 0, kind, channel, 0, 0}
		if _, err := conn.Write(append(h, payload...)); err != nil {
			t.Fatal(err)
		}
	}
	frame(1, 0, []byte(socket.OpAttach))
	frame(2, 4, append([]byte{byte(len(body)), 0, 0, 0}, body...))
	reply := make([]byte, 12)
	if _, err := io.ReadFull(conn, reply); err != nil {
		t.Fatal(err)
	}
	return conn
}

// A client that goes away during an exec, an attach or a copy holds nothing.
func TestClientGoesAway(t *testing.T) {
	r, c := started(t, options{})
	x := r.dial()
	if _, err := x.Exec(t.Context(), sandbox.Process{Args: []string{"deaf"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := x.Attach(t.Context(), everything); err != nil {
		t.Fatal(err)
	}
	x.Close()
	r.awaitClients(1)
	if s, err := c.Status(t.Context()); err != nil || s.State != sandbox.StateRunning {
		t.Errorf("status %+v, %v", s, err)
	}
}

// Many writers to a task that does not read leave nothing when they go.
func TestStdinWritersThatGo(t *testing.T) {
	r, _ := started(t, options{})
	for range 20 {
		c := r.dial()
		att, err := c.Attach(t.Context(), socket.AttachRequest{Stdin: true})
		if err != nil {
			t.Fatal(err)
		}
		var writing sync.WaitGroup
		writing.Go(func() { att.Stdin.Write(make([]byte, 2<<20)) })
		c.Close()
		writing.Wait()
	}
}

func TestClientsAreBounded(t *testing.T) {
	r, c := started(t, options{})
	for range maxClients - 1 {
		r.dial()
	}
	if extra, err := socket.Dial(t.Context(), r.dir, r.run.cfg.Spec.ID); err == nil {
		extra.Close()
		t.Error("one client too many was let in")
	}
	if _, err := c.Status(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestHelloOfAnotherVersion(t *testing.T) {
	r, _ := begin(t, options{})
	ours, theirs := pair(t)
	r.run.serve(theirs, func() {})
	w := wire.NewConn(ours, wire.Options{})
	defer w.Close()
	reply, err := wire.Call[socket.HelloReply](t.Context(), w, socket.OpHello, socket.HelloRequest{Version: socket.Version + 1})
	if err != nil || reply.Error == nil || !strings.Contains(reply.Error.Message, "use the creel that started it") {
		t.Errorf("reply %+v, %v", reply, err)
	}
	if got, err := wire.Call[api.Reply](t.Context(), w, "nonsense", api.Empty{}); err != nil || got.Error == nil {
		t.Errorf("an operation that is not known: %+v, %v", got, err)
	}
}

func TestOnlyTheOwnerMayConnect(t *testing.T) {
	if os.Getuid() == 0 {
		t.Skip("root may always connect; run as a user")
	}
	dir := t.TempDir()
	r := New(launch.Config{}, Deps{Log: testLog(t)})
	l, err := socket.Listen(dir)
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() { r.Serve(l, os.Getuid()+1) })
	if c, err := socket.Dial(t.Context(), dir, ""); err == nil {
		c.Close()
		t.Error("another user was let in")
	}
	close(r.ended)
	serving.Wait()
}

func TestFollowLogs(t *testing.T) {
	r, c := begin(t, options{args: []string{"cat"}, with: func(_ *rig, cfg *launch.Config, _ *Deps) { cfg.Spec.Keep = true }})
	follower := r.dial()
	got := make(chan string, 16)
	var following sync.WaitGroup
	following.Go(func() {
		if err := follower.Logs(t.Context(), func(e rundir.Entry) error { got <- string(e.Data); return nil }); err != nil {
			t.Error(err)
		}
		follower.Close()
	})
	stdin, output := attach(t, c, everything)
	if err := c.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, word := range []string{"one", "two"} {
		io.WriteString(stdin, word)
		if line := <-got; line != word {
			t.Errorf("the follower got %q, want %q", line, word)
		}
	}
	stdin.Close()
	output()
	following.Wait()
	want(t, r.final(c), 0)
}

// A task in the foreground ends with its launcher, whatever holds up its output.
func TestForegroundEndsWithItsLauncher(t *testing.T) {
	for name, args := range map[string][]string{
		"waits": {"wait"}, "is deaf": {"deaf"}, "floods": {"flood", fmt.Sprint(64 << 20)},
	} {
		t.Run(name, func(t *testing.T) {
			r, c := begin(t, options{args: args})
			other := r.dial()
			if _, err := c.Attach(t.Context(), everything); err != nil { // and reads nothing
				t.Fatal(err)
			}
			if err := c.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			c.Close()
			want(t, r.final(other), sandbox.ExitCreel, "its launcher ended", "-d")
		})
	}
}
