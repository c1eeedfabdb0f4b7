package secretcmd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"time"

	"creel/internal/audit"
	"creel/internal/audit/event"
	"creel/internal/audit/query"
	"creel/internal/cli/command"
	"creel/internal/secret"
	"creel/internal/secret/store"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"
)

// row is one secret as `ls` shows it.
type row struct {
	Name          string     `json:"name"`
	Source        string     `json:"source"`
	Hosts         []string   `json:"hosts"`
	Methods       []string   `json:"methods,omitempty"`
	Paths         []string   `json:"paths,omitempty"`
	Upstreams     []string   `json:"upstreams,omitempty"`
	Clear         bool       `json:"clear,omitempty"`
	Use           secret.Use `json:"use"`
	Created       time.Time  `json:"created"`
	Rotated       time.Time  `json:"rotated"`
	MaxAgeSeconds int64      `json:"maxAgeSeconds,omitempty"`
	Over          bool       `json:"over"` // older than it may be
	LastUse       *time.Time `json:"lastUse,omitempty"`
	Sandboxes     []user     `json:"sandboxes"` // that used it, the last one first
}

// user is a sandbox that used a secret.
type user struct {
	ID   string `json:"id"`
	Name string `json:"name,omitempty"`
}

func newList(env Env) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use: "ls", Short: "List secrets with what they are bound to, their age, and who used them; never a value",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			s, err := env.Open(c.Context())
			if err != nil {
				return err
			}
			entries, faults := s.List()
			used, err := env.uses(c.Context())
			if err != nil {
				return errors.Join(faults, err)
			}
			rows := []row{}
			for _, e := range entries {
				rows = append(rows, newRow(e, used[e.Name]))
			}
			if asJSON {
				err = command.PrintJSON(env.Out, rows)
			} else {
				err = printRows(env.Out, rows)
			}
			return errors.Join(err, faults)
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func newRow(e store.Entry, u uses) row {
	r := row{
		Name: e.Name, Source: e.Source.String(), Hosts: e.Binding.Hosts, Methods: e.Binding.Methods, Paths: e.Binding.Paths,
		Upstreams: e.Binding.Upstreams, Clear: e.Binding.Clear,
		Use: e.Binding.Use, Created: e.Created, Rotated: e.Rotated, MaxAgeSeconds: int64(e.MaxAge / time.Second),
		Over: e.Over(time.Now()), Sandboxes: []user{},
	}
	if !u.last.IsZero() {
		r.LastUse = &u.last
		r.Sandboxes = u.by
	}
	return r
}

func printRows(w io.Writer, rows []row) error {
	t := command.Table(w, "NAME", "SOURCE", "FOR", "AS", "AGE", "MAX AGE", "LAST USE", "SANDBOXES")
	for _, r := range rows {
		age, maxAge, last := units.HumanDuration(time.Since(r.Rotated)), "-", "-"
		if r.Over {
			age += ", too old"
		}
		if r.MaxAgeSeconds > 0 {
			maxAge = units.HumanDuration(time.Duration(r.MaxAgeSeconds) * time.Second)
		}
		if r.LastUse != nil {
			last = command.Ago(*r.LastUse)
		}
		command.Row(t, r.Name, r.Source, r.target(), describe(r.Use), age, maxAge, last, r.users())
	}
	return t.Flush()
}

// target is where a secret may be used.
func (r row) target() string {
	var words []string
	for _, list := range [][]string{r.Methods, r.Hosts, r.Paths} {
		if len(list) > 0 {
			words = append(words, strings.Join(list, ","))
		}
	}
	if len(r.Upstreams) > 0 {
		words = append(words, "at "+strings.Join(r.Upstreams, ","))
	}
	if r.Clear {
		words = append(words, "without TLS too")
	}
	return strings.Join(words, " ")
}

// describe is how a secret is used, for people.
func describe(u secret.Use) string {
	switch u.As {
	case secret.AsHeader:
		return "header " + u.Name
	case secret.AsBasic:
		return strings.TrimSpace("basic " + u.User)
	case secret.AsQuery:
		return "query " + u.Name
	case secret.AsStandIn:
		where := u.File
		if u.Env != "" {
			where = strings.TrimSuffix("$"+u.Env+","+where, ",")
		}
		return "stand-in " + where
	}
	return u.As
}

// shown is how many sandboxes a table names.
const shown = 3

func (r row) users() string {
	if len(r.Sandboxes) == 0 {
		return "-"
	}
	var names []string
	for _, u := range r.Sandboxes[:min(shown, len(r.Sandboxes))] {
		name := u.Name
		if name == "" {
			name = u.ID[:min(12, len(u.ID))]
		}
		names = append(names, name)
	}
	text := strings.Join(names, ",")
	if more := len(r.Sandboxes) - shown; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}

// uses is what the record has of one secret.
type uses struct {
	last time.Time
	by   []user // the last one first
}

// uses reads the record, by secret. Where there is no record there were no
// uses.
func (env Env) uses(ctx context.Context) (map[string]uses, error) {
	dir, err := env.AuditDir()
	if err != nil {
		return nil, err
	}
	names := map[string]string{} // of sandboxes, by ID
	used := map[string]uses{}
	// Of a log that cannot be read on, `creel audit verify` speaks.
	kinds := []audit.Kind{audit.KindAdmitted, event.KindSecret}
	for r, err := range query.Records(ctx, dir, query.Filter{Kinds: kinds}) {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read who used secrets: %w", err)
		}
		var admitted event.Admitted
		var use event.Secret
		switch {
		case r.Kind == audit.KindAdmitted && json.Unmarshal(r.Data, &admitted) == nil:
			names[r.Sandbox] = admitted.Name
		case r.Kind == event.KindSecret && json.Unmarshal(r.Data, &use) == nil:
			u := used[use.Name]
			used[use.Name] = u.with(r.Time, user{r.Sandbox, names[r.Sandbox]})
		}
	}
	return used, nil
}

// with is one use later.
func (u uses) with(at time.Time, by user) uses {
	if i := slices.Index(u.by, by); i >= 0 {
		u.by = slices.Delete(u.by, i, i+1)
	}
	return uses{at, slices.Insert(u.by, 0, by)}
}

func newCheck(env Env) *cobra.Command {
	return &cobra.Command{
		Use: "check", Short: "Try every secret as a launch would; exits 1 where one is too old, cannot be had, or is open to others",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			s, err := env.Open(c.Context())
			if err != nil {
				return err
			}
			found, err := s.Check(c.Context())
			if err != nil {
				return err
			}
			bad := 0
			t := command.Table(env.Out, "NAME", "RESULT")
			for _, f := range found {
				if len(f.Faults) == 0 {
					command.Row(t, f.Name, "ok")
					continue
				}
				bad++
				for _, fault := range f.Faults {
					command.Row(t, f.Name, strings.ReplaceAll(fault, "\n", "; "))
				}
			}
			if err := t.Flush(); err != nil {
				return err
			}
			if bad > 0 {
				return &command.ExitError{Code: 1, Err: fmt.Errorf("%d of %d cannot be used as things are", bad, len(found))}
			}
			return nil
		},
	}
}
