package cli

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"creel/internal/engine"
	"creel/internal/sandbox"
)

func TestFilters(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.FixedZone("east", 7200))
	made := func(name string, age time.Duration, s sandbox.Status) engine.Found {
		f := engine.Found{Status: s}
		f.Record.Created = at.Add(-age)
		f.Record.ImageID = "sha256:0123456789abcdef0123"
		f.Record.Config.Spec = sandbox.Spec{ID: sandbox.ID(name + "0123"), Name: name, Image: "tools/" + name, Labels: map[string]string{"team": name}}
		return f
	}
	all := []engine.Found{
		made("new", 0, sandbox.Status{State: sandbox.StateRunning}), made("paused", time.Hour, sandbox.Status{State: sandbox.StateRunning, Paused: true}),
		made("old", 2*time.Hour, sandbox.Status{State: sandbox.StateExited, ExitCode: 7}), made("lost", 3*time.Hour, sandbox.Status{State: sandbox.StateLost}),
	}
	all[0].Record.Created = all[0].Record.Created.UTC() // another zone is no other time
	for _, c := range []struct{ filters, want []string }{
		{nil, []string{"new", "paused", "old", "lost"}},
		{[]string{"status=running"}, []string{"new"}}, {[]string{"status=paused"}, []string{"paused"}},
		{[]string{"status=dead", "status=exited"}, []string{"old", "lost"}}, {[]string{"exited=7"}, []string{"old"}}, {[]string{"exited=0"}, nil},
		{[]string{"name=l", "label=team"}, []string{"old", "lost"}}, {[]string{"label=team=old"}, []string{"old"}}, {[]string{"label=colour"}, nil},
		{[]string{"ancestor=tools/old:latest"}, []string{"old"}}, {[]string{"ancestor=old"}, nil}, {[]string{"ancestor=0123456789ab"}, []string{"new", "paused", "old", "lost"}},
		{[]string{"id=new0"}, []string{"new"}}, {[]string{"before=paused"}, []string{"old", "lost"}}, {[]string{"since=old0"}, []string{"new", "paused"}},
		{[]string{"since=lost", "before=new"}, []string{"paused", "old"}},
	} {
		match, err := filterKeys.Parse(c.filters)
		if err == nil {
			match, err = resolved(match, all)
		}
		if err != nil {
			t.Errorf("%q: %v", c.filters, err)
			continue
		}
		var got []string
		for _, f := range all {
			if matches(match, f) {
				got = append(got, f.Record.Config.Spec.Name)
			}
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%q: %q, want %q", c.filters, got, c.want)
		}
	}
	match, _ := filterKeys.Parse([]string{"since=nobody"})
	if _, err := resolved(match, all); !errors.Is(err, errdefs.ErrNotFound) {
		t.Error(err)
	}
	for _, bad := range []string{"status=well", "exited=-1", "exited=x", "colour=red", "name"} {
		if _, err := filterKeys.Parse([]string{bad}); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

func TestExceptLeavesOutOneKind(t *testing.T) {
	other := errors.New("in use")
	err := except(errors.Join(errdefs.ErrNotFound, other), errdefs.ErrNotFound)
	if !errors.Is(err, other) || errors.Is(err, errdefs.ErrNotFound) {
		t.Error(err)
	}
	if err := except(errors.Join(errdefs.ErrNotFound), errdefs.ErrNotFound); err != nil {
		t.Error(err)
	}
	if except(nil, errdefs.ErrNotFound) != nil || except(other, errdefs.ErrNotFound) != other {
		t.Error("what is not joined is changed")
	}
}
