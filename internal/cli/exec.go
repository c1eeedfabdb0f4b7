package cli

import (
	"context"
	"errors"
	"fmt"
	"io"

	"creel/internal/guest/host"
	"creel/internal/keeper/socket"
	"creel/internal/sandbox"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

func newExec(env Env) *cobra.Command {
	var p sandbox.Process
	var vars []string
	c := &cobra.Command{
		Use: "exec [flags] SANDBOX COMMAND [ARG...]", Short: "Run one more process in a running sandbox",
		Long: "Run one more process in a running sandbox.\n\n" +
			"The process ends with this command, by SIGHUP and, 5 s later, SIGKILL; what it has put into a\n" +
			"session of its own (setsid) goes on.",
		Example: "  creel exec -it web sh\n  creel exec -u nobody web id",
		Args:    cobra.MinimumNArgs(2), ValidArgsFunction: completeSandboxes(env, true),
		RunE: func(c *cobra.Command, args []string) error {
			p.Args = args[1:]
			p.Env = vars
			return creelFailed(execIn(c.Context(), env, rawOf(env), args[0], p))
		},
	}
	fs := c.Flags()
	fs.SetInterspersed(false)
	fs.BoolVarP(&p.Interactive, "interactive", "i", false, "keep stdin open")
	fs.BoolVarP(&p.TTY, "tty", "t", false, "give the process a terminal")
	fs.StringVarP(&p.User, "user", "u", "", "user, `name|uid[:group|gid]` (default: the task's)")
	fs.StringVarP(&p.Dir, "workdir", "w", "", "working `directory` (default: the task's)")
	fs.StringArrayVarP(&vars, "env", "e", nil, "set a variable, `NAME=value`")
	return likeDocker(c)
}

// execIn runs p beside a sandbox's task; what p leaves open is as the task's.
func execIn(ctx context.Context, env Env, to outputs, ref string, p sandbox.Process) error {
	if p.TTY && !term.IsTerminal(int(env.In.Fd())) {
		return errors.New("-t needs a terminal on standard input; leave it out")
	}
	app, err := env.Open(ctx)
	if err != nil {
		return err
	}
	f, err := app.Engine.Find(ctx, ref)
	if err != nil {
		return err
	}
	if err := app.Engine.AdmitExec(ctx, f, p.Env, progressTo(env)); err != nil {
		return err
	}
	task := f.Record.Config.Process
	p.Env = append(append([]string{}, task.Env...), p.Env...)
	if p.User == "" {
		p.User = task.User
	}
	if p.Dir == "" {
		p.Dir = task.Dir
	}
	return withClient(ctx, app, f, func(k *socket.Client) error {
		x, err := k.Exec(ctx, p)
		if err != nil {
			return &ExitError{Code: codeOf(err), Err: err}
		}
		defer x.Close()
		return followExec(ctx, env, to, x, p)
	})
}

func followExec(ctx context.Context, env Env, to outputs, x *host.Exec, p sandbox.Process) error {
	restore, err := rawTerminal(env, p.TTY)
	if err != nil {
		return err
	}
	defer restore()
	if p.Interactive {
		go func() { io.Copy(x.Stdin(), env.In); x.Stdin().Close() }()
	}
	defer forward(ctx, env, x, p.TTY)()
	if err := carry(to, x.Stdout(), x.Stderr(), func() { x.Close() }); err != nil {
		return err // the process lost its streams, and is no longer followed
	}
	exit, err := x.Wait(ctx)
	if err != nil {
		return fmt.Errorf("wait for the process: %w", err)
	}
	if exit.Code != 0 {
		return &ExitError{Code: exit.Code}
	}
	return nil
}

func newAttach(env Env) *cobra.Command {
	var noStdin bool
	c := &cobra.Command{
		Use: "attach [--no-stdin] SANDBOX", Short: "Join a running task's streams",
		Example: "  creel attach web\n  creel attach --no-stdin web",
		Args:    cobra.ExactArgs(1), ValidArgsFunction: completeSandboxes(env, true),
		RunE: func(c *cobra.Command, args []string) error {
			ctx := c.Context()
			app, err := env.Open(ctx)
			if err != nil {
				return creelFailed(err)
			}
			f, err := app.Engine.Find(ctx, args[0])
			if err != nil {
				return creelFailed(err)
			}
			return creelFailed(withClient(ctx, app, f, func(k *socket.Client) error {
				return attach(ctx, env, k, f.Record.Config.Spec, !noStdin)
			}))
		},
	}
	c.Flags().BoolVar(&noStdin, "no-stdin", false, "only watch")
	return c
}

func attach(ctx context.Context, env Env, k *socket.Client, spec sandbox.Spec, stdin bool) error {
	stdin = stdin && spec.Interactive
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
	if stdin {
		go func() { io.Copy(att.Stdin, env.In); att.Stdin.Close() }()
	}
	defer forward(ctx, env, k, spec.TTY && stdin)()
	if err := carry(rawOf(env), att.Stdout, stderrOf(att, spec.TTY), func() { att.Close() }); err != nil {
		return err // the task goes on
	}
	status, err := k.Wait(ctx)
	if err != nil {
		return err
	}
	return outcome(status, spec)
}
