// Package command is what every group of commands is made of: [Streams],
// [Output], [Group], [Table] and [ExitError]. It must not know what any command
// does.
package command

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"creel/internal/printable"

	"github.com/spf13/cobra"
)

// Streams are a command's standard streams. Stdin is a file because a terminal
// is asked for its size and mode. Out and Err are each an [Output] in a creel
// that runs: what may not be changed goes to the [Raw] of one.
type Streams struct {
	In       *os.File
	Out, Err io.Writer
}

// ExitError carries the exit code of a task, or of Creel's own failure. A nil
// Err prints nothing.
type ExitError struct {
	Code int
	Err  error
}

func (e *ExitError) Error() string {
	if e.Err == nil {
		return fmt.Sprintf("exit code %d", e.Code)
	}
	return e.Err.Error()
}

func (e *ExitError) Unwrap() error { return e.Err }

// Group is a command that only holds others, and says so when given a word
// that is none of them.
func Group(use, short string, subs ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{
		Use: use, Short: short, Args: cobra.ArbitraryArgs,
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				return c.Help()
			}
			return fmt.Errorf("%q is not a command of `%s`; see `%s --help`", args[0], c.CommandPath(), c.CommandPath())
		},
	}
	c.AddCommand(subs...)
	return c
}

// Table begins a table for people; its caller flushes it.
func Table(w io.Writer, heads ...string) *tabwriter.Writer {
	t := tabwriter.NewWriter(w, 0, 8, 3, ' ', 0)
	Row(t, heads...)
	return t
}

// Row adds one row to a table. No cell can begin another row or cell.
func Row(w io.Writer, cells ...string) {
	safe := make([]string, len(cells))
	for i, cell := range cells {
		safe[i] = printable.Line(cell)
	}
	fmt.Fprintln(w, strings.Join(safe, "\t"))
}

// ReadBounded reads a file of at most limit bytes.
func ReadBounded(name string, limit int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = fmt.Errorf("%s has more than %d bytes", name, limit)
	}
	if err != nil {
		return nil, err
	}
	return data, nil
}

const day = 24 * time.Hour

// ParseAge reads a duration that may be in days; "" and 0 are none.
func ParseAge(s string) (time.Duration, error) {
	if s == "" {
		return 0, nil
	}
	if days, ok := strings.CutSuffix(s, "d"); ok {
		if n, err := strconv.Atoi(days); err == nil && n >= 0 && n <= 36_500 {
			return time.Duration(n) * day, nil
		}
	} else if d, err := time.ParseDuration(s); err == nil && d >= 0 {
		return d, nil
	}
	return 0, fmt.Errorf("%q: want a time such as 90d or 12h", s)
}
