package cli

import (
	"context"
	"maps"
	"slices"
	"strings"

	"creel/internal/cli/imagecmd"
	"creel/internal/policy/preset"
	"creel/internal/policy/tier"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// A shell waits for completions: they read what is there, and nothing is
// reconciled, asked for or made for them.

// completeFirst offers values for the first argument alone.
func completeFirst(offer cobra.CompletionFunc) cobra.CompletionFunc {
	return func(c *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveDefault
		}
		return offer(c, args, word)
	}
}

// offer makes completions of a list.
func offer(list func(context.Context) ([]string, error)) cobra.CompletionFunc {
	return func(c *cobra.Command, _ []string, word string) ([]string, cobra.ShellCompDirective) {
		all, err := list(c.Context())
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		var fit []string
		for _, one := range all {
			if strings.HasPrefix(one, word) {
				fit = append(fit, one)
			}
		}
		return fit, cobra.ShellCompDirectiveNoFileComp
	}
}

// completeSandboxes offers the names of sandboxes; running: of those that run.
func completeSandboxes(env Env, running bool) cobra.CompletionFunc {
	return offer(func(ctx context.Context) (names []string, err error) {
		app, err := env.existing(ctx)
		if err != nil {
			return nil, err
		}
		all, err := app.Engine.Peek()
		for _, f := range all {
			if f.Running() || !running {
				names = append(names, f.Record.Config.Spec.Name)
			}
		}
		return names, err
	})
}

func completeTemplates(env Env) cobra.CompletionFunc {
	return offer(func(ctx context.Context) (ids []string, err error) {
		app, err := env.existing(ctx)
		if err != nil {
			return nil, err
		}
		all, err := app.Templates.List(ctx)
		for _, m := range all {
			ids = append(ids, strings.TrimPrefix(m.Digest, "sha256:")[:12])
		}
		return ids, err
	})
}

// completeFiles offers sandboxes for `cp`, beside the files that the shell
// knows.
func completeFiles(env Env) cobra.CompletionFunc {
	names := completeSandboxes(env, false)
	return func(c *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 1 || strings.ContainsAny(word, ":/.") {
			return nil, cobra.ShellCompDirectiveDefault
		}
		found, _ := names(c, args, word)
		for i := range found {
			found[i] += ":"
		}
		if len(found) == 0 {
			return nil, cobra.ShellCompDirectiveDefault
		}
		return found, cobra.ShellCompDirectiveNoSpace
	}
}

// completeFlags are offers for the values of flags, where a command has them.
func completeFlags(env Env, c *cobra.Command) {
	if c.Name() == "receipt" {
		c.ValidArgsFunction = completeFirst(completeSandboxes(env, false))
	}
	if c.Flags().Lookup("sandbox") != nil {
		c.RegisterFlagCompletionFunc("sandbox", completeSandboxes(env, false)) // it errs only where there is no such flag
	}
	for name, values := range map[string][]string{
		"tier": {tier.Untrusted, tier.Restricted, tier.Trusted}, "preset": preset.Names(), "pull": {"missing", "always", "never"},
		"accel": {"auto", "kvm", "tcg"}, "confinement": {"full", "reduced"}, "net": {"none"}, "network": {"none"},
		"restart": {"no"}, "decision": {"allow", "deny"}, "platform": {"linux/amd64", "linux/arm64"}, "signal": signals(),
	} {
		if c.Flags().Lookup(name) != nil {
			// It errs only where there is no such flag, or it has an offer already.
			c.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
		}
	}
	if c.Name() == "ps" {
		c.RegisterFlagCompletionFunc("filter", completeFilter) // it errs only where there is no such flag
	}
	for _, sub := range c.Commands() {
		completeFlags(env, sub)
	}
}

// signals are the names that are sent to tasks, those most wanted first.
func signals() []string {
	names := []string{"TERM", "KILL", "INT", "HUP"}
	for n := 1; n < 32; n++ {
		if name := strings.TrimPrefix(unix.SignalName(unix.Signal(n)), "SIG"); !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}

// completeFilter offers the keys of `ps --filter`, and the states of its status.
func completeFilter(_ *cobra.Command, _ []string, word string) (fit []string, _ cobra.ShellCompDirective) {
	var all []string
	for _, key := range slices.Sorted(maps.Keys(filterKeys)) {
		all = append(all, key+"=")
	}
	directive := cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
	if strings.HasPrefix(word, "status=") {
		all, directive = nil, cobra.ShellCompDirectiveNoFileComp
		for _, state := range states {
			all = append(all, "status="+state)
		}
	}
	for _, one := range all {
		if strings.HasPrefix(one, word) {
			fit = append(fit, one)
		}
	}
	return fit, directive
}

// imageNames offers the names of images.
func imageNames(env Env) cobra.CompletionFunc { return imagecmd.CompleteNames(imageEnv(env)) }
