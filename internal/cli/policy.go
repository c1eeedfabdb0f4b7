package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"creel/internal/policy"
	"creel/internal/policy/preset"
	"creel/internal/policy/syntax"

	"github.com/spf13/cobra"
)

func newPolicy(env Env) *cobra.Command {
	return group("policy", "Check, explain and test what a sandbox may reach",
		&cobra.Command{
			Use: "check FILE", Short: "Report every fault of a policy file, and what it may allow by mistake",
			Example: "  creel policy check agent.yaml",
			Args:    cobra.ExactArgs(1),
			RunE: func(_ *cobra.Command, args []string) error {
				p, err := readPolicy(env, args[0])
				if err != nil {
					return err
				}
				fmt.Fprintf(env.Out, "%s: %d rules, no faults\n", args[0], len(p.Rules))
				return nil
			},
		},
		newPolicyExplain(env),
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
		&cobra.Command{
			Use: "schema", Short: "Print a JSON Schema of policy files, for editors",
			Args: cobra.NoArgs,
			RunE: func(*cobra.Command, []string) error {
				enc := json.NewEncoder(env.Out)
				enc.SetIndent("", "  ")
				return enc.Encode(syntax.Schema())
			},
		},
	)
}

func newPolicyExplain(env Env) *cobra.Command {
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
	verdict := "denied"
	if d.Allow {
		verdict = "allowed"
	}
	fmt.Fprintf(w, "%s: %s\n", verdict, d.Reason())
	if d.Rule != nil && d.Rule.Line > 0 {
		fmt.Fprintf(w, "line %d: %s\n", d.Rule.Line, d.Rule.Destination())
	}
	switch {
	case !d.Allow:
		fmt.Fprintf(w, "what would allow it: %s\n", d.Hint())
	case d.Inspect && d.Protocol == policy.TLS:
		fmt.Fprintln(w, "spoken: tls, opened so that requests can be read")
	default:
		fmt.Fprintf(w, "spoken: %s\n", d.Protocol)
	}
	if len(e.Rules) > 0 {
		t := table(w, "RULE", "DESTINATION", "BEARING")
		for _, b := range e.Rules {
			row(t, b.Rule.Name, b.Rule.Destination(), b.Text)
		}
		if err := t.Flush(); err != nil {
			return err
		}
	}
	if !d.Allow {
		return &ExitError{Code: 1}
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
	fmt.Fprintf(env.Out, "%d tests, %d failed\n", len(p.Cases), failed)
	if failed > 0 {
		return &ExitError{Code: 1}
	}
	return nil
}

// readPolicy reads a policy file with all that it refers to, and prints its
// warnings.
func readPolicy(env Env, file string) (*policy.Policy, error) {
	data, err := readBounded(file)
	if err != nil {
		return nil, fmt.Errorf("read policy: %w", err)
	}
	p, warnings, err := syntax.Parse(data, policyInputs(filepath.Dir(file)))
	for _, w := range warnings {
		fmt.Fprintf(env.Err, "warning: %s\n", w)
	}
	if faults, ok := errors.AsType[policy.Faults](err); ok {
		return nil, fmt.Errorf("%s has %d faults:\n%w", file, len(faults), err)
	}
	return p, err
}

// policyInputs lets a policy refer to files beside it (dir), and presets to
// the settings of the user's tools.
func policyInputs(dir string) syntax.Inputs {
	tools := preset.Reader{Env: os.Getenv, Files: settingsFiles}
	return syntax.Inputs{
		Preset: tools.Rules,
		File: func(name string) ([]byte, error) {
			if !filepath.IsAbs(name) {
				name = filepath.Join(dir, name)
			}
			return readBounded(name)
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
		data, err := readBounded(name)
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

// readBounded reads a file of at most what a policy may have.
func readBounded(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, syntax.MaxFileBytes+1))
	if err != nil {
		return nil, err
	}
	if len(data) > syntax.MaxFileBytes {
		return nil, fmt.Errorf("%s has more than %d bytes", name, syntax.MaxFileBytes)
	}
	return data, nil
}
