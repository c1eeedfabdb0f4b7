package hostcmd

import (
	"encoding/json"
	"fmt"

	"creel/internal/cli/command"
	"creel/internal/doctor"
	"creel/internal/printable"

	"github.com/spf13/cobra"
)

// NewDoctor is `creel doctor`.
func NewDoctor(env Env) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use: "doctor", Short: "Look at what this machine has and lacks, and say what mends it",
		Long: "Look at what this machine has and lacks, and say what mends it.\n\n" +
			"The exit code is 0 where tasks can run, 1 where something keeps them from it.",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			deps, err := env.Doctor(c.Context())
			if err != nil {
				return err
			}
			findings := doctor.Check(c.Context(), deps)
			if asJSON {
				enc := json.NewEncoder(env.Out)
				enc.SetIndent("", "  ")
				err = enc.Encode(findings)
			} else {
				printFindings(env, findings)
			}
			for _, f := range findings {
				if f.Level == doctor.Fail {
					return &command.ExitError{Code: 1}
				}
			}
			return err
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func printFindings(env Env, findings []doctor.Finding) {
	for _, f := range findings {
		fmt.Fprintf(env.Out, "%-5s %-12s %s\n", f.Level, f.Name, printable.Line(f.Detail))
		if f.Mend != "" {
			fmt.Fprintf(env.Out, "%18s → %s\n", "", f.Mend)
		}
	}
}
