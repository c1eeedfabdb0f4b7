package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"creel/internal/secret"

	"filippo.io/age"
	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/zalando/go-keyring"
)

const (
	plain = "s3cr3t-of-the-test"
	other = "0ther-0f-the-tests"
)

var bearer = secret.Binding{Hosts: []string{"api.test"}, Use: secret.Use{As: secret.AsBearer}}

func value(t testing.TB, s string) secret.Value {
	t.Helper()
	v, err := secret.NewValue(s)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// clock is a time that tests set.
type clock struct{ now time.Time }

func newStore(t testing.TB) (*Store, *clock) {
	t.Helper()
	c := &clock{time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)}
	s := Open(Options{Dir: filepath.Join(t.TempDir(), "secrets"), Now: func() time.Time { return c.now }})
	t.Cleanup(func() { nothingPlain(t, s.dir) })
	return s, c
}

// nothingPlain searches all files of a store for the values of these tests.
func nothingPlain(t testing.TB, dir string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		if leaks(string(data)) {
			t.Errorf("%s holds a value", path)
		}
		info, err2 := d.Info()
		if err2 == nil && info.Mode().Perm() != 0o600 && d.Name() != "loose"+extension {
			t.Errorf("%s has mode %s", path, info.Mode())
		}
		return errors.Join(err, err2)
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

func leaks(text string) bool {
	return strings.Contains(text, plain) || strings.Contains(text, other) || strings.Contains(text, "czNjcjN0") || strings.Contains(text, "MHRoZXIt")
}

func set(t testing.TB, s *Store, name string, src Source, v secret.Value) {
	t.Helper()
	if _, err := s.Set(t.Context(), Request{Name: name, Source: src, Binding: bearer, Value: v}); err != nil {
		t.Fatal(err)
	}
}

func revealed(t testing.TB, s *Store, name string) string {
	t.Helper()
	g, err := s.Resolve(t.Context(), []string{name})
	if err != nil {
		t.Fatal(err)
	}
	return g[0].Value.Reveal()
}

// wantFault wants an error with all of these words and without any value.
func wantFault(t testing.TB, err error, words ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("no error; want one with %q", words)
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%q does not say %q", err, w)
		}
	}
	if leaks(err.Error()) {
		t.Errorf("an error holds a value: %q", err)
	}
}

func TestSetRotateRemove(t *testing.T) {
	s, c := newStore(t)
	if all, err := s.List(); err != nil || len(all) != 0 {
		t.Fatalf("a store that is not there has %v, %v", all, err)
	}
	start := c.now
	r := Request{Name: "key", Source: Source{Kind: Age}, MaxAge: time.Hour, Value: value(t, plain),
		Binding: secret.Binding{Hosts: []string{"API.test.", "*.b.test"}, Methods: []string{"GET"}, Paths: []string{"/v1/**"}, Use: secret.Use{As: secret.AsStandIn, Env: "KEY"}}}
	if replaced, err := s.Set(t.Context(), r); err != nil || replaced {
		t.Fatal(replaced, err)
	}
	c.now = c.now.Add(50 * time.Minute)
	if err := s.Rotate(t.Context(), "key", value(t, other)); err != nil {
		t.Fatal(err)
	}
	e, err := s.Get("key")
	if err != nil {
		t.Fatal(err)
	}
	want := Entry{Name: "key", Source: Source{Kind: Age}, Created: start, Rotated: c.now, MaxAge: time.Hour, Binding: r.Binding}
	want.Binding.Hosts = []string{"api.test", "*.b.test"}
	e.sealed = nil
	if diff := cmp.Diff(want, e, cmp.AllowUnexported(Entry{})); diff != "" {
		t.Error(diff)
	}
	grants, err := s.Resolve(t.Context(), []string{"key", "key"})
	if err != nil || len(grants) != 1 {
		t.Fatal(grants, err)
	}
	g := grants[0]
	if g.Value.Reveal() != other || len(g.StandIn) != len(other) || g.StandIn == other || !cmp.Equal(g.Binding, want.Binding) {
		t.Errorf("grant %+v with the value %q", g, g.Value.Reveal())
	}
	c.now = c.now.Add(time.Minute)
	if replaced, err := s.Set(t.Context(), Request{Name: "key", Source: Source{Kind: Age}, Binding: bearer, Value: value(t, plain)}); err != nil || !replaced {
		t.Fatal(replaced, err)
	}
	if e, err = s.Get("key"); err != nil || !e.Created.Equal(start) || !e.Rotated.Equal(c.now) || e.Binding.Use.As != secret.AsBearer || e.MaxAge != 0 {
		t.Errorf("replaced: %+v, %v", e, err)
	}
	removed, err := s.Remove(t.Context(), []string{"none", "key", "../x"})
	if !slices.Equal(removed, []string{"key"}) {
		t.Errorf("removed %v", removed)
	}
	wantFault(t, err, `"none": not found`, `"../x"`)
	if _, err := s.Get("key"); !errdefs.IsNotFound(err) {
		t.Errorf("still there: %v", err)
	}
}

func TestFaultsComeAtOnce(t *testing.T) {
	s, c := newStore(t)
	_, err := s.Set(t.Context(), Request{Name: "-", Source: Source{Kind: "paper"}, MaxAge: -1,
		Binding: secret.Binding{Hosts: []string{"a..b"}, Paths: []string{"/a?b"}}})
	wantFault(t, err, `secret name "-"`, `source "paper"`, "maximum age", "host", "as:", "path \"/a?b\"")
	_, err = s.Set(t.Context(), Request{Name: "n", Source: Source{Kind: Age}, Binding: bearer})
	wantFault(t, err, "value: there is none")
	_, err = s.Set(t.Context(), Request{Name: "n", Source: Source{Kind: Age}, Binding: bearer, Value: value(t, plain+"\nline")})
	wantFault(t, err, "line breaks")
	wantFault(t, s.Rotate(t.Context(), "n", value(t, plain)), "not found", "creel secret set")
	if _, err := os.Stat(s.path("n")); err == nil {
		t.Error("something was kept")
	}

	set(t, s, "good", Source{Kind: Age}, value(t, plain))
	set(t, s, "unset", Source{Kind: Env, Ref: "CREEL_TEST_UNSET"}, secret.Value{})
	if _, err := s.Set(t.Context(), Request{Name: "old", Source: Source{Kind: Age}, MaxAge: time.Hour, Binding: bearer, Value: value(t, plain)}); err != nil {
		t.Fatal(err)
	}
	c.now = c.now.Add(time.Hour + time.Second)
	grants, err := s.Resolve(t.Context(), []string{"good", "none", "unset", "old"})
	wantFault(t, err, `"none": not found`, "CREEL_TEST_UNSET is not set", `creel secret rotate old`)
	if grants != nil {
		t.Errorf("grants %v beside an error", grants)
	}
	if err := s.Rotate(t.Context(), "old", value(t, other)); err != nil || revealed(t, s, "old") != other {
		t.Errorf("rotating does not mend: %v", err)
	}
}

func TestSources(t *testing.T) {
	s, _ := newStore(t)
	dir := t.TempDir()
	path := filepath.Join(dir, "value")
	write := func(name, text string, mode os.FileMode) string {
		t.Helper()
		p := filepath.Join(dir, name)
		if err := errors.Join(os.WriteFile(p, []byte(text), mode), os.Chmod(p, mode)); err != nil {
			t.Fatal(err)
		}
		return p
	}
	write("value", plain+"\n", 0o600)
	script := write("a script", "#!/bin/sh\nprintf '%s\\r\\n' \""+plain+"$1\"\n", 0o700)
	failing := write("failing", "#!/bin/sh\necho "+plain+"\necho \"I will not give you "+plain+"\x1b[31m\" >&2\nexit 3\n", 0o700)
	endless := write("endless", "#!/bin/sh\nexec yes "+plain+"\n", 0o700)
	t.Setenv("CREEL_TEST_SECRET", plain)
	t.Setenv("CREEL_TEST_SHORT", "short")
	keyring.MockInit()
	if err := keyring.Set("service", "user/x", plain); err != nil {
		t.Fatal(err)
	}
	list := func(args ...string) string { return Source{Kind: Command, Args: args}.String() }
	for text, want := range map[string]string{ // the end of the value, or words of the fault
		"env:CREEL_TEST_SECRET":         "",
		"file:" + path:                  "",
		"command:cat " + path:           "",
		list(script, "; exit 1 $HOME"):  "; exit 1 $HOME",
		"keyring:service/user/x":        "",
		"env:CREEL_TEST_NONE":           "!is not set here",
		"env:CREEL_TEST_SHORT":          "!at least 8",
		"file:/does/not/exist":          "!no such file",
		"file:/dev/zero":                "!not a regular file",
		"file:" + dir:                   "!not a regular file",
		list(failing):                   "!saying: I will not give you [secret] [31m; run it by hand",
		list(endless):                   "!it printed more than",
		"command:creel-no-such-program": "!not found",
		"command:true":                  "!0 bytes",
		"keyring:service/nobody":        "!is not in it",
	} {
		src, err := ParseSource(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if again, err := ParseSource(src.String()); err != nil || !cmp.Equal(again, src) {
			t.Errorf("%s is read back as %v, %v", text, again, err)
		}
		set(t, s, "x", src, secret.Value{})
		g, err := s.Resolve(t.Context(), []string{"x"})
		rotated := s.Rotate(t.Context(), "x", secret.Value{})
		if fault, ok := strings.CutPrefix(want, "!"); ok {
			wantFault(t, err, fault)
			wantFault(t, rotated, fault)
		} else if err != nil || rotated != nil || g[0].Value.Reveal() != plain+want {
			t.Errorf("%s: %v, %v, %v", text, err, rotated, g)
		}
	}
}

func TestWhatACommandSaidHoldsNothingItPrinted(t *testing.T) {
	for said, printed := range map[string]string{
		"denied for " + plain:                             plain + "\n",
		"denied for my own value and more":                "my own value\n",
		strings.Repeat("x", maxSaid-len(plain)/2) + plain: plain,
		plain + " and " + other:                           plain + "\n" + other,
	} {
		out := quoted(said, printed)
		if leaks(out) || strings.Contains(out, plain[:6]) || strings.Contains(out, "my own") || len(out) > maxSaid+20 {
			t.Errorf("%.80q of %q is %.80q", said, printed, out)
		}
	}
	if out := quoted("one\n\x1b[31mtwo", ""); out != ", saying: one [31mtwo" {
		t.Errorf("%q", out)
	}
}

func TestSourcesThatAreNone(t *testing.T) {
	for _, text := range []string{"", "paper", "age:x", "env:", "env:A=B", "file:relative", "file:/a/../b", "command:", `command:["a"`, `command:[""]`, "command:[1]",
		"keyring:", "keyring:service", "keyring:/user", "keyring:service/", "env:a\x00b", "file:/" + strings.Repeat("a", 5000)} {
		if s, err := ParseSource(text); err == nil {
			t.Errorf("%.40q is %v", text, s)
		}
	}
}

func TestACommandIsStoppedWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	fifo := filepath.Join(t.TempDir(), "started")
	script := "#!/bin/sh\necho $$ >" + fifo + "\nexec tail -f /dev/null\n"
	path := filepath.Join(t.TempDir(), "hangs")
	if err := os.WriteFile(path, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := exec.Command("mkfifo", fifo).Run(); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := os.ReadFile(fifo); err != nil {
			t.Error(err)
		}
		cancel(errors.New("enough"))
	})
	_, err := run(ctx, []string{path})
	wantFault(t, err, "enough")
	wg.Wait()
}

func TestPermissionsOfOthers(t *testing.T) {
	for name, c := range map[string]struct {
		mode func(*Store) (string, os.FileMode)
		want string
	}{
		"directory": {func(s *Store) (string, os.FileMode) { return s.dir, 0o750 }, "chmod 700"},
		"identity":  {func(s *Store) (string, os.FileMode) { return s.identity, 0o640 }, "chmod 600"},
	} {
		s, _ := newStore(t)
		set(t, s, "key", Source{Kind: Age}, value(t, plain))
		path, mode := c.mode(s)
		before, err := os.Stat(path)
		if err != nil || before.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s is made with %v, %v", name, before.Mode(), err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		_, err = s.Resolve(t.Context(), []string{"key"})
		wantFault(t, err, c.want)
		_, err = s.Set(t.Context(), Request{Name: "key", Source: Source{Kind: Age}, Binding: bearer, Value: value(t, plain)})
		wantFault(t, err, c.want)
		found, err := s.Check(t.Context())
		if err != nil || !strings.Contains(fmt.Sprint(found), c.want) {
			t.Errorf("check says %v, %v", found, err)
		}
		if err := os.Chmod(path, before.Mode()); err != nil {
			t.Fatal(err)
		}
	}
}

func TestCheck(t *testing.T) {
	s, c := newStore(t)
	dir := t.TempDir()
	open := filepath.Join(dir, "open")
	if err := errors.Join(os.WriteFile(open, []byte(plain), 0o600), os.Chmod(open, 0o644)); err != nil {
		t.Fatal(err)
	}
	set(t, s, "good", Source{Kind: Age}, value(t, plain))
	set(t, s, "loose", Source{Kind: Age}, value(t, plain))
	set(t, s, "open", Source{Kind: File, Ref: open}, secret.Value{})
	set(t, s, "unset", Source{Kind: Env, Ref: "CREEL_TEST_UNSET"}, secret.Value{})
	set(t, s, "unbound", Source{Kind: Age}, value(t, plain))
	set(t, s, "broken", Source{Kind: Age}, value(t, plain))
	if _, err := s.Set(t.Context(), Request{Name: "old", Source: Source{Kind: Age}, MaxAge: time.Hour, Binding: bearer, Value: value(t, plain)}); err != nil {
		t.Fatal(err)
	}
	c.now = c.now.Add(2 * time.Hour)
	edit(t, s.path("unbound"), `"api.test"`, "")
	edit(t, s.path("broken"), `"version": 1`, `"version": 1, "more": 2`)
	if err := os.Chmod(s.path("loose"), 0o644); err != nil {
		t.Fatal(err)
	}
	found, err := s.Check(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"": "damaged", "good": "", "loose": "chmod 600", "open": open + " is open to others", "unset": "is not set",
		"unbound": "hosts: 0", "old": "rotate"}
	for _, f := range found {
		w, ok := want[f.Name]
		delete(want, f.Name)
		if all := strings.Join(f.Faults, "; "); !ok || (w == "") != (all == "") || !strings.Contains(all, w) || leaks(all) {
			t.Errorf("%q: %q, want %q", f.Name, all, w)
		}
	}
	if len(want) > 0 {
		t.Errorf("not spoken of: %v", want)
	}
}

func edit(t *testing.T, path, old, new string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil || !bytes.Contains(data, []byte(old)) {
		t.Fatalf("%s: %v, %s", path, err, data)
	}
	if err := os.WriteFile(path, bytes.Replace(data, []byte(old), []byte(new), 1), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestEntriesAreReadStrictly(t *testing.T) {
	for name, c := range map[string]struct{ old, new, want string }{
		"newer":    {`"version": 1`, `"version": 2`, "use the newer creel"},
		"unknown":  {`"version": 1`, `"version": 1, "x": 1`, "damaged"},
		"renamed":  {`"name": "key"`, `"name": "yek"`, "damaged"},
		"no value": {`"sealed"`, `"maxAgeSeconds": 1, "Sealed2"`, "damaged"},
		"source":   {`"kind": "age"`, `"kind": "env", "ref": "A"`, "damaged"},
		"age":      {`"version": 1`, `"version": 1, "maxAgeSeconds": -1`, "damaged"},
		"more":     {"\n}\n", "\n}\n{}", "damaged"},
		"cut":      {"\n}\n", "", "damaged"},
		"sealed":   {`"sealed": "Y`, `"sealed": "A`, "decrypt"},
	} {
		s, _ := newStore(t)
		set(t, s, "key", Source{Kind: Age}, value(t, plain))
		edit(t, s.path("key"), c.old, c.new)
		_, err := s.Resolve(t.Context(), []string{"key"})
		wantFault(t, err, c.want)
		if err == nil {
			t.Error(name)
		}
		_, err = s.Set(t.Context(), Request{Name: "key", Source: Source{Kind: Age}, Binding: bearer, Value: value(t, other)})
		if name == "newer" {
			wantFault(t, err, c.want)
		} else if err != nil || revealed(t, s, "key") != other {
			t.Errorf("%s: setting it again does not mend: %v", name, err)
		}
	}
}

func TestTheIdentityMayLieElsewhere(t *testing.T) {
	dir := t.TempDir()
	s := Open(Options{Dir: filepath.Join(dir, "secrets"), Identity: filepath.Join(dir, "elsewhere", "id")})
	set(t, s, "key", Source{Kind: Age}, value(t, plain))
	if _, err := os.Stat(filepath.Join(dir, "secrets", identityName)); err == nil {
		t.Error("there is an identity beside the secrets")
	}
	if got := revealed(t, s, "key"); got != plain {
		t.Errorf("got %q", got)
	}
	// Missing: no other is made in its place.
	away := filepath.Join(dir, "away")
	if err := os.Rename(s.identity, away); err != nil {
		t.Fatal(err)
	}
	_, err := s.Resolve(t.Context(), []string{"key"})
	wantFault(t, err, "secretsIdentity")
	_, err = s.Set(t.Context(), Request{Name: "two", Source: Source{Kind: Age}, Binding: bearer, Value: value(t, other)})
	wantFault(t, err, `secret "key" is encrypted for it`)
	// Another one.
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.identity, []byte(id.String()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = s.Resolve(t.Context(), []string{"key"})
	wantFault(t, err, "another identity")
	// No identity at all.
	if err := os.WriteFile(s.identity, []byte(plain), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = s.Resolve(t.Context(), []string{"key"})
	wantFault(t, err, "holds no age identities")
	// An older one behind a newer one serves both.
	old, err := os.ReadFile(away)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.identity, append([]byte(id.String()+"\n"), old...), 0o600); err != nil {
		t.Fatal(err)
	}
	set(t, s, "two", Source{Kind: Age}, value(t, other))
	if revealed(t, s, "key") != plain || revealed(t, s, "two") != other {
		t.Error("two identities do not serve both")
	}
}
