package cli

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"time"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"

	"creel/internal/engine"
	"creel/internal/engine/process"
	"creel/internal/guest/api"
	"creel/internal/keeper/socket"
	"creel/internal/sandbox"
)

// each runs do for every sandbox named, prints the name of each it was done
// for, and returns all errors.
func each(c *cobra.Command, env Env, refs []string, do func(context.Context, *App, engine.Found) error) error {
	app, err := env.existing(c.Context())
	if err != nil {
		return err
	}
	var errs []error
	for _, ref := range refs {
		f, err := app.Engine.FindAny(c.Context(), ref)
		if err == nil {
			err = do(c.Context(), app, f)
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		fmt.Fprintln(env.Out, ref)
	}
	return errors.Join(errs...)
}

// except leaves out of joined errors those that are target.
func except(err, target error) error {
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return err
	}
	return errors.Join(slices.DeleteFunc(slices.Clone(joined.Unwrap()), func(e error) bool { return errors.Is(e, target) })...)
}

// withClient connects to a running sandbox's keeper for the length of do.
func withClient(ctx context.Context, app *App, f engine.Found, do func(*socket.Client) error) error {
	client, err := app.Engine.Connect(ctx, f)
	if err != nil {
		return err
	}
	defer client.Close()
	return do(client)
}

func newStop(env Env) *cobra.Command {
	var seconds int
	var signal string
	c := &cobra.Command{
		Use: "stop [-t SECONDS] SANDBOX...", Short: "Ask a task to end, and kill it if it does not",
		Example: "  creel stop web\n  creel stop -t 60 -s INT web db",
		Args:    cobra.MinimumNArgs(1), ValidArgsFunction: completeSandboxes(env, true),
		RunE: func(c *cobra.Command, args []string) error {
			n := 0
			if signal != "" {
				var err error
				if n, err = process.ParseSignal(signal); err != nil {
					return err
				}
			}
			return each(c, env, args, func(ctx context.Context, app *App, f engine.Found) error {
				if !f.Running() {
					return app.Engine.ConfirmEnd(ctx, f) // as Docker: stopping what has ended is no error
				}
				return withClient(ctx, app, f, func(k *socket.Client) error {
					if err := k.Stop(ctx, n, grace(seconds)); err != nil {
						return err
					}
					_, err := k.Wait(ctx)
					return err
				})
			})
		},
	}
	c.Flags().IntVarP(&seconds, "time", "t", 10, "`seconds` to wait before killing it; -1 waits as long as it takes")
	c.Flags().IntVar(&seconds, "timeout", 10, "as newer Dockers have it: the same as --time, in `seconds`")
	c.Flags().MarkHidden("timeout") // it errs only where there is no such flag
	c.Flags().StringVarP(&signal, "signal", "s", "", "`signal` to ask with (default: the image's stop signal, else TERM)")
	return c
}

// grace is how long a task may take to end; of less than 0 s: as long as it does.
func grace(seconds int) time.Duration {
	const longest = time.Duration(math.MaxInt64)
	if seconds < 0 || seconds > int(longest/time.Second) {
		return longest
	}
	return time.Duration(seconds) * time.Second
}

func newKill(env Env) *cobra.Command {
	var signal string
	c := &cobra.Command{
		Use: "kill [-s SIGNAL] SANDBOX...", Short: "Send a task a signal",
		Example: "  creel kill -s HUP web",
		Args:    cobra.MinimumNArgs(1), ValidArgsFunction: completeSandboxes(env, true),
		RunE: func(c *cobra.Command, args []string) error {
			n, err := process.ParseSignal(signal)
			if err != nil {
				return err
			}
			return each(c, env, args, func(ctx context.Context, app *App, f engine.Found) error {
				return withClient(ctx, app, f, func(k *socket.Client) error { return k.Signal(ctx, n) })
			})
		},
	}
	c.Flags().StringVarP(&signal, "signal", "s", "KILL", "`signal` to send")
	return c
}

func newPause(env Env) *cobra.Command {
	return perClient(env, "pause", "Stop a sandbox's virtual CPUs", (*socket.Client).Pause)
}

func newUnpause(env Env) *cobra.Command {
	return perClient(env, "unpause", "Let a paused sandbox go on, with its clock set", (*socket.Client).Resume)
}

func perClient(env Env, name, short string, do func(*socket.Client, context.Context) error) *cobra.Command {
	return &cobra.Command{
		Use: name + " SANDBOX...", Short: short, Example: "  creel " + name + " web",
		Args: cobra.MinimumNArgs(1), ValidArgsFunction: completeSandboxes(env, true),
		RunE: func(c *cobra.Command, args []string) error {
			return each(c, env, args, func(ctx context.Context, app *App, f engine.Found) error {
				return withClient(ctx, app, f, func(k *socket.Client) error { return do(k, ctx) })
			})
		},
	}
}

func newRemove(env Env) *cobra.Command {
	var force bool
	c := &cobra.Command{
		Use: "rm [-f] SANDBOX...", Short: "Remove sandboxes: record, logs and disk",
		Example: "  creel rm web\n  creel rm -f web db",
		Args:    cobra.MinimumNArgs(1), ValidArgsFunction: completeSandboxes(env, false),
		RunE: func(c *cobra.Command, args []string) error {
			err := each(c, env, args, func(ctx context.Context, app *App, f engine.Found) error {
				return app.Engine.Remove(ctx, f, force)
			})
			if force { // as Docker: what is not there need not be removed
				err = except(err, errdefs.ErrNotFound)
			}
			return err
		},
	}
	c.Flags().BoolVarP(&force, "force", "f", false, "kill one that is running; no error where there is none")
	return c
}

func newRename(env Env) *cobra.Command {
	return &cobra.Command{
		Use: "rename SANDBOX NAME", Short: "Give a sandbox another name",
		Example: "  creel rename web web-old",
		Args:    cobra.ExactArgs(2), ValidArgsFunction: completeFirst(completeSandboxes(env, false)),
		RunE: func(c *cobra.Command, args []string) error {
			app, err := env.existing(c.Context())
			if err != nil {
				return err
			}
			f, err := app.Engine.Find(c.Context(), args[0])
			if err != nil {
				return err
			}
			return app.Engine.Rename(f, args[1])
		},
	}
}

func newWait(env Env) *cobra.Command {
	return &cobra.Command{
		Use: "wait SANDBOX...", Short: "Wait until tasks have ended and print their exit codes",
		Example: "  creel wait web",
		Args:    cobra.MinimumNArgs(1), ValidArgsFunction: completeSandboxes(env, false),
		RunE: func(c *cobra.Command, args []string) error {
			app, err := env.existing(c.Context())
			if err != nil {
				return err
			}
			for _, ref := range args {
				f, err := app.Engine.Find(c.Context(), ref)
				if err != nil {
					return err
				}
				status := f.Status
				if !f.Running() {
					err = app.Engine.ConfirmEnd(c.Context(), f)
				} else {
					err = withClient(c.Context(), app, f, func(k *socket.Client) error {
						status, err = k.Wait(c.Context())
						return err
					})
				}
				if err != nil {
					return err
				}
				fmt.Fprintln(env.Out, strconv.Itoa(status.ExitCode))
			}
			return nil
		},
	}
}

// codeOf is Docker's exit code for a process that could not be run.
func codeOf(err error) int {
	switch api.ErrorCode(err) {
	case api.CodeNotFound:
		return sandbox.ExitNotFound
	case api.CodeNotExecutable:
		return sandbox.ExitNotExecutable
	}
	return sandbox.ExitCreel
}
