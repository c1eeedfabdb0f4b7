package cli

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/distribution/reference"

	"creel/internal/cli/command"
	"creel/internal/engine"
	"creel/internal/sandbox"
)

// filterKeys are those of `creel ps --filter`. The sandboxes that before and
// since name are looked for later.
var filterKeys = command.FilterKeys{
	"name": nil, "id": nil, "label": nil, "ancestor": nil, "before": nil, "since": nil,
	"status": func(v string) error {
		if !slices.Contains(states, v) {
			return fmt.Errorf("want one of %s", strings.Join(states, ", "))
		}
		return nil
	},
	"exited": func(v string) error {
		if n, err := strconv.Atoi(v); err != nil || n < 0 || n > 255 {
			return errors.New("want an exit code, 0 to 255")
		}
		return nil
	},
}

// states are what --filter status= knows. Docker's dead is what Creel calls
// lost.
var states = []string{
	string(sandbox.StateCreated), string(sandbox.StateRunning), paused, string(sandbox.StateExited), string(sandbox.StateLost), "dead",
}

// resolved gives before and since the times of the sandboxes that they name.
func resolved(s command.Filters, all []engine.Found) (command.Filters, error) {
	out := maps.Clone(s)
	for _, key := range []string{"before", "since"} {
		out[key] = nil
		for _, ref := range s[key] {
			i := slices.IndexFunc(all, func(f engine.Found) bool {
				return f.Record.Config.Spec.Name == ref || strings.HasPrefix(string(f.Record.Config.Spec.ID), ref)
			})
			if i < 0 {
				return nil, fmt.Errorf("--filter %s: %w", key, engine.NoSuch(ref))
			}
			out[key] = append(out[key], moment(all[i].Record.Created))
		}
	}
	return out, nil
}

// moment is a time's form in which earlier ones sort before later ones.
func moment(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000000000") }

func matches(s command.Filters, f engine.Found) bool {
	spec, at := f.Record.Config.Spec, moment(f.Record.Created)
	return s.Match(map[string]func(string) bool{
		"name": func(v string) bool { return strings.Contains(spec.Name, v) },
		"id":   func(v string) bool { return strings.HasPrefix(string(spec.ID), v) },
		"status": func(v string) bool {
			return stateOf(f.Status) == v || v == "dead" && f.Status.State == sandbox.StateLost
		},
		"exited": func(v string) bool {
			return f.Status.State == sandbox.StateExited && strconv.Itoa(f.Status.ExitCode) == v
		},
		"ancestor": func(v string) bool {
			return sameImage(spec.Image, v) || command.ShortID(f.Record.ImageID) == v || f.Record.ImageID == v
		},
		"before": func(v string) bool { return at < v },
		"since":  func(v string) bool { return at > v },
		"label": func(v string) bool {
			key, want, exact := strings.Cut(v, "=")
			got, set := spec.Labels[key]
			return set && (!exact || got == want)
		},
	})
}

// sameImage compares names as people write them: debian is debian:latest.
func sameImage(a, b string) bool {
	full := func(s string) string {
		named, err := reference.ParseNormalizedNamed(s)
		if err != nil {
			return s
		}
		return reference.TagNameOnly(named).String()
	}
	return full(a) == full(b)
}
