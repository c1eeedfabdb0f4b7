package cli

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"creel/internal/cli/command"
	"creel/internal/engine"
	"creel/internal/printable"
	"creel/internal/sandbox"
)

// psRow is what `creel ps --format` templates see, with Docker's field names.
type psRow struct {
	ID, Names, Image, Command, CreatedAt, RunningFor, State, Status, Ports string
	Labels, Mounts, Networks, Tier, Template                               string
	Denied                                                                 int64

	labels map[string]string
}

// Label is one label's value.
func (r psRow) Label(key string) string { return printable.Line(r.labels[key]) }

var listColumns = command.Columns{Shown: 8, Fields: [][2]string{
	{"ID", "SANDBOX"}, {"Image", "IMAGE"}, {"Command", "COMMAND"}, {"RunningFor", "CREATED"}, {"Status", "STATUS"}, {"Ports", "PORTS"},
	{"Denied", "DENIED"}, {"Names", "NAME"}, {"CreatedAt", "CREATED AT"}, {"State", "STATE"}, {"Labels", "LABELS"}, {"Mounts", "MOUNTS"},
	{"Networks", "NETWORKS"}, {"Tier", "TIER"}, {"Template", "TEMPLATE"},
}}

func newPS(env Env) *cobra.Command {
	var all, latest bool
	var last int
	var list command.Listing
	var filters []string
	c := &cobra.Command{
		Use: "ps [flags]", Short: "List sandboxes", Args: cobra.NoArgs,
		Example: "  creel ps -a\n  creel ps --filter label=team=ci --format '{{.Names}} {{.State}}'\n" +
			"  creel ps --format 'table {{.Names}}\\t{{.Status}}'",
		RunE: func(c *cobra.Command, _ []string) error {
			match, err := filterKeys.Parse(filters)
			if err != nil {
				return err
			}
			app, err := env.existing(c.Context())
			if tellNoState(env, err) {
				return command.PrintList(env.Out, []psRow(nil), list, listColumns)
			}
			if err != nil {
				return err
			}
			found, err := app.Engine.List(c.Context())
			if err != nil {
				return err
			}
			if match, err = resolved(match, found); err != nil {
				return err
			}
			if latest {
				last = 1
			}
			var rows []psRow
			for _, f := range found {
				if last > 0 && len(rows) == last {
					break
				}
				if (all || last > 0 || f.Running() || match.Has("status") || match.Has("exited")) && matches(match, f) {
					rows = append(rows, newPSRow(f, list.Long))
				}
			}
			return command.PrintList(env.Out, rows, list, listColumns)
		},
	}
	c.Flags().BoolVarP(&all, "all", "a", false, "also those that have ended")
	c.Flags().BoolVarP(&latest, "latest", "l", false, "only the one that was made last, also where it has ended")
	c.Flags().IntVarP(&last, "last", "n", 0, "only the last `number` that were made, also those that have ended")
	list.Register(c.Flags())
	c.Flags().StringArrayVarP(&filters, "filter", "f", nil, "`key=value`: "+filterKeys.Names())
	return c
}

func newPSRow(f engine.Found, long bool) psRow {
	spec := f.Record.Config.Spec
	id, words := spec.ID.Short(), strings.Join(f.Record.Config.Process.Args, " ")
	digest, status := command.ShortID(f.Record.Config.Template), describe(f.Status)
	if long {
		id, digest = string(spec.ID), f.Record.Config.Template
	} else {
		words, status = shortened(words, 30), shortened(status, 110)
	}
	r := psRow{
		ID: id, Names: spec.Name, Image: spec.Image, Command: fmt.Sprintf("%q", words),
		CreatedAt: f.Record.Created.Format(time.RFC3339), RunningFor: command.Ago(f.Record.Created),
		State: stateOf(f.Status), Status: status, labels: spec.Labels,
		Ports: formatPorts(f.Status.Ports), Denied: f.Status.Denied, Tier: spec.Tier, Template: digest, Networks: "none",
	}
	if spec.Policy != "" {
		r.Networks = "policy"
	}
	var labels, mounts []string
	for _, key := range slices.Sorted(maps.Keys(spec.Labels)) {
		labels = append(labels, key+"="+spec.Labels[key])
	}
	for _, m := range spec.Mounts {
		mounts = append(mounts, m.Target)
	}
	r.Labels, r.Mounts = strings.Join(labels, ","), strings.Join(mounts, ",")
	return r
}

// paused is a state for people: of a sandbox that runs.
const paused = "paused"

func stateOf(s sandbox.Status) string {
	if s.State == sandbox.StateRunning && s.Paused {
		return paused
	}
	return string(s.State)
}

// maxReason bounds what a keeper that was taken over can fill a table with;
// `creel inspect` has all.
const maxReason = 200

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
			up += ": " + shortened(s.DiskFault, maxReason)
		}
		if s.AuditFull != "" {
			up += ": " + shortened(s.AuditFull, maxReason)
		}
		return up
	case sandbox.StateExited:
		exited := fmt.Sprintf("Exited (%d) %s", s.ExitCode, command.Ago(s.FinishedAt))
		if s.Error != "" {
			exited += ": " + shortened(s.Error, maxReason)
		} else if s.AuditFull != "" {
			exited += ": " + shortened(s.AuditFull, maxReason)
		}
		return exited
	case sandbox.StateLost:
		return "Lost: " + shortened(s.Error, maxReason)
	default:
		return "Created"
	}
}

func newInspect(env Env) *cobra.Command {
	var format string
	c := &cobra.Command{
		Use: "inspect SANDBOX...", Short: "Show all that is known of sandboxes; also of images, where none has the name",
		Example: "  creel inspect web\n  creel inspect -f '{{.Status.ExitCode}}' web",
		Args:    cobra.MinimumNArgs(1), ValidArgsFunction: completeSandboxes(env, false),
		RunE: func(c *cobra.Command, args []string) error {
			app, err := env.existing(c.Context())
			if err != nil {
				return err
			}
			var all []any
			for _, ref := range args {
				f, err := app.Engine.FindAny(c.Context(), ref)
				if !errors.Is(err, errdefs.ErrNotFound) {
					if err != nil {
						return err
					}
					f.Status.State = sandbox.State(stateOf(f.Status)) // as `creel ps` has it
					all = append(all, f)
					continue
				}
				img, none := app.Images.Inspect(c.Context(), ref)
				if none != nil {
					return err
				}
				all = append(all, img)
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
