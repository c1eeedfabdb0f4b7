package cli

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

// Logging is what --log-level and --log-format say; empty where the
// configuration decides.
type Logging struct{ Level, Format string }

// register makes the flags known to every command.
func (l *Logging) register(root *cobra.Command) {
	for _, f := range []struct {
		name, about string
		word        *word
	}{
		{"log-level", "what Creel says of itself on standard error: `debug|info|warn|error`", &word{&l.Level, []string{"debug", "info", "warn", "error"}}},
		{"log-format", "how it says it: `text|json`", &word{&l.Format, []string{"text", "json"}}},
	} {
		root.PersistentFlags().Var(f.word, f.name, f.about)
		// It errs only where there is no such flag.
		root.RegisterFlagCompletionFunc(f.name, cobra.FixedCompletions(f.word.allowed, cobra.ShellCompDirectiveNoFileComp))
	}
}

// word is a flag's value that is one of a few.
type word struct {
	to      *string
	allowed []string
}

func (w *word) String() string { return *w.to }

func (w *word) Type() string { return "word" }

func (w *word) Set(s string) error {
	if !slices.Contains(w.allowed, s) {
		return fmt.Errorf("want one of %s", strings.Join(w.allowed, ", "))
	}
	*w.to = s
	return nil
}
