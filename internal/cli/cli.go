// Package cli is the command line: it translates words into Specs and calls,
// and results into text and exit codes. It must not decide, keep state, or
// start processes of its own.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"time"

	"creel/internal/audit"
	"creel/internal/cli/auditcmd"
	"creel/internal/cli/command"
	"creel/internal/cli/hostcmd"
	"creel/internal/cli/imagecmd"
	"creel/internal/cli/manual"
	"creel/internal/cli/policycmd"
	"creel/internal/cli/secretcmd"
	"creel/internal/config"
	"creel/internal/doctor"
	"creel/internal/engine"
	"creel/internal/image"
	"creel/internal/image/registry"
	"creel/internal/sandbox"
	"creel/internal/secret/store"
	"creel/internal/template"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// App is what commands act with. It is opened when a command needs it, so that
// help works on a machine that has nothing.
type App struct {
	Engine     *engine.Engine
	Images     *image.Store
	Templates  *template.Store
	KernelDir  string
	Registry   registry.Options
	PruneAfter time.Duration // of images without a name
	Doctor     doctor.Deps
	Tiers      []byte                      // the file that is in force
	RotateKey  func(context.Context) error // of the audit record
	PruneAudit func(context.Context, audit.PruneOptions) (audit.PruneResult, error)
}

// Streams are a command's standard streams.
type Streams = command.Streams

// ExitError carries an exit code.
type ExitError = command.ExitError

// Env is what the process gives the command line.
type Env struct {
	Streams
	Version string
	Logging *Logging // filled in before a command runs
	Open    func(context.Context) (*App, error)
	Parts   func(context.Context) []hostcmd.Part
	// AuditDir is where the record is, without opening it.
	AuditDir func() (string, error)
	// Secrets opens the secrets and nothing else.
	Secrets func(context.Context) (*store.Store, error)
}

// exitReaderGone is the exit code of a filter whose reader went away, as a shell
// has it: 128 and SIGPIPE.
const exitReaderGone = 128 + int(syscall.SIGPIPE)

// Main runs one command line and returns the exit code. SIGPIPE is not to end
// the process: what a command started has to go first.
func Main(ctx context.Context, env Env, args []string) int {
	out, errs := command.NewOutput(env.Out), command.NewOutput(env.Err)
	env.Out, env.Err = out, errs
	root := Root(env)
	root.SetArgs(args)
	exit := exitOf(root.ExecuteContext(ctx))
	if err := out.Finish(); err != nil {
		exit = unwritten(exit, "standard output", err)
	}
	if err := errs.Finish(); err != nil && errors.Is(exit.Err, err) { // a task's; nobody misses Creel's own words
		exit = unwritten(exit, "standard error", err)
	}
	if exit.Err != nil {
		fmt.Fprintf(errs, "creel: %s\n", indented(exit.Err.Error()))
		errs.Finish() // nobody could be told
	}
	return exit.Code
}

// unwritten is the end of a command one of whose streams could not be written.
// It ends in silence where the reader has gone, as a Unix filter does.
func unwritten(exit *ExitError, stream string, err error) *ExitError {
	if command.ReaderGone(err) {
		return &ExitError{Code: exitReaderGone}
	}
	if errors.Is(exit.Err, err) {
		return exit
	}
	err = fmt.Errorf("write %s: %w; not all was written, see where it goes", stream, reason(err))
	return &ExitError{Code: max(exit.Code, 1), Err: errors.Join(exit.Err, err)}
}

func exitOf(err error) *ExitError {
	if err == nil {
		return &ExitError{}
	}
	if exit, ok := errors.AsType[*ExitError](err); ok {
		return exit
	}
	return &ExitError{Code: 1, Err: err}
}

// reason leaves out that a standard stream is a file: its path says nothing.
func reason(err error) error {
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		return e.Err
	}
	return err
}

// indented keeps what a text of others has in it from looking like a message of
// Creel's own.
func indented(s string) string { return strings.ReplaceAll(s, "\n", "\n  ") }

// Root is the tree of all commands, which the manual is made from.
func Root(env Env) *cobra.Command {
	root := &cobra.Command{
		Use:   "creel",
		Short: "Run each task in its own disposable MicroVM",
		Long: "Creel runs each task in its own disposable MicroVM, cloned from a template that was\n" +
			"booted once and frozen. When the task ends, nothing of the VM remains.",
		Version:           env.Version,
		SilenceErrors:     true,
		SilenceUsage:      true,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
	}
	root.SetFlagErrorFunc(flagError)
	root.SetIn(env.In)
	root.SetOut(env.Out)
	root.SetErr(env.Err)
	root.AddCommand(sandboxCommands(env)...)
	root.AddCommand(asDocker(env)...)
	root.AddCommand(
		imagecmd.New(imageEnv(env)), newTemplate(env),
		hostcmd.NewKernel(hostEnv(env)), hostcmd.NewConfig(hostEnv(env)), hostcmd.NewDoctor(hostEnv(env)), hostcmd.NewVersion(hostEnv(env)),
		policycmd.New(policyEnv(env)), auditcmd.New(auditEnv(env)), auditcmd.NewReceipt(auditEnv(env)),
		secretcmd.New(secretEnv(env)), manual.New(env.Streams),
	)
	env.Logging.register(root)
	explainUsage(root)
	completeFlags(env, root)
	return root
}

// noState is the error of a command that only looks, or needs what is there,
// where there is no state directory: a name mistyped makes none.
type noState struct{ dir string }

func (e *noState) Error() string {
	return fmt.Sprintf("there is nothing, since the state directory %s does not exist; check CREEL_STATE_DIR, or start with `creel run`", e.dir)
}

// existing is Open for commands that make nothing of their own.
func (env Env) existing(ctx context.Context) (*App, error) {
	cfg, _, err := config.Load(os.LookupEnv)
	if err != nil {
		return nil, err
	}
	if _, err := os.Lstat(cfg.StateDir); errors.Is(err, fs.ErrNotExist) {
		return nil, &noState{cfg.StateDir}
	}
	return env.Open(ctx)
}

// tellNoState says on standard error why a list is empty, where that is for
// want of a state directory; another error is none of its business.
func tellNoState(env Env, err error) bool {
	none, ok := errors.AsType[*noState](err)
	if ok {
		fmt.Fprintf(env.Err, "creel: %v\n", none)
	}
	return ok
}

// sandboxCommands are those about sandboxes, each with the flags of Docker's
// that it knows and has not.
func sandboxCommands(env Env) []*cobra.Command {
	all := []*cobra.Command{
		newRun(env), newPS(env), newLogs(env), newExec(env), newAttach(env), newStop(env), newKill(env), newWait(env),
		newInspect(env), newRemove(env), newRename(env), newCopy(env), newTop(env), newPause(env), newUnpause(env),
	}
	for _, c := range all {
		command.KnowForeign(c, foreign[c.Name()])
		switch c.Name() {
		case "run", "exec", "attach":
			likeDocker(c)
		}
	}
	return all
}

// explainUsage lets wrong usage of every command say what the right one is.
func explainUsage(c *cobra.Command) {
	for _, sub := range c.Commands() {
		explainUsage(sub)
	}
	if args := c.Args; args != nil {
		c.Args = func(c *cobra.Command, words []string) error {
			err := args(c, words)
			if err == nil {
				return nil
			}
			if strings.HasPrefix(err.Error(), "unknown command ") { // what cobra says of a command without arguments
				err = errors.New("takes no arguments")
			}
			return fmt.Errorf("`%s` %w\n\nUsage:  %s\n\nsee `%[1]s --help`", c.CommandPath(), err, c.UseLine())
		}
	}
}

func hostEnv(env Env) hostcmd.Env {
	return hostcmd.Env{
		Streams: env.Streams, Parts: env.Parts,
		KernelDir: func(ctx context.Context) (string, error) {
			app, err := env.Open(ctx)
			if err != nil {
				return "", err
			}
			return app.KernelDir, nil
		},
		Doctor: func(ctx context.Context) (doctor.Deps, error) {
			app, err := env.Open(ctx)
			if err != nil {
				return doctor.Deps{}, err
			}
			return app.Doctor, nil
		},
	}
}

func imageEnv(env Env) imagecmd.Env {
	open := func(from func(context.Context) (*App, error)) func(context.Context) (*imagecmd.Store, error) {
		return func(ctx context.Context) (*imagecmd.Store, error) {
			app, err := from(ctx)
			if err != nil {
				return nil, err
			}
			return app.imageStore(), nil
		}
	}
	return imagecmd.Env{
		Streams: env.Streams, Open: open(env.Open), Look: open(env.existing),
		Nothing: func(ctx context.Context) bool {
			_, err := env.existing(ctx)
			return tellNoState(env, err)
		},
	}
}

func (a *App) imageStore() *imagecmd.Store {
	return &imagecmd.Store{
		Store: a.Images, Registry: a.Registry, PruneAfter: a.PruneAfter,
		InUse: func(ctx context.Context) (map[string]bool, error) {
			found, err := a.Engine.List(ctx)
			used := map[string]bool{}
			for _, f := range found {
				used[f.Record.ImageID] = true
			}
			return used, err
		},
	}
}

func policyEnv(env Env) policycmd.Env {
	return policycmd.Env{
		Streams: env.Streams, CompleteSandboxes: completeFirst(completeSandboxes(env, true)),
		Secrets: env.bindings,
		Spec: func(ctx context.Context, ref string) (sandbox.Spec, error) {
			app, err := env.Open(ctx)
			if err != nil {
				return sandbox.Spec{}, err
			}
			f, err := app.Engine.Find(ctx, ref)
			return f.Record.Config.Spec, err
		},
		Set: func(ctx context.Context, ref, policy string) error {
			app, err := env.Open(ctx)
			if err != nil {
				return err
			}
			f, err := app.Engine.Find(ctx, ref)
			if err != nil {
				return err
			}
			return app.Engine.SetPolicy(ctx, f, policy, progressTo(env))
		},
		Tiers: func(ctx context.Context) ([]byte, error) {
			app, err := env.Open(ctx)
			if err != nil {
				return nil, err
			}
			return app.Tiers, nil
		},
	}
}

// bindings are what the secrets are bound to. One that cannot be read is left
// out: `creel secret check` says why.
func (env Env) bindings(ctx context.Context) (map[string]policycmd.Secret, error) {
	cfg, _, err := config.Load(os.LookupEnv)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(cfg.StateDir); errors.Is(err, os.ErrNotExist) {
		return nil, nil // there are none, and looking makes nothing
	}
	s, err := env.Secrets(ctx)
	if err != nil {
		return nil, err
	}
	entries, err := s.List()
	if len(entries) == 0 && err != nil {
		return nil, err
	}
	out := map[string]policycmd.Secret{}
	for _, e := range entries {
		kept := policycmd.Secret{Binding: e.Binding, MaxAge: e.MaxAge}
		if e.Source.Kind != store.Age {
			kept.From = e.Source.String()
		}
		out[e.Name] = kept
	}
	return out, nil
}

func auditEnv(env Env) auditcmd.Env {
	return auditcmd.Env{
		Streams: env.Streams, Dir: env.AuditDir,
		Rotate: func(ctx context.Context) error {
			app, err := env.Open(ctx)
			if err != nil {
				return err
			}
			return app.RotateKey(ctx)
		},
		Prune: func(ctx context.Context, o audit.PruneOptions) (audit.PruneResult, error) {
			app, err := env.Open(ctx)
			if err != nil {
				return audit.PruneResult{}, err
			}
			return app.PruneAudit(ctx, o)
		},
		Receipt: func(ctx context.Context, ref string) ([]byte, error) {
			app, err := env.Open(ctx)
			if err != nil {
				return nil, err
			}
			return app.Engine.Receipt(ctx, ref)
		},
	}
}

func secretEnv(env Env) secretcmd.Env {
	return secretcmd.Env{
		Streams: env.Streams, Open: env.Secrets, AuditDir: env.AuditDir,
		Push: func(ctx context.Context, names []string) (int, error) {
			app, err := env.Open(ctx)
			if err != nil {
				return 0, err
			}
			return app.Engine.PushSecrets(ctx, names)
		},
	}
}

// likeDocker gives a wrong flag of a command that runs something the exit code
// of Creel's own failure: 1 would look like the task's. Without its arguments
// the command exits 1, as Docker's does.
func likeDocker(c *cobra.Command) {
	c.SetFlagErrorFunc(func(c *cobra.Command, err error) error { return creelFailed(flagError(c, err)) })
	before := c.PreRunE
	c.PreRunE = func(c *cobra.Command, args []string) error { return creelFailed(before(c, args)) }
}

func flagError(c *cobra.Command, err error) error {
	if bad, ok := errors.AsType[*pflag.InvalidValueError](err); ok {
		if want := wanted(bad.GetFlag()); want != "" {
			name := "--" + bad.GetFlag().Name
			err = fmt.Errorf("%s %q: want %s", name, bad.GetValue(), want)
		}
	}
	return fmt.Errorf("%w; see `%s --help`", err, c.CommandPath())
}

// wanted is what a flag takes, where the error of its parser tells only those
// who know Go.
func wanted(f *pflag.Flag) string {
	word, _ := pflag.UnquoteUsage(f)
	switch f.Value.Type() {
	case "duration":
		return "a duration such as 3s, 10m or 1h30m"
	case "int", "int64":
		if word == "seconds" {
			return "seconds, a whole number"
		}
		return "a whole number"
	case "float64":
		return "a number such as 1.5"
	case "bool":
		return "true or false, or the flag alone"
	}
	return ""
}

// creelFailed gives an error of Creel's own the exit code that Docker's users
// know.
func creelFailed(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*ExitError](err); ok {
		return err
	}
	return &ExitError{Code: sandbox.ExitCreel, Err: err}
}
