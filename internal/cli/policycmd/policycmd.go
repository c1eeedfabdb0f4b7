// Package policycmd is the commands about policies, and the flags of `creel run`
// that state one. It reads the files and settings that policies refer to, and
// asks the user's tools what they use, so that package policy need not. It must
// not decide what a sandbox may reach, must not run a tool where a project that
// is somebody else's could tell it what to say, and must not know how a sandbox
// is found.
package policycmd

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"creel/internal/cli/command"
	"creel/internal/policy"
	"creel/internal/policy/preset"
	"creel/internal/policy/syntax"
	"creel/internal/sandbox"

	"github.com/spf13/cobra"
)

// Env is what the commands need of the rest.
type Env struct {
	command.Streams
	// Spec gives the Spec of a sandbox, by name or ID.
	Spec func(ctx context.Context, ref string) (sandbox.Spec, error)
	// Set puts another policy in force for a sandbox that runs.
	Set func(ctx context.Context, ref, policy string) error
	// Secrets are those of this installation; nil: they cannot be had here. It
	// must not make or change anything.
	Secrets func(context.Context) (map[string]Secret, error)
	// CompleteSandboxes offers names to the shell.
	CompleteSandboxes cobra.CompletionFunc
	// Tiers gives the file of tiers that is in force.
	Tiers func(context.Context) ([]byte, error)
}

// New is `creel policy`.
func New(env Env) *cobra.Command {
	return command.Group("policy", "Check, explain and test what a sandbox may reach",
		&cobra.Command{
			Use: "check FILE", Short: "Report every fault of a policy file, and what it may allow by mistake",
			Example: "  creel policy check agent.yaml",
			Args:    cobra.ExactArgs(1),
			RunE: func(c *cobra.Command, args []string) error {
				p, err := readPolicy(env, args[0])
				if err != nil {
					return err
				}
				warnings, refused := secretWarnings(c.Context(), env, p)
				warn(env.Err, warnings)
				verdict := "no faults"
				if refused {
					verdict += ", but a run with it is refused here: see the warnings"
				}
				fmt.Fprintf(env.Out, "%s: %s, %s\n", args[0], counted(len(p.Rules), "rule"), verdict)
				return nil
			},
		},
		explain(env),
		&cobra.Command{
			Use: "test FILE", Short: "Run the tests that a policy file has of itself",
			Example: "  creel policy test agent.yaml",
			Args:    cobra.ExactArgs(1),
			RunE: func(_ *cobra.Command, args []string) error {
				p, err := readPolicy(env, args[0])
				if err != nil {
					return err
				}
				return testPolicy(env, args[0], p)
			},
		},
		show(env),
		set(env),
		&cobra.Command{
			Use: "tiers", Short: "Print the ceilings of the tiers in force; a changed copy replaces them (setting tiersFile)",
			Args: cobra.NoArgs,
			RunE: func(c *cobra.Command, _ []string) error {
				text, err := env.Tiers(c.Context())
				if err != nil {
					return err
				}
				_, err = env.Out.Write(text)
				return err
			},
		},
		&cobra.Command{
			Use: "schema", Short: "Print a JSON Schema of policy files, for editors",
			Args: cobra.NoArgs,
			RunE: func(*cobra.Command, []string) error {
				return command.PrintJSON(env.Out, syntax.Schema())
			},
		},
	)
}

func show(env Env) *cobra.Command {
	return &cobra.Command{
		Use: "show SANDBOX", Short: "Print a sandbox's tier and policy, with the digest that the record has of it",
		Example: "  creel policy show web",
		Args:    cobra.ExactArgs(1), ValidArgsFunction: env.CompleteSandboxes,
		RunE: func(c *cobra.Command, args []string) error {
			spec, err := env.Spec(c.Context(), args[0])
			if err != nil {
				return err
			}
			text := syntax.Canonical(spec.Policy)
			_, err = fmt.Fprintf(env.Out, "# sandbox %s, tier %s\n# policy %s\n%s", spec.Name, spec.Tier, syntax.Digest(text), text)
			return err
		},
	}
}

func set(env Env) *cobra.Command {
	return &cobra.Command{
		Use: "set SANDBOX FILE", Short: "Put another policy in force for a sandbox that runs, also for what it has open",
		Example: "  creel policy set web agent.yaml",
		Args:    cobra.ExactArgs(2), ValidArgsFunction: env.CompleteSandboxes,
		RunE: func(c *cobra.Command, args []string) error {
			p, err := readPolicy(env, args[1])
			if err != nil {
				return err
			}
			text := ""
			if len(p.Rules) > 0 {
				text = string(syntax.Text(p))
			}
			if err := env.Set(c.Context(), args[0], text); err != nil {
				return err
			}
			fmt.Fprintf(env.Out, "%s: %s in force, policy %s\n", args[0], counted(len(p.Rules), "rule"), syntax.Digest(syntax.Canonical(text)))
			return nil
		},
	}
}

func explain(env Env) *cobra.Command {
	return &cobra.Command{
		Use: "explain FILE METHOD URL", Short: "Say which rule decides a request, why, and what would allow it; exits 1 where it is denied",
		Example: "  creel policy explain agent.yaml POST https://api.example.com/v1/messages\n" +
			"  creel policy explain agent.yaml tcp://db.example.com:5432",
		Args: cobra.RangeArgs(2, 3),
		RunE: func(_ *cobra.Command, args []string) error {
			p, err := readPolicy(env, args[0])
			if err != nil {
				return err
			}
			method, url := "", args[len(args)-1]
			if len(args) == 3 {
				method = args[1]
			}
			e, err := p.Explain(method, url)
			if err != nil {
				return err
			}
			return printExplanation(env.Out, e)
		},
	}
}

func printExplanation(w io.Writer, e policy.Explanation) error {
	d := e.Decision
	verdict := d.Reason() // of what is allowed: "allowed by …"
	if !d.Allow {
		verdict = "denied: " + verdict
	}
	fmt.Fprintln(w, verdict)
	if d.Rule != nil && d.Rule.Line > 0 {
		fmt.Fprintf(w, "line %d: %s\n", d.Rule.Line, d.Rule.Destination())
	}
	switch {
	case !d.Allow && d.Hint() == "":
	case !d.Allow:
		fmt.Fprintf(w, "what would allow it: %s\n", d.Hint())
	case d.Inspect && d.Protocol == policy.TLS:
		fmt.Fprintln(w, "spoken: tls, opened so that requests can be read")
	default:
		fmt.Fprintf(w, "spoken: %s\n", d.Protocol)
	}
	if len(e.Rules) > 0 {
		t := command.Table(w, "RULE", "DESTINATION", "BEARING")
		for _, b := range e.Rules {
			command.Row(t, b.Rule.Name, b.Rule.Destination(), b.Text)
		}
		if err := t.Flush(); err != nil {
			return err
		}
	}
	if !d.Allow {
		return &command.ExitError{Code: 1}
	}
	return nil
}

func testPolicy(env Env, file string, p *policy.Policy) error {
	if len(p.Cases) == 0 {
		return fmt.Errorf("%s has no tests; write some, such as\ntests:\n  - allow: GET https://api.example.com/\n  - deny: tcp://example.com:22", file)
	}
	failed := 0
	for _, c := range p.Cases {
		want := "deny"
		if c.Allow {
			want = "allow"
		}
		if got := c.Run(p); got != "" {
			failed++
			fmt.Fprintf(env.Out, "FAIL line %d: %s %s: %s\n", c.Line, want, c, got)
		}
	}
	fmt.Fprintf(env.Out, "%s, %d failed\n", counted(len(p.Cases), "test"), failed)
	if failed > 0 {
		return &command.ExitError{Code: 1}
	}
	return nil
}

// readPolicy reads a policy file, and prints its warnings.
func readPolicy(env Env, file string) (*policy.Policy, error) {
	p, warnings, err := parse(file)
	warn(env.Err, warnings)
	return p, err
}

// parse reads a policy file with all that it refers to.
func parse(file string) (*policy.Policy, policy.Faults, error) {
	data, err := command.ReadBounded(file, syntax.MaxFileBytes)
	if err != nil {
		return nil, nil, fmt.Errorf("read policy: %w", err)
	}
	p, warnings, err := syntax.Parse(data, policyInputs(filepath.Dir(file)))
	if faults, ok := errors.AsType[policy.Faults](err); ok {
		return nil, warnings, fmt.Errorf("%s has %s:\n%w", file, counted(len(faults), "fault"), err)
	}
	return p, warnings, err
}

func warn(w io.Writer, warnings policy.Faults) {
	for _, one := range warnings {
		fmt.Fprintf(w, "creel: warning: %s\n", one)
	}
}

// counted is a number of things.
func counted(n int, thing string) string {
	if n != 1 {
		thing += "s"
	}
	return fmt.Sprintf("%d %s", n, thing)
}

// policyInputs lets a policy refer to files beside it (dir), and presets to
// the settings of the user's tools.
func policyInputs(dir string) syntax.Inputs {
	tools := preset.Reader{Env: os.Getenv, Files: settingsFiles, Run: runTool}
	return syntax.Inputs{
		Preset: tools.Rules,
		File: func(name string) ([]byte, error) {
			if !filepath.IsAbs(name) {
				name = filepath.Join(dir, name)
			}
			// A policy may be a stranger's: no terminal or pipe is read for it.
			if info, err := os.Stat(name); err != nil || !info.Mode().IsRegular() {
				return nil, cmp.Or(err, fmt.Errorf("%s is not a regular file", name))
			}
			return command.ReadBounded(name, syntax.MaxFileBytes)
		},
	}
}

// settingsFiles reads what a pattern matches; what is not there is no error.
func settingsFiles(pattern string) ([][]byte, error) {
	if rest, ok := strings.CutPrefix(pattern, "~/"); ok {
		home, err := os.UserHomeDir()
		if err != nil {
			return nil, nil // a user without a home has no settings there
		}
		pattern = filepath.Join(home, rest)
	}
	names, err := filepath.Glob(pattern)
	if err != nil {
		return nil, err
	}
	slices.Sort(names)
	var out [][]byte
	for _, name := range names {
		data, err := command.ReadBounded(name, syntax.MaxFileBytes)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		out = append(out, data)
	}
	return out, nil
}

const (
	toolPatience = 30 * time.Second
	maxToolSays  = 4 << 20 // bytes
)

// runTool gives what a program in PATH prints about its own settings. It runs in
// the root directory: in that of a project, a file of the project could name
// another registry.
func runTool(program string, args ...string) (string, error) {
	path, err := exec.LookPath(program)
	if err != nil {
		return "", fmt.Errorf("%s: %w", program, preset.ErrNoClient)
	}
	ctx, cancel := context.WithTimeout(context.Background(), toolPatience)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	var complaint bytes.Buffer
	cmd.Dir, cmd.Stderr, cmd.WaitDelay = "/", &complaint, time.Second
	cmd.Env = append(os.Environ(), "GOTOOLCHAIN=local", "GOWORK=off", "NO_UPDATE_NOTIFIER=1", "PIP_DISABLE_PIP_VERSION_CHECK=1", "NO_COLOR=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		return "", err
	}
	if err := cmd.Start(); err != nil {
		return "", fmt.Errorf("%s: %w", program, err)
	}
	said, err := io.ReadAll(io.LimitReader(out, maxToolSays))
	if err = errors.Join(err, cmd.Wait()); err != nil {
		words := strings.Join(strings.Fields(complaint.String()), " ")
		return "", fmt.Errorf("`%s %s`: %w: %.300q", program, args[0], err, words)
	}
	return string(said), nil
}
