package keeper

import (
	"bytes"
	"context"
	"creel/internal/keeper/launch"
	"encoding/json"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"creel/internal/guest/api"
	"creel/internal/wire"
)

func testLog(t *testing.T) *slog.Logger { return slog.New(slog.NewTextHandler(t.Output(), nil)) }

func impatient(d *deadlines) {
	*d = deadlines{identity: 50 * time.Millisecond, start: 50 * time.Millisecond, lastWords: 5 * time.Millisecond,
		goodbye: 50 * time.Millisecond, farewell: time.Second, kill: 20 * time.Millisecond,
		timeout: 20 * time.Millisecond, last: 20 * time.Millisecond, vmm: time.Second, beat: time.Minute}
}

// silent swallows one operation.
func silent(op string) *script {
	return &script{answer: func(ctx context.Context, s *wire.Stream) bool {
		if s.Op() != op {
			return false
		}
		<-ctx.Done()
		return true
	}}
}

func TestGuestNeverAnswers(t *testing.T) {
	for op, word := range map[string]string{
		api.OpIdentity: "not ready within",
		api.OpExec:     "did not start the task within",
	} {
		t.Run(op, func(t *testing.T) {
			r, c := begin(t, options{guest: silent(op), limit: impatient})
			c.Start(t.Context())
			want(t, r.final(c), 125, word, "try again")
		})
	}
}

// A guest that drags out the goodbye cannot keep the end off the record.
func TestGoodbyeThatIsNotAnsweredIsStillOnRecord(t *testing.T) {
	for _, op := range []string{api.OpUsage, api.OpShutdown} {
		r, c := begin(t, options{args: []string{"exit", "4"}, guest: silent(op), limit: impatient,
			with: func(_ *rig, cfg *launch.Config, _ *Deps) { cfg.Spec.Keep = true }})
		if err := c.Start(t.Context()); err != nil {
			t.Skipf("this machine is too busy: %v", err)
		}
		want(t, r.final(c), 4)
		if kinds := r.audit.kinds(); !has(kinds, "exit") || !has(kinds, "cleanup") {
			t.Errorf("%s: on record: %v", op, kinds)
		}
	}
}

// exitWith is a guest whose process ends with a message of its choice.
func exitWith(message any) *script {
	return &script{answer: func(ctx context.Context, s *wire.Stream) bool {
		if s.Op() != api.OpExec {
			return false
		}
		s.Send(ctx, api.ExecReply{PID: 1})
		s.Send(ctx, message)
		<-ctx.Done()
		return true
	}}
}

func TestExitsThatMakeNoSense(t *testing.T) {
	for name, message := range map[string]any{
		"code":      map[string]any{"code": 1 << 30},
		"field":     map[string]any{strings.Repeat("\x1b[2J", 50<<10): 1},
		"no object": "done",
		"negative":  map[string]any{"code": -1},
		"signal":    map[string]any{"code": 1, "signal": 900},
		"deep":      json.RawMessage(strings.Repeat("[", 9000) + strings.Repeat("]", 9000)),
	} {
		t.Run(name, func(t *testing.T) {
			r, c := begin(t, options{guest: exitWith(message)})
			c.Start(t.Context())
			status := r.final(c)
			want(t, status, 125, "wait for the task")
			if len(status.Error) > 2000 || strings.ContainsAny(status.Error, "\x1b") {
				t.Errorf("the guest wrote %d bytes into the status", len(status.Error))
			}
			if !has(r.audit.kinds(), "exit") {
				t.Error("the end is not on record")
			}
		})
	}
}

// raw is a guest that speaks wire until it has sent n bytes and then garbage,
// and never reads again if deaf.
func raw(n int, deaf bool) func(net.Conn) {
	return func(port net.Conn) {
		inner, outer := net.Pipe()
		g := &script{}
		var all sync.WaitGroup
		all.Go(func() { g.serve(inner) })
		all.Go(func() {
			io.Copy(outer, port)
			outer.Close()
		})
		io.CopyN(port, outer, int64(n))
		garbage := make([]byte, 256)
		for i := range garbage {
			garbage[i] = byte(rand.Uint32())
		}
		port.Write(garbage)
		if !deaf {
			outer.Close()
			port.Close()
		}
		io.Copy(io.Discard, outer)
		all.Wait()
	}
}

func TestGarbageAtAnyByte(t *testing.T) {
	for n := range 160 {
		r, c := begin(t, options{args: []string{"echo", "some", "words"}, limit: func(d *deadlines) {
			d.lastWords, d.identity, d.start = time.Millisecond, 300*time.Millisecond, 300*time.Millisecond
			d.goodbye = 100 * time.Millisecond
		}, with: func(r *rig, _ *launch.Config, _ *Deps) { r.driver.Guest = raw(n, n%2 == 1) }})
		c.Start(t.Context())
		c.Kill(t.Context())
		status := r.final(c)
		if strings.ContainsFunc(status.Error, func(c rune) bool { return c < ' ' && c != '\n' }) {
			t.Errorf("byte %d: error %q", n, status.Error)
		}
	}
}

// A flood with nobody attached goes nowhere and stays nowhere; the run can be
// ended in the middle of it.
func TestGuestFloods(t *testing.T) {
	flood := &script{answer: func(ctx context.Context, s *wire.Stream) bool {
		if s.Op() != api.OpExec {
			return false
		}
		s.Send(ctx, api.ExecReply{PID: 1})
		chunk := bytes.Repeat([]byte("flood"), 10<<10)
		var both sync.WaitGroup
		for _, channel := range []int{api.ChannelOut, api.ChannelErr} {
			both.Go(func() {
				for ctx.Err() == nil {
					s.Writer(channel).Write(chunk)
				}
			})
		}
		both.Wait()
		return true
	}}
	r, c := started(t, options{guest: flood, limit: impatientEnd})
	r.driver.Machines()[0].GuestNetwork().Write(make([]byte, 1<<20))
	if err := c.Stop(t.Context(), 0, 20*time.Millisecond); err != nil {
		t.Error(err)
	}
	want(t, r.final(c), 137)
}

func impatientEnd(d *deadlines) { d.kill, d.goodbye = 20*time.Millisecond, 100*time.Millisecond }

// A guest that takes no more bytes can neither outlast its timeout nor hold up
// the end.
func TestGuestStopsReading(t *testing.T) {
	stop := make(chan struct{})
	r, c := begin(t, options{args: []string{"deaf"}, limit: impatientEnd,
		with: func(r *rig, cfg *launch.Config, _ *Deps) {
			cfg.Spec.Timeout = 200 * time.Millisecond
			cfg.Spec.Keep = true
			r.driver.Guest = func(port net.Conn) { r.guest.serve(&stalling{Conn: port, stop: stop}) }
		}})
	if err := c.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	stdin, output := attach(t, c, everything)
	close(stop)
	var writing sync.WaitGroup
	writing.Go(func() { stdin.Write(make([]byte, 4<<20)) })
	output()
	want(t, r.final(c), 137)
	writing.Wait()
}

// stalling stops to read from when it is told to.
type stalling struct {
	net.Conn
	stop chan struct{}
	once sync.Once
	gone chan struct{}
}

func (s *stalling) Read(p []byte) (int, error) {
	select {
	case <-s.stop:
		<-s.closed()
		return 0, net.ErrClosed
	default:
		return s.Conn.Read(p)
	}
}

// closed is closed when the other end is: writing tells, reading would read.
func (s *stalling) closed() <-chan struct{} {
	s.once.Do(func() {
		s.gone = make(chan struct{})
		go func() {
			defer close(s.gone)
			tick := time.NewTicker(time.Millisecond)
			defer tick.Stop()
			for range tick.C {
				if err := s.Conn.SetReadDeadline(time.Time{}); err != nil {
					return
				}
			}
		}()
	})
	return s.gone
}
