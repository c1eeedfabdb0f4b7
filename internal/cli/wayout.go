package cli

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"creel/internal/cli/command"
	"creel/internal/sandbox"

	"golang.org/x/term"
)

const (
	// maxSignals one right after the other end a command that passes signals
	// on: its process may not mind them, and its end may take long.
	maxSignals = 4
	// burst is how long after one signal the next is still of the same wish.
	burst = 2 * time.Second
	// killPatience is how long a task that is killed by its user may take to be
	// gone.
	killPatience = 5 * time.Second
)

// wayOut is what a user gets who sends a command signal after signal.
type wayOut struct {
	env  Env
	exit func(code int) // os.Exit
	// end is tried first, in the background; nil: there is nothing to end.
	end func()
	// patience is how long end may take to have the command return.
	patience time.Duration
	// said comes with the exit: what goes on, and what remains.
	said string
}

// newWayOut is that of a command that leaves what it follows as it is.
func newWayOut(env Env, said string) wayOut { return wayOut{env: env, exit: os.Exit, said: said} }

// watch gives the way out until the returned function is called.
func (w wayOut) watch(ctx context.Context) (stop func()) {
	fd := int(w.env.In.Fd())
	if state, err := term.GetState(fd); err == nil {
		exit := w.exit
		w.exit = func(code int) { term.Restore(fd, state); exit(code) }
	}
	signals := make(chan os.Signal, maxSignals)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	ctx, cancel := context.WithCancel(ctx)
	go w.await(ctx, signals, time.Now)
	return func() {
		signal.Stop(signals)
		cancel()
	}
}

// await counts signals that come one right after the other, and leaves at the
// last. Those of a long session, each handled by its task, are no wish to leave.
func (w wayOut) await(ctx context.Context, signals <-chan os.Signal, now func() time.Time) {
	var last time.Time
	for n := 0; n < maxSignals; {
		select {
		case <-signals:
		case <-ctx.Done():
			return
		}
		if at := now(); at.Sub(last) > burst {
			n, last = 1, at
		} else {
			n, last = n+1, at
		}
	}
	w.leave(ctx)
}

func (w wayOut) leave(ctx context.Context) {
	// The others may be writing: these words are Creel's own, and need no cleaning.
	errs := command.Raw(w.env.Err)
	if w.end != nil {
		fmt.Fprintf(errs, "\ncreel: got %d SIGTERM/SIGINTs: killing the task\n", maxSignals)
		go w.end()
		late := time.NewTimer(w.patience)
		defer late.Stop()
		select {
		case <-ctx.Done(): // it has ended as any other
			return
		case <-late.C:
		}
	}
	fmt.Fprintf(errs, "\ncreel: got %d SIGTERM/SIGINTs, forcefully exiting; %s\n", maxSignals, w.said)
	w.exit(sandbox.ExitCreel)
}
