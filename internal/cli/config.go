package cli

import (
	"encoding/json"
	"fmt"
	"os"

	"creel/internal/cli/command"
	"creel/internal/config"

	"github.com/spf13/cobra"
)

func newConfig(env Env) *cobra.Command {
	var asJSON bool
	show := &cobra.Command{
		Use: "show", Short: "Show every setting and where its value came from", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			_, values, err := config.Load(os.LookupEnv)
			if err != nil {
				return err
			}
			if asJSON {
				return json.NewEncoder(env.Out).Encode(values)
			}
			w := command.Table(env.Out, "SETTING", "VALUE", "FROM")
			for _, v := range values {
				command.Row(w, v.Name, v.Value, v.Source)
			}
			return w.Flush()
		},
	}
	show.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return command.Group("config", "Show the configuration", show,
		&cobra.Command{
			Use: "path", Short: "Print the file that settings are read from", Args: cobra.NoArgs,
			RunE: func(*cobra.Command, []string) error {
				fmt.Fprintln(env.Out, config.Path(os.LookupEnv))
				return nil
			},
		},
		&cobra.Command{
			Use: "schema", Short: "Print a JSON Schema of the file, for editors", Args: cobra.NoArgs,
			RunE: func(*cobra.Command, []string) error {
				return command.PrintJSON(env.Out, config.Schema())
			},
		},
	)
}
