package audit

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A quick look finds what keeps a record from being written, and what else is
// not as it should be; it says what mends it, and changes nothing. The verifier
// finds it too, unless told otherwise.
func TestInspect(t *testing.T) {
	flip := func(path string, at func(size int) int) error {
		data, err := os.ReadFile(path)
		if err == nil {
			data[at(len(data))] ^= 1
			err = os.WriteFile(path, data, 0o600)
		}
		return err
	}
	middle := func(size int) int { return size / 2 }
	for name, tc := range map[string]struct {
		spoil                 func(h *home) error
		broken, doubt, mended string
		unverified            bool // the verifier has nothing to say
	}{
		"nothing":        {spoil: func(*home) error { return nil }, unverified: true},
		"no key":         {func(h *home) error { return os.Remove(filepath.Join(h.dir, keyName)) }, "read audit key", "", "put it back", false},
		"damaged key":    {func(h *home) error { return flip(filepath.Join(h.dir, keyName), middle) }, "key is damaged", "", "put it back", false},
		"empty key":      {func(h *home) error { return os.Truncate(filepath.Join(h.dir, keyName), 0) }, "key is damaged", "", "put it back", false},
		"another's key":  {func(h *home) error { return exchangeKey(h) }, "not signed by this installation's key", "", "creel audit verify", false},
		"no public key":  {func(h *home) error { return os.Remove(filepath.Join(h.dir, PublicName)) }, "", "key.pub", "creel audit key rotate", true},
		"another public": {func(h *home) error { return flip(filepath.Join(h.dir, PublicName), middle) }, "", "not the public key", "creel audit key rotate", true},
		"no head":        {func(h *home) error { return os.Remove(filepath.Join(h.dir, HeadName)) }, "", "head is missing", "--expect", true},
		"no ledger":      {func(h *home) error { return os.Remove(h.segment(-1)) }, "files are gone", "", "from a copy", false},
		"ledger flipped": {func(h *home) error { return flip(h.segment(-1), middle) }, "read ledger", "", "creel audit verify", false},
		"begin flipped":  {func(h *home) error { return flip(h.segment(-1), func(int) int { return 60 }) }, "read ledger", "", "creel audit verify", false},
		"ledger empty":   {func(h *home) error { return os.Truncate(h.segment(-1), 0) }, "read ledger", "", "creel audit verify", false},
		"ledger cut": {func(h *home) error {
			data, err := os.ReadFile(h.segment(-1))
			lines := strings.SplitAfter(string(data), "\n")
			return errors.Join(err, os.WriteFile(h.segment(-1), []byte(strings.Join(lines[:6], "")), 0o600))
		}, "but had reached", "", "creel audit verify", false},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHome(t)
			h.append(KindAdmitted, 5)
			public := h.public()
			h.ledger.Close()
			if err := tc.spoil(h); err != nil {
				t.Fatal(err)
			}
			before := treeOf(t, h.dir)
			broken, doubt := Inspect(t.Context(), h.dir)
			for _, got := range []struct {
				err  error
				want string
			}{{broken, tc.broken}, {doubt, tc.doubt}} {
				if (got.err == nil) != (got.want == "") {
					t.Errorf("a look says %v, %v", broken, doubt)
				} else if got.err != nil && (!strings.Contains(got.err.Error(), got.want) || !strings.Contains(got.err.Error(), tc.mended)) {
					t.Errorf("got %v, want %q and %q", got.err, got.want, tc.mended)
				}
			}
			r, err := Verify(t.Context(), h.dir, public, Options{Live: true})
			if err != nil || (len(r.Faults) == 0) != tc.unverified {
				t.Errorf("the verifier says %+v, %v", r.Faults, err)
			}
			if after := treeOf(t, h.dir); after != before {
				t.Errorf("the directory was %q and is %q", before, after)
			}
			l, err := OpenLedger(h.dir)
			if (err == nil) != (tc.broken == "") && name != "ledger flipped" && name != "begin flipped" { // those lines are not read again
				t.Errorf("opening it: %v", err)
			}
			if err == nil {
				l.Close()
			}
		})
	}
}

func TestInspectOnTheFirstDay(t *testing.T) {
	for _, dir := range []string{filepath.Join(t.TempDir(), "none"), t.TempDir()} {
		if broken, doubt := Inspect(t.Context(), dir); broken != nil || doubt != nil {
			t.Errorf("%v, %v", broken, doubt)
		}
	}
}

// Of a ledger of several files the newest is looked at, from where the one
// before it ends.
func TestInspectOfSegments(t *testing.T) {
	h := newHome(t)
	big := strings.Repeat("x", 512<<10)
	for range 10 {
		if err := h.ledger.Append(t.Context(), Event{Kind: KindAdmitted, Data: map[string]string{"x": big}}); err != nil {
			t.Fatal(err)
		}
	}
	if paths, err := Segments(h.dir); err != nil || len(paths) < 2 {
		t.Fatal(paths, err)
	}
	if broken, doubt := Inspect(t.Context(), h.dir); broken != nil || doubt != nil {
		t.Errorf("%v, %v", broken, doubt)
	}
	data := read(t, h.segment(-1))
	data[len(data)/2] ^= 1
	write(t, h.segment(-1), data)
	if broken, _ := Inspect(t.Context(), h.dir); broken == nil {
		t.Error("a flip in the newest is not seen")
	}
}

// A head that is missing beside a ledger that had come far is made anew, and
// that is on record, once.
func TestMissingHeadIsOnRecord(t *testing.T) {
	h := newHome(t)
	for _, want := range []int{0, 1, 1} {
		if want == 1 {
			os.Remove(filepath.Join(h.dir, HeadName))
		}
		h.reopen()
		if missing, err := h.ledger.HeadMissing(); err != nil || missing != (want == 1) {
			t.Errorf("missing: %v, %v", missing, err)
		}
		before := countHeads(t, h)
		h.append(KindAdmitted, 2)
		if n := countHeads(t, h) - before; n != want {
			t.Errorf("%d records of a missing head, want %d", n, want)
		}
		if missing, err := h.ledger.HeadMissing(); err != nil || missing {
			t.Errorf("afterwards: %v, %v", missing, err)
		}
		h.sound(Options{Live: true})
	}
}

func countHeads(t *testing.T, h *home) (n int) {
	t.Helper()
	if err := eachRecord(h.segment(-1), []Kind{KindHead}, nil, func(Record) { n++ }); err != nil {
		t.Fatal(err)
	}
	return n
}

func exchangeKey(h *home) error {
	k, err := newKeyPair("")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(h.dir, keyName), []byte(k.private+"\n"+k.public+"\n"), 0o600)
}

// treeOf is every file below dir with its content.
func treeOf(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		b.WriteString(path + "\n" + string(data))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}
