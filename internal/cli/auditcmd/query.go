package auditcmd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"creel/internal/audit"
	"creel/internal/audit/query"
	"creel/internal/audit/summary"
	"creel/internal/cli/command"
	"creel/internal/printable"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// filters are the flags that say which records.
type filters struct {
	sandbox, since, until string
	kinds                 []string
	host, decision        string
}

func (f *filters) register(fs *pflag.FlagSet) {
	fs.StringVar(&f.sandbox, "sandbox", "", "`name` or ID, also of one that is gone")
	fs.StringSliceVar(&f.kinds, "kind", nil, "`kinds` of records, such as admitted,refused,exec,exit")
	fs.StringVar(&f.host, "host", "", "destination, by `name` or address; *.NAME is the name and all below it")
	fs.StringVar(&f.decision, "decision", "", "`allow` or deny: of destinations, and of what was admitted or refused")
	fs.StringVar(&f.since, "since", "", "from this `time` on: 2026-11-23T21:40:00Z, or 90m for so long ago")
	fs.StringVar(&f.until, "until", "", "before this `time`")
}

// kinds are those that the record has, for the shell.
var kinds = []string{
	"admitted", "alert", "budget", "cleanup", "closed", "confined", "connection", "copied", "copy", "denied", "disconnected", "disk-fault", "dropped",
	"exec", "exit", "failed", "head", "key", "lookup", "lost", "name", "opened", "policy", "pruned", "published", "recovered", "refused", "request", "response",
	"secret", "secrets", "signal", "started", "step", "template", "unreadable", "visits",
}

// resolve says where to look and for what.
func (f *filters) resolve(ctx context.Context, env Env) (dir string, filter query.Filter, err error) {
	filter = query.Filter{Host: f.host, Decision: f.decision}
	if f.decision != "" && f.decision != "allow" && f.decision != "deny" {
		return "", filter, fmt.Errorf("--decision %q: want allow or deny", f.decision)
	}
	for _, k := range f.kinds {
		filter.Kinds = append(filter.Kinds, audit.Kind(k))
	}
	now := time.Now()
	if filter.Since, err = moment(f.since, now); err != nil {
		return "", filter, fmt.Errorf("--since %w", err)
	}
	if filter.Until, err = moment(f.until, now); err != nil {
		return "", filter, fmt.Errorf("--until %w", err)
	}
	if dir, err = env.Dir(); err != nil {
		return "", filter, err
	}
	if f.sandbox != "" {
		filter.Sandbox, err = summary.Named(ctx, dir, f.sandbox)
	}
	return dir, filter, err
}

// moment reads a time, or how long ago it was; "" is none.
func moment(s string, now time.Time) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if ago, err := time.ParseDuration(s); err == nil && ago >= 0 {
		return now.Add(-ago), nil
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return t, fmt.Errorf("%q: want a time such as 2026-11-23T21:40:00Z, or 90m for so long ago", s)
	}
	return t, nil
}

func newQuery(env Env) *cobra.Command {
	var f filters
	var asJSON bool
	c := &cobra.Command{
		Use: "query", Short: "Show records as a table, oldest first",
		Example: "  creel audit query --sandbox web\n  creel audit query --kind refused --since 24h\n  creel audit query --sandbox web --decision deny",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			dir, filter, err := f.resolve(c.Context(), env)
			if err != nil {
				return err
			}
			records := query.Records(c.Context(), dir, filter)
			if asJSON {
				return query.Export(env.Out, records)
			}
			t := command.Table(env.Out, "TIME", "SANDBOX", "KIND", "WHAT")
			for r, err := range records {
				if err != nil {
					return errors.Join(t.Flush(), err)
				}
				command.Row(t, cells(r)...)
			}
			return t.Flush()
		},
	}
	f.register(c.Flags())
	c.RegisterFlagCompletionFunc("kind", cobra.FixedCompletions(kinds, cobra.ShellCompDirectiveNoFileComp)) // it errs only where there is no such flag
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON lines")
	return c
}

// lag is how much later than its time a record may come to be seen.
const lag = 10 * time.Second

func newTail(env Env) *cobra.Command {
	var f filters
	var follow, asJSON bool
	var lines int
	c := &cobra.Command{
		Use: "tail [-f]", Short: "Show the last records, and with -f those that come",
		Example: "  creel audit tail -f --sandbox web",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			dir, filter, err := f.resolve(c.Context(), env)
			if err != nil {
				return err
			}
			return tail(c.Context(), dir, filter, tailing{env.Out, max(lines, 0), follow, asJSON})
		},
	}
	f.register(c.Flags())
	c.RegisterFlagCompletionFunc("kind", cobra.FixedCompletions(kinds, cobra.ShellCompDirectiveNoFileComp)) // it errs only where there is no such flag
	c.Flags().BoolVarP(&follow, "follow", "f", false, "go on until interrupted")
	c.Flags().IntVarP(&lines, "lines", "n", 20, "`number` of records to begin with")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON lines")
	return c
}

type tailing struct {
	out    io.Writer
	lines  int
	follow bool
	asJSON bool
}

// identity tells one record from every other.
type identity struct {
	sandbox string
	kind    audit.Kind
	seq     int64
	time    time.Time
}

func identify(r audit.Record) identity { return identity{r.Sandbox, r.Kind, r.Seq, r.Time} }

// tail prints the last records and goes on. The records that a second look
// would find again are known by then.
func tail(ctx context.Context, dir string, f query.Filter, o tailing) error {
	recent := time.Now().Add(-lag)
	seen := map[identity]bool{}
	var last []audit.Record
	for r, err := range query.Records(ctx, dir, f) {
		if err != nil {
			return err
		}
		if !r.Time.Before(recent) {
			seen[identify(r)] = true
		}
		if last = append(last, r); len(last) > o.lines {
			last = last[1:]
		}
	}
	for _, r := range last {
		if err := o.print(r); err != nil {
			return err
		}
	}
	if !o.follow {
		return nil
	}
	f.Follow = true
	if f.Since.Before(recent) {
		f.Since = recent
	}
	for r, err := range query.Records(ctx, dir, f) {
		if ctx.Err() != nil {
			return nil // it was told to stop
		}
		if err != nil {
			return err
		}
		if seen[identify(r)] {
			delete(seen, identify(r))
			continue
		}
		if err := o.print(r); err != nil {
			return err
		}
	}
	return nil
}

func (o tailing) print(r audit.Record) error {
	if o.asJSON {
		return query.Export(o.out, func(yield func(audit.Record, error) bool) { yield(r, nil) })
	}
	c := cells(r)
	_, err := fmt.Fprintf(o.out, "%s  %-12s  %-12s  %s\n", c[0], printable.Line(c[1]), printable.Line(c[2]), printable.Line(c[3]))
	return err
}
