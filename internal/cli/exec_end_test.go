package cli

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"creel/internal/guest/api"
	"creel/internal/guest/host"
	"creel/internal/sandbox"
	"creel/internal/wire"
)

// A command that was told to end does, though the process goes on or its output
// is held open.
func TestExecThatIsToldToEnd(t *testing.T) {
	ours, theirs := net.Pipe()
	guest := wire.NewConn(theirs, wire.Options{Handler: func(ctx context.Context, s *wire.Stream) {
		s.Send(ctx, api.ExecReply{PID: 1})
		var c api.ExecControl
		for s.Recv(ctx, &c) == nil { // a signal changes nothing
		}
		<-ctx.Done()
	}})
	defer guest.Close()
	client := host.New(ours)
	defer client.Close()
	x, err := client.Exec(t.Context(), sandbox.Process{Args: []string{"x"}})
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	env := Env{Streams: Streams{In: null, Out: &bytes.Buffer{}, Err: &bytes.Buffer{}}}
	// Whatever followExec does not take would end the tests.
	_, stop := toldToEnd(time.Hour)
	defer stop()
	ended := make(chan error, 1)
	go func() {
		ended <- followExec(t.Context(), env, outputs{&bytes.Buffer{}, &bytes.Buffer{}}, x, sandbox.Process{}, nil, 10*time.Millisecond)
	}()
	tick := time.NewTicker(20 * time.Millisecond) // it may not listen yet
	defer tick.Stop()
	give := time.After(10 * time.Second)
	for {
		select {
		case err := <-ended:
			exit, ok := errors.AsType[*ExitError](err)
			if !ok || exit.Code != 143 || !strings.Contains(exit.Err.Error(), "has not ended") {
				t.Errorf("got %v", err)
			}
			return
		case <-tick.C:
			syscall.Kill(os.Getpid(), syscall.SIGTERM)
		case <-give:
			t.Fatal("it does not end")
		}
	}
}
