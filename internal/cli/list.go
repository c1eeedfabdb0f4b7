package cli

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"creel/internal/cli/command"
	"creel/internal/engine"
	"creel/internal/sandbox"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"
)

// psRow is what `creel ps --format` templates see, with Docker's field names.
type psRow struct {
	ID, Names, Image, Command, CreatedAt, RunningFor, State, Status, Ports string
	Denied                                                                 int64
	Labels                                                                 map[string]string
}

func newPS(env Env) *cobra.Command {
	var all, quiet, long bool
	var format string
	var filters []string
	c := &cobra.Command{
		Use: "ps [flags]", Short: "List sandboxes", Args: cobra.NoArgs,
		Example: "  creel ps -a\n  creel ps --filter label=team=ci --format '{{.Names}} {{.State}}'",
		RunE: func(c *cobra.Command, _ []string) error {
			app, err := env.Open(c.Context())
			if err != nil {
				return err
			}
			match, err := parseFilters(filters)
			if err != nil {
				return err
			}
			found, err := app.Engine.List(c.Context())
			if err != nil {
				return err
			}
			var rows []psRow
			for _, f := range found {
				if (all || f.Running() || match.has("status")) && match.matches(f) {
					rows = append(rows, newPSRow(f, long))
				}
			}
			return printRows(env.Out, rows, quiet, format)
		},
	}
	c.Flags().BoolVarP(&all, "all", "a", false, "also those that have ended")
	c.Flags().BoolVarP(&quiet, "quiet", "q", false, "only IDs")
	c.Flags().BoolVar(&long, "no-trunc", false, "do not shorten")
	c.Flags().StringVar(&format, "format", "table", "`table`, json, or a Go template for each row")
	c.Flags().StringArrayVarP(&filters, "filter", "f", nil, "`key=value`: name, id, label, status or ancestor")
	return c
}

func newPSRow(f engine.Found, long bool) psRow {
	spec := f.Record.Config.Spec
	id, words := spec.ID.Short(), strings.Join(f.Record.Config.Process.Args, " ")
	status := describe(f.Status)
	if long {
		id = string(spec.ID)
	} else {
		words, status = shortened(words, 30), shortened(status, 110)
	}
	return psRow{
		ID: id, Names: spec.Name, Image: spec.Image, Command: fmt.Sprintf("%q", words),
		CreatedAt: f.Record.Created.Format(time.RFC3339), RunningFor: command.Ago(f.Record.Created),
		State: string(f.Status.State), Status: status, Labels: spec.Labels,
		Ports: formatPorts(f.Status.Ports), Denied: f.Status.Denied,
	}
}

// shortened is text of at most n characters.
func shortened(text string, n int) string {
	if runes := []rune(text); len(runes) > n {
		return string(runes[:n-1]) + "…"
	}
	return text
}

// describe is the state in words, as Docker has them.
func describe(s sandbox.Status) string {
	switch s.State {
	case sandbox.StateRunning:
		up := "Up " + units.HumanDuration(time.Since(s.StartedAt))
		if s.Paused {
			up += " (Paused)"
		}
		if s.DiskFault != "" {
			up += ": " + s.DiskFault
		}
		return up
	case sandbox.StateExited:
		exited := fmt.Sprintf("Exited (%d) %s", s.ExitCode, command.Ago(s.FinishedAt))
		if s.Error != "" {
			exited += ": " + s.Error
		}
		return exited
	case sandbox.StateLost:
		return "Lost: " + s.Error
	default:
		return "Created"
	}
}

func printRows(w io.Writer, rows []psRow, quiet bool, format string) error {
	if quiet {
		format = "{{.ID}}"
	}
	if format != "table" {
		return command.PrintEach(w, rows, format)
	}
	t := command.Table(w, "SANDBOX", "IMAGE", "COMMAND", "CREATED", "STATUS", "PORTS", "DENIED", "NAME")
	for _, r := range rows {
		command.Row(t, r.ID, r.Image, r.Command, r.RunningFor, r.Status, r.Ports, strconv.FormatInt(r.Denied, 10), r.Names)
	}
	return t.Flush()
}

// filterSet holds --filter values: of one key any may match, of each key one must.
type filterSet map[string][]string

func parseFilters(list []string) (filterSet, error) {
	set := filterSet{}
	for _, f := range list {
		key, value, ok := strings.Cut(f, "=")
		switch {
		case !ok || value == "":
			return nil, fmt.Errorf("--filter %q: want key=value", f)
		case key != "name" && key != "id" && key != "label" && key != "status" && key != "ancestor":
			return nil, fmt.Errorf("--filter %q: want name, id, label, status or ancestor", f)
		}
		set[key] = append(set[key], value)
	}
	return set, nil
}

func (s filterSet) has(key string) bool { return len(s[key]) > 0 }

func (s filterSet) matches(f engine.Found) bool {
	spec := f.Record.Config.Spec
	tests := map[string]func(string) bool{
		"name":     func(v string) bool { return strings.Contains(spec.Name, v) },
		"id":       func(v string) bool { return strings.HasPrefix(string(spec.ID), v) },
		"status":   func(v string) bool { return string(f.Status.State) == v },
		"ancestor": func(v string) bool { return spec.Image == v },
		"label": func(v string) bool {
			key, want, exact := strings.Cut(v, "=")
			got, set := spec.Labels[key]
			return set && (!exact || got == want)
		},
	}
	for key, values := range s {
		hit := false
		for _, v := range values {
			hit = hit || tests[key](v)
		}
		if !hit {
			return false
		}
	}
	return true
}

func newInspect(env Env) *cobra.Command {
	var format string
	c := &cobra.Command{
		Use: "inspect SANDBOX...", Short: "Show all that is known of sandboxes",
		Example: "  creel inspect web\n  creel inspect -f '{{.Status.ExitCode}}' web",
		Args:    cobra.MinimumNArgs(1), ValidArgsFunction: completeSandboxes(env, false),
		RunE: func(c *cobra.Command, args []string) error {
			app, err := env.Open(c.Context())
			if err != nil {
				return err
			}
			var all []engine.Found
			for _, ref := range args {
				f, err := app.Engine.FindAny(c.Context(), ref)
				if err != nil {
					return err
				}
				all = append(all, f)
			}
			if format != "" {
				return command.PrintEach(env.Out, all, format)
			}
			return command.PrintJSON(env.Out, all)
		},
	}
	c.Flags().StringVarP(&format, "format", "f", "", "json, or a Go `template`")
	return c
}
