package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"creel/internal/cli/auditcmd"
	"creel/internal/cli/command"
	"creel/internal/cli/imagecmd"
	"creel/internal/config"
	"creel/internal/engine"
	"creel/internal/keeper/socket"
	"creel/internal/printable"
	"creel/internal/sandbox"
)

func newRun(env Env) *cobra.Command {
	var f runFlags
	c := &cobra.Command{
		Use:   "run [flags] IMAGE [COMMAND [ARG...]]",
		Short: "Run a command in a new MicroVM that is gone when it ends",
		Long: "Run a command in a new MicroVM that is gone when it ends.\n\n" +
			"The task ends with this command, however that ends; with -d it goes on by itself.",
		Example: "  creel run debian echo hello\n" +
			"  git archive HEAD | creel run -i debian sh -c 'tar x && ls'\n" +
			"  creel run -it -m 1g --cpus 2 debian bash",
		Args: cobra.MinimumNArgs(1), ValidArgsFunction: completeFirst(imageNames(env)),
		RunE: func(c *cobra.Command, args []string) error {
			defaults, _, err := config.Load(os.LookupEnv)
			if err != nil {
				return creelFailed(err)
			}
			spec, err := f.spec(args, os.LookupEnv)
			if err != nil {
				return creelFailed(err)
			}
			f.fillIn(&spec, defaults)
			if spec.Policy, err = f.policy.Text(f.warnings(env)); err != nil {
				return creelFailed(err)
			}
			return creelFailed(run(c.Context(), env, spec, &f))
		},
	}
	f.register(c.Flags())
	return c
}

// run does what `docker run` does: the task's streams are this process's, and
// so are its signals and its exit code.
func run(ctx context.Context, env Env, spec sandbox.Spec, f *runFlags) error {
	if spec.TTY && !spec.Keep && !term.IsTerminal(int(env.In.Fd())) {
		return fmt.Errorf("-t needs a terminal on standard input; leave it out")
	}
	keys, err := detachKeys(f.detachKeys, spec.TTY, spec.Interactive)
	if err != nil {
		return err
	}
	stopWatch := func() {}
	if f.sigProxy {
		stopWatch = newWayOut(env, "no task was started; `creel ps -a` shows what remains").watch(ctx)
	}
	defer func() { stopWatch() }()
	app, err := env.Open(ctx)
	if err != nil {
		return err
	}
	starting, stop := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	sb, err := app.Engine.Create(starting, spec, f.progress(env), func(ctx context.Context) error {
		return imagecmd.Ensure(ctx, env.Err, app.imageStore(), spec.Image, imagecmd.Wanted{When: f.pull, Platform: f.platform, Quiet: f.quiet})
	})
	stop()
	if err != nil {
		return err
	}
	if spec.Keep {
		if err := detach(ctx, env, sb); err != nil {
			return err
		}
		refill(env, app, sb)
		return nil
	}
	var killed atomic.Bool
	if f.sigProxy {
		stopWatch()
		stopWatch = wayOut{
			env: env, exit: os.Exit, patience: killPatience, said: remains(spec),
			end: func() {
				killed.Store(true)
				sb.Client.Kill(context.WithoutCancel(ctx)) // one that cannot be reached is ending
			},
		}.watch(ctx)
	}
	status, err := follow(ctx, env, sb, following{keys: keys, sigProxy: f.sigProxy})
	if errors.Is(err, errDetached) {
		fmt.Fprintf(env.Err, "\n%s\n", goesOn(spec))
		if f.receipt != "" {
			fmt.Fprintf(env.Err, "creel: no receipt is written: `creel receipt %s` prints it once the task has ended\n", sb.Record.Config.Spec.Name)
		}
		refill(env, app, sb)
		return sb.Client.Close()
	}
	if err != nil {
		err = sb.Lost(err)
	}
	if released := sb.Release(context.WithoutCancel(ctx)); err == nil {
		err = released
	}
	refill(env, app, sb)
	var receipt error
	if f.receipt != "" {
		receipt = writeReceipt(ctx, app, sb, f.receipt)
	}
	if err != nil {
		if status.DiskFault != "" { // the reason of the rest, most likely
			err = fmt.Errorf("%s\n%w", status.DiskFault, err)
		}
		return errors.Join(err, receipt)
	}
	if !f.quiet {
		printDenials(env.Err, status)
		printTroubles(env.Err, status)
		printFull(env.Err, status)
		fmt.Fprintf(env.Err, "creel: %s\n", summary(status, killed.Load()))
	}
	if receipt != nil {
		return receipt
	}
	return outcome(status, spec)
}

// remains is what there is of a task that was killed in the foreground, and is
// not known to be gone.
func remains(spec sandbox.Spec) string {
	return fmt.Sprintf("the task was to be killed, but is not gone after %s: `creel ps -a` shows whether something remains, and `creel rm -f %s` removes it",
		killPatience, spec.ID.Short())
}

// refill has another VM wait for the next task, where that is wanted. This task
// has ended as it has, whether or not there will be one.
func refill(env Env, app *App, sb *engine.Sandbox) {
	if err := app.Engine.Standby(sb); err != nil {
		fmt.Fprintf(env.Err, "creel: warning: no VM will wait for the next task: %v\n", err)
	}
}

// writeReceipt also tells of a run that failed: it has happened.
func writeReceipt(ctx context.Context, app *App, sb *engine.Sandbox, file string) error {
	data, err := app.Engine.Receipt(context.WithoutCancel(ctx), string(sb.Record.Config.Spec.ID))
	if err != nil {
		return err
	}
	return auditcmd.WriteReceipt(file, string(sb.Record.Config.Spec.ID), data)
}

// summary is a task's end in one line; killed: by who sent signal after signal.
func summary(s sandbox.Status, killed bool) string {
	line := fmt.Sprintf("exit %d after %s", s.ExitCode, s.FinishedAt.Sub(s.StartedAt).Round(time.Millisecond))
	if s.StartedAt.IsZero() {
		line = fmt.Sprintf("exit %d, the task did not start", s.ExitCode)
	}
	if killed {
		line += ", killed by you"
	}
	if s.OOMKilled {
		line += ", out of memory"
	}
	if s.MemoryPeakBytes > 0 {
		line += ", memory peak " + units.BytesSize(float64(s.MemoryPeakBytes))
	}
	if s.DiskWrittenBytes > 0 {
		line += ", disk written " + units.BytesSize(float64(s.DiskWrittenBytes))
	}
	if s.BytesOut > 0 || s.BytesIn > 0 {
		line += fmt.Sprintf(", network %s out, %s in", units.BytesSize(float64(s.BytesOut)), units.BytesSize(float64(s.BytesIn)))
	}
	return line + ", nothing of the VM remains"
}

// detach starts the task and leaves it to its keeper.
func detach(ctx context.Context, env Env, sb *engine.Sandbox) error {
	if err := sb.Client.Start(ctx); err != nil {
		released := sb.Release(context.WithoutCancel(ctx))
		return errors.Join(&ExitError{Code: codeOf(err), Err: err}, released)
	}
	if _, err := fmt.Fprintln(env.Out, sb.Record.Config.Spec.ID); err != nil {
		return errors.Join(fmt.Errorf("sandbox %s was started, but its ID cannot be printed: %w; `creel rm -f %s` ends it",
			sb.Record.Config.Spec.Name, err, sb.Record.Config.Spec.Name), sb.Client.Close())
	}
	return sb.Client.Close()
}

// outcome is the task's end as an exit code, with words where it was not the
// task's own doing.
func outcome(status sandbox.Status, spec sandbox.Spec) error {
	switch {
	case status.Error != "":
		return &ExitError{Code: status.ExitCode, Err: errors.New(printable.Line(status.Error))}
	case status.TimedOut:
		return &ExitError{Code: status.ExitCode, Err: fmt.Errorf("the task was stopped after its timeout of %s", spec.Timeout)}
	case status.ExitCode != 0:
		return &ExitError{Code: status.ExitCode}
	}
	return nil
}

// following says how a foreground run is followed.
type following struct {
	keys     []byte // that detach; nil: none do
	sigProxy bool
}

// follow carries the task's streams and signals until nothing remains of it, or
// its user has detached: then the error is errDetached.
func follow(ctx context.Context, env Env, sb *engine.Sandbox, f following) (sandbox.Status, error) {
	spec := sb.Record.Config.Spec
	att, err := sb.Client.Attach(ctx, socket.AttachRequest{
		Stdin: spec.Interactive, EndsStdin: true, Stdout: true, Stderr: !spec.TTY,
	})
	if err != nil {
		return sandbox.Status{}, err
	}
	defer att.Close()
	restore, err := rawTerminal(env, spec.TTY)
	if err != nil {
		return sandbox.Status{}, err
	}
	defer restore()

	if spec.TTY {
		defer noteDenials(ctx, env, sb.Client)()
	}
	keys := newKeyboard()
	// A start that fails ends the run; its status says why.
	if err := sb.Client.Start(ctx); err == nil {
		if spec.Interactive {
			go keys.send(func() bool { return sendInput(env, att.Stdin, f.keys) })
		}
		defer forward(ctx, env, sb.Client, spec.TTY, f.sigProxy)()
	}
	done := make(chan error, 1)
	go func() {
		done <- carry(rawOf(env), att.Stdout, stderrOf(att, spec.TTY), func() {
			sb.Client.Kill(context.WithoutCancel(ctx)) // one that cannot be reached is ending
		})
	}()
	unwritten, detached := keys.await(done, command.Raw(env.Err), func() error { return sb.Detach(ctx) })
	if detached {
		return sandbox.Status{}, errDetached
	}
	status, err := sb.Client.Wait(ctx)
	if unwritten != nil {
		err = fmt.Errorf("the task was stopped, since its output cannot be written: %w", unwritten)
	}
	return status, err
}

// rawTerminal hands the terminal to the task; restore gives it back.
func rawTerminal(env Env, tty bool) (restore func(), err error) {
	if !tty {
		return func() {}, nil
	}
	fd := int(env.In.Fd())
	state, err := term.MakeRaw(fd)
	if err != nil {
		return nil, fmt.Errorf("set terminal to raw mode: %w", err)
	}
	return func() { term.Restore(fd, state) }, nil
}

// controlled is a task, or a process beside it.
type controlled interface {
	Signal(ctx context.Context, signal int) error
	Resize(ctx context.Context, rows, cols uint16) error
}

// forward passes this process's signals, where that is wanted, and its terminal's
// size on to the task.
func forward(ctx context.Context, env Env, c controlled, tty, proxy bool) (stop func()) {
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGWINCH)
	if proxy {
		signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT,
			syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGCONT)
	}
	ctx, cancel := context.WithCancel(ctx)
	var done sync.WaitGroup
	done.Go(func() {
		if tty {
			resize(ctx, env, c)
		}
		for {
			select {
			case <-ctx.Done():
				return
			case s := <-signals:
				if s != syscall.SIGWINCH {
					c.Signal(ctx, int(s.(syscall.Signal))) // a task that has ended gets none
				} else if tty {
					resize(ctx, env, c)
				}
			}
		}
	})
	return func() {
		signal.Stop(signals)
		cancel()
		done.Wait()
	}
}

func resize(ctx context.Context, env Env, c controlled) {
	cols, rows, err := term.GetSize(int(env.In.Fd()))
	if err == nil && rows > 0 && cols > 0 {
		c.Resize(ctx, uint16(rows), uint16(cols)) // a task that has ended needs none
	}
}
