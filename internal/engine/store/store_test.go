package store

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"creel/internal/keeper/launch"
	"creel/internal/sandbox"
)

func TestPrepare(t *testing.T) {
	dir := t.TempDir()
	state := filepath.Join(dir, "state")
	for range 2 {
		if err := Prepare(state); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(state, "version"), []byte(stateVersion), 0o600); err != nil { // echo -n
		t.Fatal(err)
	}
	if err := Prepare(state); err != nil {
		t.Errorf("without its newline: %v", err)
	}
	link := filepath.Join(dir, "link")
	os.Symlink(state, link)
	open := filepath.Join(dir, "open")
	os.Mkdir(open, 0o700)
	os.Chmod(open, 0o777)
	newer := filepath.Join(dir, "newer")
	os.Mkdir(newer, 0o700)
	os.WriteFile(filepath.Join(newer, "version"), []byte("2\n"), 0o600)
	for path, word := range map[string]string{link: "not yours alone", open: "not yours alone", newer: "newer creel"} {
		if err := Prepare(path); err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("%s: %v", filepath.Base(path), err)
		}
	}
}

// stored is a sandbox that is there, with its name.
func stored(t *testing.T, s *Store, name string) Record {
	t.Helper()
	rec := NewRecord(launch.Config{Spec: sandbox.Spec{ID: sandbox.NewID(), Name: name}})
	err := s.Locked(func() error {
		if err := s.TakeName(name, rec.ID()); err != nil {
			return err
		}
		lock, err := s.MakeDir(&rec, nil)
		if err != nil {
			return err
		}
		return errors.Join(lock.Close(), s.Write(rec))
	})
	if err != nil {
		t.Fatal(err)
	}
	return rec
}

func TestLookup(t *testing.T) {
	s := Open(t.TempDir())
	web, db := stored(t, s, "web"), stored(t, s, "db")
	lost := stored(t, s, "lost")
	if err := os.Remove(s.namePath("lost")); err != nil {
		t.Fatal(err)
	}
	stale := stored(t, s, "stale")
	if err := s.Change(stale.ID(), func(r *Record) error { r.Config.Spec.Name = "renamed"; return nil }); err != nil {
		t.Fatal(err)
	}
	for ref, want := range map[string]sandbox.ID{
		"web": web.ID(), string(db.ID()): db.ID(), string(db.ID())[:20]: db.ID(),
		"lost":    lost.ID(),  // the file of its name is not needed
		"renamed": stale.ID(), // nor
		"stale":   "", "": "", "nosuch": "", "../web": "", "../names/web": "", strings.Repeat("f", 32): "",
	} {
		got, err := s.Lookup(ref)
		if err != nil {
			t.Error(err)
		}
		if want == "" && len(got) > 0 || want != "" && (len(got) != 1 || got[0] != want) {
			t.Errorf("%q is %v, not %q", ref, got, want)
		}
	}
}

// Who looks for one sandbox does not read those of others: damage there is none
// of its business, and many of them do not slow it down.
func TestLookupReadsNoOther(t *testing.T) {
	s := Open(t.TempDir())
	web := stored(t, s, "web")
	other := stored(t, s, "other")
	path := filepath.Join(s.Dir(other.ID()), recordName)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(path, 0o600); err != nil { // whoever reads it waits
		t.Fatal(err)
	}
	found := make(chan []sandbox.ID, 3)
	go func() {
		for _, ref := range []string{"web", string(web.ID()), string(web.ID())[:31]} {
			got, _ := s.Lookup(ref)
			found <- got
		}
	}()
	for range 3 {
		select {
		case got := <-found:
			if len(got) != 1 || got[0] != web.ID() {
				t.Errorf("found %v", got)
			}
		case <-time.After(time.Minute):
			t.Fatal("it reads the other's record")
		}
	}
}

func TestLookupOfSeveral(t *testing.T) {
	s := Open(t.TempDir())
	seen := map[string]int{}
	for n := range 17 { // by then two begin with one digit
		rec := stored(t, s, "n"+strings.Repeat("x", n))
		seen[string(rec.ID())[:1]]++
	}
	for digit, n := range seen {
		if got, err := s.Lookup(digit); err != nil || len(got) != n {
			t.Errorf("%s: %d of %d, %v", digit, len(got), n, err)
		}
	}
}
