package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"creel/internal/guest/api"
	"creel/internal/guest/host"
	"creel/internal/keeper/socket"
	"creel/internal/sandbox"
)

// execFlags are those of exec that are not about the process itself.
type execFlags struct {
	detach         bool
	vars, varFiles []string
	detachKeys     string
}

func newExec(env Env) *cobra.Command {
	var p sandbox.Process
	var f execFlags
	c := &cobra.Command{
		Use: "exec [flags] SANDBOX COMMAND [ARG...]", Short: "Run one more process in a running sandbox",
		Long: "Run one more process in a running sandbox.\n\n" +
			"The process ends with this command, by SIGHUP and, 5 s later, SIGKILL; what it has put into a\n" +
			"session of its own (setsid) goes on. SIGTERM and SIGHUP are passed on to it; where it has not\n" +
			"ended 10 s later, this command does.",
		Example: "  creel exec -it web sh\n  creel exec -u nobody web id",
		Args:    cobra.MinimumNArgs(2), ValidArgsFunction: completeFirst(completeSandboxes(env, true)),
		RunE: func(c *cobra.Command, args []string) error {
			p.Args = args[1:]
			var err error
			if p.Env, err = environment(f.vars, f.varFiles, os.LookupEnv); err != nil {
				return creelFailed(err)
			}
			return creelFailed(execIn(c.Context(), env, rawOf(env), args[0], p, f))
		},
	}
	fs := c.Flags()
	fs.SetInterspersed(false)
	fs.BoolVarP(&p.Interactive, "interactive", "i", false, "keep stdin open")
	fs.BoolVarP(&p.TTY, "tty", "t", false, "give the process a terminal")
	fs.BoolVarP(&f.detach, "detach", "d", false, "leave the process to itself: nothing of what it writes is kept")
	fs.StringVarP(&p.User, "user", "u", "", "user, `name|uid[:group|gid]` (default: the task's)")
	fs.StringVarP(&p.Dir, "workdir", "w", "", "working `directory` (default: the task's)")
	fs.StringArrayVarP(&f.vars, "env", "e", nil, "set a variable, `NAME=value`; NAME alone takes this environment's")
	fs.StringArrayVar(&f.varFiles, "env-file", nil, "read variables from a `file`, one to a line")
	registerDetachKeys(fs, &f.detachKeys)
	return c
}

// execIn runs p beside a sandbox's task; what p leaves open is as the task's.
func execIn(ctx context.Context, env Env, to outputs, ref string, p sandbox.Process, flags execFlags) error {
	keys, err := detachKeys(cmp.Or(flags.detachKeys, usualKeys), p.TTY, p.Interactive)
	if err != nil {
		return err
	}
	if p.TTY && !flags.detach && !term.IsTerminal(int(env.In.Fd())) {
		return errors.New("-t needs a terminal on standard input; leave it out")
	}
	app, err := env.existing(ctx)
	if err != nil {
		return err
	}
	f, err := app.Engine.Find(ctx, ref)
	if err != nil {
		return err
	}
	if p, err = app.Engine.PlanExec(ctx, f, p, progressTo(env)); err != nil {
		return err
	}
	return withClient(ctx, app, f, func(k *socket.Client) error {
		x, err := k.Exec(ctx, p)
		if err != nil {
			return &ExitError{Code: codeOf(err), Err: err}
		}
		defer x.Close()
		if flags.detach {
			return x.Detach(ctx)
		}
		defer newWayOut(env, "the process is ended, and the task of the sandbox goes on").watch(ctx)()
		return followExec(ctx, env, to, x, p, keys, endGrace)
	})
}

// endGrace is how long a process may take to end, with all that it has written,
// after what ended its command was passed on to it.
const endGrace = 10 * time.Second

// toldToEnd gets the signal that told this command to end, grace after it. The
// returned function ends that.
func toldToEnd(grace time.Duration) (late <-chan syscall.Signal, stop func()) {
	signals, out := make(chan os.Signal, 1), make(chan syscall.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGHUP)
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		select {
		case s := <-signals:
			timer := time.NewTimer(grace)
			defer timer.Stop()
			select {
			case <-timer.C:
				out <- s.(syscall.Signal)
			case <-ctx.Done():
			}
		case <-ctx.Done():
		}
	}()
	return out, func() {
		signal.Stop(signals)
		cancel()
	}
}

// followExec returns when the process has ended or, where it does not, grace
// after this command was told to end: whoever runs it waits for it.
func followExec(ctx context.Context, env Env, to outputs, x *host.Exec, p sandbox.Process, keys []byte, grace time.Duration) error {
	late, stop := toldToEnd(grace)
	defer stop()
	type end struct {
		exit api.ExecExit
		err  error
	}
	restore, err := rawTerminal(env, p.TTY)
	if err != nil {
		return err
	}
	defer restore()
	left := make(chan struct{})
	if p.Interactive {
		go func() {
			if sendInput(env, x.Stdin(), keys) {
				close(left)
			}
		}()
	}
	defer forward(ctx, env, x, p.TTY, true)()
	done := make(chan end, 1)
	go func() {
		if err := carry(to, x.Stdout(), x.Stderr(), func() { x.Close() }); err != nil {
			done <- end{err: err} // the process lost its streams, and is no longer followed
			return
		}
		exit, err := x.Wait(ctx)
		done <- end{exit, err}
	}()
	select {
	case e := <-done:
		if e.err == nil && e.exit.Code != 0 {
			return &ExitError{Code: e.exit.Code}
		}
		return e.err
	case <-left:
		return x.Detach(ctx)
	case s := <-late:
		return &ExitError{Code: sandbox.ExitSignalBase + int(s), Err: fmt.Errorf("the process has not ended %s after %s, and is hung up on", grace, s)}
	}
}

// attachFlags say how a task is joined.
type attachFlags struct {
	noStdin, sigProxy bool
	detachKeys        string
}

func newAttach(env Env) *cobra.Command {
	var flags attachFlags
	c := &cobra.Command{
		Use: "attach [flags] SANDBOX", Short: "Join a running task's streams",
		Long: "Join a running task's streams. What interrupts this command is sent to the task, as\n" +
			"Docker does; with --sig-proxy=false it only ends this command. Of a task with a\n" +
			"terminal the keys ctrl-p ctrl-q leave it running.",
		Example: "  creel attach web\n  creel attach --no-stdin --sig-proxy=false web",
		Args:    cobra.ExactArgs(1), ValidArgsFunction: completeFirst(completeSandboxes(env, true)),
		RunE: func(c *cobra.Command, args []string) error {
			return creelFailed(attachTo(c.Context(), env, args[0], flags))
		},
	}
	c.Flags().BoolVar(&flags.noStdin, "no-stdin", false, "only watch")
	c.Flags().BoolVar(&flags.sigProxy, "sig-proxy", true, "pass signals on to the task")
	registerDetachKeys(c.Flags(), &flags.detachKeys)
	return c
}

func attachTo(ctx context.Context, env Env, ref string, flags attachFlags) error {
	if _, err := parseKeys(flags.detachKeys); err != nil {
		return err
	}
	app, err := env.existing(ctx)
	if err != nil {
		return err
	}
	f, err := app.Engine.Find(ctx, ref)
	if err != nil {
		return err
	}
	if f.Status.Paused {
		return fmt.Errorf("sandbox %s is paused; unpause it first (`creel unpause %[1]s`)", ref)
	}
	if flags.sigProxy {
		name := f.Record.Config.Spec.Name
		defer newWayOut(env, fmt.Sprintf("the task goes on: `creel attach %[1]s` joins it again, `creel stop %[1]s` ends it", name)).watch(ctx)()
	}
	return withClient(ctx, app, f, func(k *socket.Client) error { return attach(ctx, env, k, f.Record.Config.Spec, flags) })
}

func attach(ctx context.Context, env Env, k *socket.Client, spec sandbox.Spec, flags attachFlags) error {
	stdin := !flags.noStdin && spec.Interactive
	keys, err := detachKeys(flags.detachKeys, spec.TTY, stdin)
	if err != nil {
		return err
	}
	att, err := k.Attach(ctx, socket.AttachRequest{Stdin: stdin, Stdout: true, Stderr: !spec.TTY})
	if err != nil {
		return err
	}
	defer att.Close()
	restore, err := rawTerminal(env, spec.TTY && stdin)
	if err != nil {
		return err
	}
	defer restore()
	left := make(chan struct{})
	if stdin {
		go func() {
			if sendInput(env, att.Stdin, keys) {
				close(left)
			}
		}()
	}
	defer forward(ctx, env, k, spec.TTY && stdin, flags.sigProxy)()
	done := make(chan error, 1)
	go func() { done <- carry(rawOf(env), att.Stdout, stderrOf(att, spec.TTY), func() { att.Close() }) }()
	select {
	case err := <-done:
		if err != nil {
			return err // the task goes on
		}
	case <-left:
		restore()
		fmt.Fprintf(env.Err, "\n%s\n", goesOn(spec))
		return nil
	}
	status, err := k.Wait(ctx)
	if err != nil {
		return err
	}
	return outcome(status, spec)
}

// goesOn is said to who has left a task.
func goesOn(spec sandbox.Spec) string {
	return fmt.Sprintf("creel: detached; the task goes on, and `creel attach %s` joins it again", spec.Name)
}
