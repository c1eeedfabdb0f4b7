package command

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

// Foreign is a flag that Docker's users type and that a command does not have:
// it is known all the same, and answered.
type Foreign struct {
	Name string // "volume", or "volume,v" with a shorthand
	// Word says what its value is; "" where it takes none.
	Word string
	// Why is what to do instead, as an error that follows the flag's name. ""
	// accepts the flag: what it asks for is so already.
	Why string
}

// KnowForeign lets a command know flags of Docker's: hidden, and each one given
// is refused with its reason before the command does anything.
func KnowForeign(c *cobra.Command, flags []Foreign) {
	fs := c.Flags()
	why := map[string]string{}
	for _, f := range flags {
		name, short, _ := strings.Cut(f.Name, ",")
		if f.Word == "" {
			fs.BoolP(name, short, false, f.Why)
		} else {
			fs.StringArrayP(name, short, nil, f.Why)
		}
		fs.MarkHidden(name) // it errs only where there is no such flag
		why[name] = f.Why
	}
	before := c.PreRunE
	c.PreRunE = func(c *cobra.Command, args []string) error {
		var errs []error
		for _, f := range flags {
			name, _, _ := strings.Cut(f.Name, ",")
			flag := fs.Lookup(name)
			if flag.Changed && why[name] != "" && flag.Value.String() != "false" {
				errs = append(errs, fmt.Errorf("--%s: %s", name, why[name]))
			}
		}
		if err := errors.Join(errs...); err != nil {
			return err
		}
		if before != nil {
			return before(c, args)
		}
		return nil
	}
}

// Elsewhere is a command of Docker's that there is not: it says what does its
// work.
func Elsewhere(name, answer string) *cobra.Command {
	return &cobra.Command{
		Use: name, Short: answer, Hidden: true, DisableFlagParsing: true,
		RunE: func(c *cobra.Command, _ []string) error {
			return fmt.Errorf("`%s` is not a command of Creel: %s", c.CommandPath(), answer)
		},
	}
}

// Also is a command under one more name, as Docker has it.
func Also(c *cobra.Command, name string) *cobra.Command {
	_, words, _ := strings.Cut(c.Use, " ")
	c.Use, c.Hidden = strings.TrimSpace(name+" "+words), true
	return c
}
