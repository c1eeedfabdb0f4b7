package cli

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// Signals that a task handles now and then are no wish to leave, however many
// there are; four one right after the other are.
func TestOnlyABurstOfSignalsIsAWayOut(t *testing.T) {
	for _, c := range []struct {
		gap    time.Duration
		n      int
		leaves bool
	}{{5 * time.Second, 50, false}, {time.Second, maxSignals - 1, false}, {time.Second, maxSignals, true}} {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			var said bytes.Buffer
			code := 0
			w := wayOut{env: Env{Streams: Streams{Err: &said}}, exit: func(c int) { code = c }, said: "the task goes on"}
			signals := make(chan os.Signal)
			done := make(chan struct{})
			go func() { w.await(ctx, signals, time.Now); close(done) }()
			for range c.n {
				time.Sleep(c.gap) // of the bubble's clock
				signals <- syscall.SIGINT
			}
			synctest.Wait()
			cancel()
			<-done
			if (code == 125) != c.leaves || strings.Contains(said.String(), "forcefully exiting; the task goes on") != c.leaves {
				t.Errorf("%d signals, one each %s: exit %d, %q", c.n, c.gap, code, said.String())
			}
		})
	}
}

// A foreground task is killed, and its run ends as any other. Only where that
// does not come is it left, with what remains.
func TestWayOutOfARunEndsIt(t *testing.T) {
	for _, ends := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithCancelCause(t.Context())
			var said bytes.Buffer
			code := 0
			w := wayOut{env: Env{Streams: Streams{Err: &said}}, exit: func(c int) { code = c }, patience: killPatience, said: "something remains",
				end: func() {
					if ends {
						cancel(errors.New("the run has ended"))
					}
				}}
			began := time.Now()
			w.leave(ctx)
			cancel(io.EOF)
			if left := code == 125 && strings.Contains(said.String(), "something remains"); left == ends || left && time.Since(began) != killPatience {
				t.Errorf("it ends: %v; exit %d after %s, %q", ends, code, time.Since(began), said.String())
			}
			if !strings.Contains(said.String(), "killing the task") {
				t.Errorf("it says %q", said.String())
			}
		})
	}
}
