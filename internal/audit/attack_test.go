package audit

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"creel/internal/audit/chain"

	"golang.org/x/mod/sumdb/note"
)

// lines splits a file into its lines, newlines included.
func lines(data []byte) [][]byte { return slices.Collect(bytes.Lines(data)) }

func replace(t *testing.T, path string, change func([][]byte) [][]byte) {
	t.Helper()
	write(t, path, bytes.Join(change(lines(read(t, path))), nil))
}

func copyTree(t *testing.T, from, to string) {
	t.Helper()
	if err := os.RemoveAll(to); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
}

// TestAttacks does to a sound record what somebody would who can write its
// files, and looks whether the offline verifier says so.
func TestAttacks(t *testing.T) {
	flip := func(line int, old, new string) func([][]byte) [][]byte {
		return func(l [][]byte) [][]byte {
			l[line] = bytes.Replace(l[line], []byte(old), []byte(new), 1)
			return l
		}
	}
	cut := func(l [][]byte) [][]byte { return l[:len(l)-2] }
	for name, attack := range map[string]struct {
		do   func(t *testing.T, h *home)
		want string
		head bool // seen only with a checkpoint that was kept elsewhere
	}{
		"edit of a ledger record": {func(t *testing.T, h *home) {
			replace(t, h.segment(0), flip(2, `"i":0`, `"i":7`))
		}, "edited", false},
		"edit of the last ledger record": {func(t *testing.T, h *home) {
			replace(t, h.segment(-1), func(l [][]byte) [][]byte { return flip(len(l)-2, `"i":`, `"j":`)(l) })
		}, "edited", false},
		"edit of a log record": {func(t *testing.T, h *home) {
			replace(t, h.archived("aa"), flip(2, `"i":0`, `"i":7`))
		}, "edited", false},
		"edit of an inner checkpoint's signature": {func(t *testing.T, h *home) {
			replace(t, h.archived("aa"), func(l [][]byte) [][]byte {
				i := bytes.LastIndex(l[3], []byte(`\n"}`)) - 20
				l[3][i] ^= 1
				return l
			})
		}, "edited", false},
		"edit of the last checkpoint's signature": {func(t *testing.T, h *home) {
			replace(t, h.archived("aa"), func(l [][]byte) [][]byte {
				last := l[len(l)-1]
				last[bytes.LastIndex(last, []byte(`\n"}`))-20] ^= 1
				return l
			})
		}, "not signed", false},
		"removal from the ledger": {func(t *testing.T, h *home) {
			replace(t, h.segment(0), func(l [][]byte) [][]byte { return slices.Delete(l, 2, 4) })
		}, "missing", false},
		"removal from a log": {func(t *testing.T, h *home) {
			replace(t, h.archived("aa"), func(l [][]byte) [][]byte { return slices.Delete(l, 2, 4) })
		}, "missing", false},
		"removal of a log": {func(t *testing.T, h *home) { os.Remove(h.archived("aa")) }, "is missing", false},
		"removal of the ledger's begin": {func(t *testing.T, h *home) {
			replace(t, h.segment(0), func(l [][]byte) [][]byte { return l[2:] })
		}, "missing", false},
		"reordering of the ledger": {func(t *testing.T, h *home) {
			replace(t, h.segment(0), func(l [][]byte) [][]byte { l[2], l[4] = l[4], l[2]; return l })
		}, "is numbered", false},
		"truncation of the ledger": {func(t *testing.T, h *home) {
			replace(t, h.segment(-1), cut)
		}, "cut off", true},
		"truncation of a closed log": {func(t *testing.T, h *home) {
			replace(t, h.archived("aa"), cut)
		}, "cut off", false},
		"truncation of a log within a commit": {func(t *testing.T, h *home) {
			replace(t, h.archived("aa"), func(l [][]byte) [][]byte { return l[:len(l)-1] })
		}, "no checkpoint covers", false},
		"truncation of a running log": {func(t *testing.T, h *home) {
			path := filepath.Join(h.run("cc", 3, false), LogName)
			s := chain.Scanner{}
			if err := s.Scan(t.Context(), bytes.NewReader(read(t, path))); err != nil {
				t.Fatal(err)
			}
			h.expect = append(h.expect, s.Last)
			replace(t, path, cut)
		}, "cut off", true},
		"swapped logs": {func(t *testing.T, h *home) {
			a, b := h.archived("aa"), h.archived("bb")
			dataA, dataB := read(t, a), read(t, b)
			write(t, a, dataB)
			write(t, b, dataA)
		}, "another log stands in its place", false},
		"a log that is not in the ledger": {func(t *testing.T, h *home) {
			write(t, filepath.Join(h.dir, logsName, "zz-0123456789abcdef.jsonl"), read(t, h.archived("aa")))
		}, "is not in the ledger", false},
		"a forked ledger": {func(t *testing.T, h *home) {
			back := h.dir + ".back"
			copyTree(t, h.dir, back)
			h.append(KindRefused, 1)
			h.expect = []Head{h.head()}
			h.ledger.Close()
			copyTree(t, back, h.dir)
			h.reopen()
			h.append(KindAdmitted, 1) // the same length, another history
		}, "fork", true},
		"a forked ledger with a log of the other branch": {func(t *testing.T, h *home) {
			back := h.dir + ".back"
			copyTree(t, h.dir, back)
			h.append(KindRefused, 1)
			h.run("cc", 1, true)
			theirs := read(t, h.archived("cc"))
			h.ledger.Close()
			copyTree(t, back, h.dir)
			h.reopen()
			h.run("cc", 1, true)
			write(t, h.archived("cc"), theirs)
		}, "another log stands in its place", false},
		"a rewritten ledger, by who has its key": {func(t *testing.T, h *home) {
			resign(t, h, func(e []chain.Entry) []chain.Entry {
				return slices.DeleteFunc(e, func(e chain.Entry) bool { return e.Kind == KindRefused })
			})
		}, "one of the two was rewritten", false},
		"a closing that claims more than there is": {func(t *testing.T, h *home) {
			path := filepath.Join(h.run("cc", 3, false), LogName)
			s := chain.Scanner{}
			if err := s.Scan(t.Context(), bytes.NewReader(read(t, path))); err != nil {
				t.Fatal(err)
			}
			write(t, ArchivePath(h.dir, s.Origin), read(t, path))
			s.Last.Size += 10
			closed := Closed{Log: s.Origin, Head: &s.Last, Ended: true}
			if err := h.ledger.Append(t.Context(), Event{Kind: KindClosed, Sandbox: "cc", Data: closed}); err != nil {
				t.Fatal(err)
			}
		}, "claims too much", false},
		"a closing of what was never opened": {func(t *testing.T, h *home) {
			err := h.ledger.Append(t.Context(), Event{Kind: KindClosed, Sandbox: "zz", Data: Closed{Log: "creel/log/zz/00"}})
			if err != nil {
				t.Fatal(err)
			}
		}, "which is not open", false},
		"a replayed segment": {func(t *testing.T, h *home) {
			first := read(t, h.segment(0))
			n := int64(len(lines(read(t, h.segment(-1)))))
			if h.segment(0) != h.segment(-1) {
				t.Fatal("the test wants one segment")
			}
			write(t, filepath.Join(h.dir, LedgerName, segmentName(n)), first)
		}, "repeated or put in another order", false},
		"a replayed commit": {func(t *testing.T, h *home) {
			replace(t, h.segment(0), func(l [][]byte) [][]byte { return append(l, l[2], l[3]) })
		}, "repeated or put in another order", false},
		"a missing segment": {func(t *testing.T, h *home) {
			os.Rename(h.segment(0), filepath.Join(h.dir, LedgerName, segmentName(9)))
		}, "a segment is missing", false},
		"a key of somebody else": {func(t *testing.T, h *home) {
			other := newHome(t)
			other.append(KindAdmitted, 1)
			other.ledger.Close()
			if err := os.RemoveAll(filepath.Join(h.dir, LedgerName)); err != nil {
				t.Fatal(err)
			}
			copyTree(t, filepath.Join(other.dir, LedgerName), filepath.Join(h.dir, LedgerName))
		}, "none of this ledger's", false},
		"a forged new key": {func(t *testing.T, h *home) {
			mine, err := newKeyPair(h.head().Origin)
			if err != nil {
				t.Fatal(err)
			}
			e, err := Event{Kind: KindKey, Data: keyData{Key: mine.public}}.encode()
			if err != nil {
				t.Fatal(err)
			}
			s := chain.Sealer{Origin: h.head().Origin, Signers: []note.Signer{mine.signer}, Peaks: true}
			c, err := s.Seal(&h.ledger.seg.tree, []chain.Entry{e}, time.Now())
			if err != nil {
				t.Fatal(err)
			}
			write(t, h.segment(-1), append(read(t, h.segment(-1)), c.Bytes...))
		}, "not signed by the one before it", false},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHome(t)
			h.append(KindAdmitted, 2)
			h.append(KindRefused, 1)
			h.run("aa", 4, true)
			h.run("bb", 4, true)
			h.append(KindAdmitted, 2)
			h.expect = []Head{h.head()}
			public := h.public()
			h.sound(Options{Live: true, Expect: h.expect})

			attack.do(t, h)
			o := Options{Live: true}
			if attack.head {
				o.Expect = h.expect
			}
			r, err := Verify(t.Context(), h.dir, public, o)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.ContainsFunc(r.Faults, func(f Fault) bool { return strings.Contains(f.What, attack.want) }) {
				t.Errorf("faults %q, want one with %q", r.Faults, attack.want)
			}
		})
	}
}

// resign writes the ledger anew with its own key, one commit a record, as
// somebody can who has stolen it.
func resign(t *testing.T, h *home, change func([]chain.Entry) []chain.Entry) {
	t.Helper()
	var entries []chain.Entry
	for _, raw := range lines(read(t, h.segment(0))) {
		l, err := chain.Parse(raw[:len(raw)-1])
		if err != nil {
			t.Fatal(err)
		}
		if l.Checkpoint == "" {
			entries = append(entries, chain.Entry{Kind: l.Kind, Sandbox: l.Sandbox, Data: l.Data})
		}
	}
	s := chain.Sealer{Origin: h.head().Origin, Signers: []note.Signer{h.ledger.key.signer}, Peaks: true}
	var tree chain.Tree
	var out []byte
	for _, e := range change(entries) {
		c, err := s.Seal(&tree, []chain.Entry{e}, time.Now().UTC())
		if err != nil {
			t.Fatal(err)
		}
		out, tree = append(out, c.Bytes...), c.Tree
	}
	write(t, h.segment(0), out)
}

// TestLedgerRefusesToGoOn where its files are not what they were: a fork must
// not be made by the next command without anybody noticing.
func TestLedgerRefusesToGoOn(t *testing.T) {
	for name, c := range map[string]struct {
		do   func(t *testing.T, h *home)
		want string
	}{
		"cut":         {func(t *testing.T, h *home) { replace(t, h.segment(0), func(l [][]byte) [][]byte { return l[:4] }) }, "it was cut"},
		"emptied":     {func(t *testing.T, h *home) { write(t, h.segment(0), nil) }, "it ends without a checkpoint"},
		"removed":     {func(t *testing.T, h *home) { os.Remove(h.segment(0)) }, "files are gone"},
		"exchanged":   {func(t *testing.T, h *home) { write(t, h.segment(0), read(t, newHome(t).segment(0))) }, "not signed by this installation's key"},
		"key removed": {func(t *testing.T, h *home) { os.Remove(filepath.Join(h.dir, keyName)) }, "read audit key"},
		"last commit spoiled": {func(t *testing.T, h *home) {
			replace(t, h.segment(0), func(l [][]byte) [][]byte { l[len(l)-1][0] = 'x'; return l })
		}, "it was cut"},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHome(t)
			h.append(KindAdmitted, 5)
			h.ledger.Close()
			c.do(t, h)
			l, err := OpenLedger(h.dir)
			if err == nil {
				l.Close()
			}
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

// TestKeyRotationSurvivesACrash at each moment of it.
func TestKeyRotationSurvivesACrash(t *testing.T) {
	for name, recorded := range map[string]bool{"before the record": false, "after the record": true} {
		t.Run(name, func(t *testing.T) {
			h := newHome(t)
			before := h.public()
			next, err := newKeyPair(h.head().Origin)
			if err != nil {
				t.Fatal(err)
			}
			if err := offerKey(h.dir, next); err != nil {
				t.Fatal(err)
			}
			want := before
			if recorded {
				want = next.public
				e, err := Event{Kind: KindKey, Data: keyData{Key: next.public, Retires: before}}.encode()
				if err != nil {
					t.Fatal(err)
				}
				if err := h.ledger.append([]chain.Entry{e}, nil, h.ledger.key.signer, next.signer); err != nil {
					t.Fatal(err)
				}
			}
			h.reopen()
			h.append(KindAdmitted, 1)
			if got := h.public(); got != want {
				t.Errorf("key in force %s, want %s", got, want)
			}
			h.sound(Options{})
			if r, err := Verify(t.Context(), h.dir, before, Options{}); err != nil || len(r.Faults) > 0 {
				t.Errorf("by the key before: %v %v", r.Faults, err)
			}
		})
	}
}

// TestCloseDistrustsTheKeeper whose directory it reads from.
func TestCloseDistrustsTheKeeper(t *testing.T) {
	for name, c := range map[string]struct {
		do   func(t *testing.T, path, other string)
		want string
	}{
		"link":    {func(t *testing.T, path, other string) { os.Remove(path); os.Symlink(other, path) }, "symbolic link"},
		"missing": {func(t *testing.T, path, other string) { os.Remove(path) }, "missing"},
		"emptied": {func(t *testing.T, path, other string) { os.Truncate(path, 0) }, "no checkpoint"},
		"folder":  {func(t *testing.T, path, other string) { os.Remove(path); os.Mkdir(path, 0o700) }, "not a regular file"},
		"other":   {func(t *testing.T, path, other string) { write(t, path, read(t, other)) }, "another log stands in its place"},
		"edited": {func(t *testing.T, path, other string) {
			write(t, path, bytes.Replace(read(t, path), []byte(`"i":1`), []byte(`"i":8`), 1))
		}, "edited"},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHome(t)
			dir, other := h.run("aa", 3, false), h.run("bb", 3, false)
			c.do(t, filepath.Join(dir, LogName), filepath.Join(other, LogName))
			err := h.ledger.CloseSandbox(t.Context(), "aa", dir)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
			if err := h.ledger.CloseSandbox(t.Context(), "aa", dir); err != nil {
				t.Errorf("closed again: %v", err)
			}
			r := h.verify(Options{Live: true})
			if len(r.Faults) != 1 || !strings.Contains(r.Faults[0].What, c.want) {
				t.Errorf("faults %v, want one with %q", r.Faults, c.want)
			}
			if _, err := os.Stat(filepath.Join(other, LogName)); err != nil {
				t.Errorf("what the link leads to: %v", err)
			}
		})
	}
}
