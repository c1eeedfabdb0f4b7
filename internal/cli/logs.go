package cli

import (
	"bytes"
	"fmt"
	"strconv"
	"time"

	"creel/internal/keeper/rundir"
	"creel/internal/keeper/socket"

	"github.com/spf13/cobra"
)

// logView is which part of a log is wanted, and how.
type logView struct {
	follow, timestamps bool
	tail, since        string

	last int       // lines from the end; negative: all
	skip int       // lines to leave out at the beginning, so that last remain
	from time.Time // zero: all
}

func newLogs(env Env) *cobra.Command {
	var v logView
	c := &cobra.Command{
		Use: "logs [flags] SANDBOX", Short: "Show what a task in the background has written",
		Example: "  creel logs -f --tail 20 web\n  creel logs --since 10m --timestamps web",
		Args:    cobra.ExactArgs(1), ValidArgsFunction: completeFirst(completeSandboxes(env, false)),
		RunE: func(c *cobra.Command, args []string) error {
			if err := v.parse(time.Now()); err != nil {
				return err
			}
			app, err := env.existing(c.Context())
			if err != nil {
				return err
			}
			f, err := app.Engine.FindAny(c.Context(), args[0])
			if err != nil {
				return err
			}
			if !f.Record.Config.Spec.Keep && f.Damage == "" {
				return fmt.Errorf("sandbox %s keeps no log: it runs in the foreground", args[0])
			}
			dir := app.Engine.KeeperDir(f.Record.Config.Spec.ID)
			if err := v.skipToTail(dir); err != nil {
				return err
			}
			if !v.follow || !f.Running() {
				return rundir.ReadLog(dir, v.print(env))
			}
			return withClient(c.Context(), app, f, func(k *socket.Client) error { return k.Logs(c.Context(), v.print(env)) })
		},
	}
	c.Flags().BoolVarP(&v.follow, "follow", "f", false, "go on with what comes, until the task ends")
	c.Flags().BoolVarP(&v.timestamps, "timestamps", "t", false, "begin each line with its time")
	c.Flags().StringVarP(&v.tail, "tail", "n", "all", "only this `number` of lines from the end")
	c.Flags().StringVar(&v.since, "since", "", "only from this `time` on: RFC 3339, or a duration such as 10m")
	return c
}

func (v *logView) parse(now time.Time) error {
	v.last = -1
	if v.tail != "all" {
		n, err := strconv.Atoi(v.tail)
		if err != nil || n < 0 {
			return fmt.Errorf("--tail %q: want a number of lines, or all", v.tail)
		}
		v.last = n
	}
	if v.since == "" {
		return nil
	}
	if d, err := time.ParseDuration(v.since); err == nil {
		v.from = now.Add(-d)
		return nil
	}
	t, err := time.Parse(time.RFC3339, v.since)
	if err != nil {
		return fmt.Errorf("--since %q: want a duration such as 10m, or a time such as 2026-01-31T15:04:05Z", v.since)
	}
	v.from = t
	return nil
}

// skipToTail counts the lines that are there.
func (v *logView) skipToTail(dir string) error {
	if v.last < 0 {
		return nil
	}
	lines, open := 0, false
	err := rundir.ReadLog(dir, func(e rundir.Entry) error {
		if e.Time.Before(v.from) || len(e.Data) == 0 {
			return nil
		}
		lines += bytes.Count(e.Data, []byte{'\n'})
		open = e.Data[len(e.Data)-1] != '\n'
		return nil
	})
	if open {
		lines++
	}
	v.skip = max(lines-v.last, 0)
	return err
}

// print writes entries to the stream that they came from, line by line.
func (v *logView) print(env Env) func(rundir.Entry) error {
	skip, midLine, raw := v.skip, false, rawOf(env)
	return func(e rundir.Entry) error {
		if e.Time.Before(v.from) {
			return nil
		}
		to := raw.out
		if e.Stream == 2 {
			to = raw.err
		}
		for line := range bytes.Lines(e.Data) {
			whole := line[len(line)-1] == '\n'
			if skip > 0 {
				if whole {
					skip--
				}
				continue
			}
			if v.timestamps && !midLine {
				line = append([]byte(e.Time.Format(time.RFC3339Nano)+" "), line...)
			}
			midLine = !whole
			if _, err := to.Write(line); err != nil {
				return err
			}
		}
		return nil
	}
}
