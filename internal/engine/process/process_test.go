package process

import (
	"testing"

	"creel/internal/image"
	"creel/internal/sandbox"

	"github.com/google/go-cmp/cmp"
)

func TestParseSignal(t *testing.T) {
	for s, want := range map[string]int{"TERM": 15, "sigterm": 15, "SIGKILL": 9, "9": 9, "64": 64,
		"RTMIN": 34, "SIGRTMIN+3": 37, "RTMAX-1": 63, "SIGRTMAX": 64} {
		if n, err := ParseSignal(s); n != want || err != nil {
			t.Errorf("%s: %d, %v", s, n, err)
		}
	}
	for _, s := range []string{"", "0", "65", "-1", "NONE", "SIGSIGTERM", "RTMIN-1", "RTMIN+31", "RTMAX+1", "RTMIN+"} {
		if n, err := ParseSignal(s); err == nil {
			t.Errorf("%q is %d", s, n)
		}
	}
}

func TestFor(t *testing.T) {
	img := image.Config{Entrypoint: []string{"entry"}, Cmd: []string{"cmd"}, Env: []string{"A=1", "B=2"}, WorkingDir: "/w", User: "u"}
	for name, tc := range map[string]struct {
		spec sandbox.Spec
		want []string
	}{
		"image's":              {sandbox.Spec{}, []string{"entry", "cmd"}},
		"command":              {sandbox.Spec{Command: []string{"x"}}, []string{"entry", "x"}},
		"entrypoint":           {sandbox.Spec{Entrypoint: []string{"e"}}, []string{"e"}},
		"both":                 {sandbox.Spec{Entrypoint: []string{"e"}, Command: []string{"x"}}, []string{"e", "x"}},
		"cleared with command": {sandbox.Spec{Entrypoint: []string{}, Command: []string{"x"}}, []string{"x"}},
		"cleared":              {sandbox.Spec{Entrypoint: []string{}}, nil},
	} {
		p, err := For(tc.spec, img)
		if (err != nil) != (tc.want == nil) || !cmp.Equal(p.Args, tc.want) {
			t.Errorf("%s: %v, %v", name, p.Args, err)
		}
	}
	p, err := For(sandbox.Spec{Env: []string{"B=3", "C=4", "C=5"}, User: "me"}, img)
	if diff := cmp.Diff([]string{"A=1", "B=3", "C=5"}, p.Env); diff != "" || err != nil || p.User != "me" || p.Dir != "/w" {
		t.Errorf("%s %+v, %v", diff, p, err)
	}
}
