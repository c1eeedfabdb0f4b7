package hostcmd

import (
	"creel/internal/cli/command"

	"github.com/spf13/cobra"
)

// Part is one thing that Creel is made of or stands on. What this machine lacks
// has a Value that begins "not found".
type Part struct{ Name, Value string }

// NewVersion is `creel version`.
func NewVersion(env Env) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use: "version", Short: "Print the version of every part that matters in a bug report",
		Long: "Print the version of every part that matters in a bug report. What this machine lacks\n" +
			"is printed as \"not found\"; `creel doctor` says what mends it.",
		Example: "  creel version\n  creel version --json",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			parts := env.Parts(c.Context())
			if !asJSON {
				w := command.Table(env.Out, "PART", "VERSION")
				for _, p := range parts {
					command.Row(w, p.Name, p.Value)
				}
				return w.Flush()
			}
			named := map[string]string{}
			for _, p := range parts {
				named[p.Name] = p.Value
			}
			return command.PrintJSON(env.Out, named)
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}
