package audit

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"creel/internal/audit/chain"
)

// old is every closed log.
func old() PruneOptions { return PruneOptions{Before: time.Now().Add(time.Hour)} }

func (h *home) prune(o PruneOptions) PruneResult {
	h.t.Helper()
	r, err := h.ledger.Prune(h.t.Context(), o)
	if err != nil {
		h.t.Fatal(err)
	}
	return r
}

// archives are the closed logs that are there.
func (h *home) archives() int {
	h.t.Helper()
	files, err := filepath.Glob(filepath.Join(h.dir, logsName, "*"))
	if err != nil {
		h.t.Fatal(err)
	}
	return len(files)
}

func TestPruneKeepsTheLedgerVerifiable(t *testing.T) {
	h := newHome(t)
	for n := range 5 {
		h.run(fmt.Sprintf("aa%d", n), 3, true)
	}
	running, _ := h.open("open")
	defer running.Close()
	if r := h.prune(PruneOptions{Before: time.Now().Add(-time.Hour)}); len(r.Logs) != 0 || h.archives() != 5 {
		t.Errorf("pruned what is too young: %+v", r)
	}
	before := h.head()
	dry := old()
	dry.DryRun, dry.Keep = true, 2
	if r := h.prune(dry); len(r.Logs) != 3 || h.archives() != 5 || h.head() != before {
		t.Errorf("a dry run: %+v, %d logs", r, h.archives())
	}
	dry.DryRun = false
	r := h.prune(dry)
	if len(r.Logs) != 3 || r.Logs[0].Sandbox != "aa0" || r.Logs[0].Bytes == 0 || h.archives() != 2 {
		t.Errorf("pruned %+v, %d logs are left", r, h.archives())
	}
	report := h.sound(Options{Live: true})
	if report.Pruned != 3 || report.Closed != 5 || report.Open != 1 {
		t.Errorf("report %+v", report)
	}
	if r := h.prune(old()); len(r.Logs) != 2 {
		t.Errorf("pruned %+v", r)
	}
	h.sound(Options{Live: true})
	if r := h.prune(old()); len(r.Logs) != 0 {
		t.Errorf("pruned twice: %+v", r)
	}
}

// However far a prune came, the record verifies, and the next one finishes it.
func TestPruneThatWasKilled(t *testing.T) {
	for name, until := range map[string]func(h *home, logs []closedLog){
		"before the record": func(*home, []closedLog) {},
		"after the first records": func(h *home, logs []closedLog) {
			h.ledger.recordPruned(h.t.Context(), logs[:1])
		},
		"before the removal": func(h *home, logs []closedLog) {
			h.ledger.recordPruned(h.t.Context(), logs)
		},
		"amid the removal": func(h *home, logs []closedLog) {
			h.ledger.recordPruned(h.t.Context(), logs)
			os.Remove(h.archived("aa1"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHome(t)
			for n := range 3 {
				h.run(fmt.Sprintf("aa%d", n), 3, true)
			}
			logs, err := h.ledger.closedLogs(t.Context())
			if err != nil || len(logs) != 3 {
				t.Fatalf("%d logs, %v", len(logs), err)
			}
			until(h, logs)
			h.reopen()
			h.sound(Options{})
			h.prune(old())
			if report := h.sound(Options{}); report.Pruned != 3 || h.archives() != 0 {
				t.Errorf("%+v, %d logs are left", report, h.archives())
			}
		})
	}
}

// To prune a log must not be the way to hide what was done to it.
func TestDamagedLogsAreNotPruned(t *testing.T) {
	for name, do := range map[string]func(t *testing.T, h *home){
		"missing": func(t *testing.T, h *home) { os.Remove(h.archived("aa")) },
		"edited": func(t *testing.T, h *home) {
			replace(t, h.archived("aa"), func(l [][]byte) [][]byte {
				l[2] = bytes.Replace(l[2], []byte(`"i":0`), []byte(`"i":7`), 1)
				return l
			})
		},
		"cut": func(t *testing.T, h *home) {
			replace(t, h.archived("aa"), func(l [][]byte) [][]byte { return l[:len(l)-2] })
		},
		"exchanged": func(t *testing.T, h *home) { write(t, h.archived("aa"), read(t, h.archived("bb"))) },
	} {
		t.Run(name, func(t *testing.T) {
			h := newHome(t)
			h.run("aa", 3, true)
			h.run("bb", 3, true)
			do(t, h)
			r := h.prune(old())
			if len(r.Damaged) != 1 || len(r.Logs) != 1 || r.Logs[0].Sandbox != "bb" {
				t.Errorf("%+v", r)
			}
			if report := h.verify(Options{}); len(report.Faults) == 0 || report.Pruned != 1 {
				t.Errorf("the verifier says %+v", report)
			}
		})
	}
}

// Only what the ledger says is pruned is, and a checkpoint that was kept
// elsewhere is held against what the ledger has of its end.
func TestVerifierOfPrunedLogs(t *testing.T) {
	begin := func(t *testing.T) (*home, Head) {
		h := newHome(t)
		h.run("aa", 3, true)
		logs, err := h.ledger.closedLogs(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return h, *logs[0].closed.Head
	}
	want := func(t *testing.T, h *home, o Options, words string) {
		t.Helper()
		var all []string
		for _, f := range h.verify(o).Faults {
			all = append(all, f.String())
		}
		if got := strings.Join(all, "\n"); !strings.Contains(got, words) || (words == "") != (got == "") {
			t.Errorf("faults %q, want %q", got, words)
		}
	}
	t.Run("never closed", func(t *testing.T) {
		h, head := begin(t)
		head.Origin += "0"
		h.ledger.Append(t.Context(), Event{Kind: KindPruned, Data: Pruned{head.Origin, head}})
		want(t, h, Options{}, "not closed")
	})
	t.Run("another end", func(t *testing.T) {
		h, head := begin(t)
		head.Size++
		h.ledger.Append(t.Context(), Event{Kind: KindPruned, Data: Pruned{head.Origin, head}})
		want(t, h, Options{}, "did not end so")
	})
	t.Run("twice", func(t *testing.T) {
		h, head := begin(t)
		for range 2 {
			h.ledger.Append(t.Context(), Event{Kind: KindPruned, Data: Pruned{head.Origin, head}})
		}
		want(t, h, Options{}, "pruned already")
	})
	t.Run("expectations", func(t *testing.T) {
		h, head := begin(t)
		h.prune(old())
		want(t, h, Options{Expect: []Head{head}}, "")
		forked, longer, earlier := head, head, head
		forked.Root[0]++
		longer.Size++
		earlier.Size--
		want(t, h, Options{Expect: []Head{forked}}, "another root")
		want(t, h, Options{Expect: []Head{longer}}, "cut off")
		want(t, h, Options{Expect: []Head{earlier}}, "was pruned")
	})
}

// A log whose closing could not be recorded outlives its directory, verifies
// meanwhile, and is closed later.
func TestLogsThatAreSetAside(t *testing.T) {
	for name, ended := range map[string]bool{"ended": true, "killed": false} {
		t.Run(name, func(t *testing.T) {
			h := newHome(t)
			l, dir := h.open("aa-b") // a dash is no end of a name
			l.Append(t.Context(), Event{Kind: KindExec, Sandbox: "aa-b"})
			if ended {
				l.Close()
			} else {
				l.batch.Close()
				l.file.Close()
			}
			if err := h.ledger.SetAside("aa-b", dir); err != nil {
				t.Fatal(err)
			}
			if _, err := os.Stat(dir); err == nil {
				t.Error("the directory is still there")
			}
			for _, live := range []bool{true, false} {
				if r := h.sound(Options{Live: live}); r.Aside != 1 || r.Open != 1 {
					t.Errorf("report %+v", r)
				}
			}
			copied := &home{t: t, dir: filepath.Join(t.TempDir(), "copy")}
			copyTree(t, h.dir, copied.dir)
			file, _ := filepath.Glob(filepath.Join(copied.dir, asideName, "*", LogName))
			write(t, file[0], bytes.Replace(read(t, file[0]), []byte("exec"), []byte("exit"), 1))
			if r, err := Verify(t.Context(), copied.dir, h.public(), Options{}); err != nil || len(r.Faults) == 0 {
				t.Errorf("an edit of it is not seen: %+v, %v", r, err)
			}
			for range 2 {
				if err := h.ledger.CloseAside(t.Context()); err != nil {
					t.Fatal(err)
				}
				if r := h.sound(Options{Live: true}); r.Aside != 0 || r.Closed != 1 || (r.Killed == 0) != ended {
					t.Errorf("report %+v", r)
				}
			}
			if left, _ := os.ReadDir(filepath.Join(h.dir, asideName)); len(left) != 0 {
				t.Errorf("left: %v", left)
			}
			if err := h.ledger.SetAside("aa-b", dir); err != nil {
				t.Errorf("of one that is closed: %v", err)
			}
		})
	}
}

// Where only a copy was taken and the source is gone, the copy is closed.
func TestCopyWithoutClosingIsClosed(t *testing.T) {
	h := newHome(t)
	dir := h.run("aa", 3, false)
	opened, _, err := h.ledger.findOpen("aa", func(*Opened) bool { return true })
	if err == nil {
		_, err = h.ledger.archive(t.Context(), opened)
	}
	if err := errors.Join(err, os.RemoveAll(dir)); err != nil {
		t.Fatal(err)
	}
	if err := h.ledger.CloseSandbox(t.Context(), "aa", dir); err != nil {
		t.Error(err)
	}
	h.sound(Options{Live: true})
}

// A damaged head is said to be, is not replaced, and keeps nobody from reading.
func TestDamagedHead(t *testing.T) {
	for name, change := range map[string]func(old []byte, other *home) []byte{
		"garbage":          func([]byte, *home) []byte { return []byte("x") },
		"empty":            func([]byte, *home) []byte { return nil },
		"zeros":            func(old []byte, _ *home) []byte { return make([]byte, len(old)) },
		"cut":              func(old []byte, _ *home) []byte { return old[:len(old)/2] },
		"another size":     func(old []byte, _ *home) []byte { return bytes.Replace(old, []byte("\n11\n"), []byte("\n10\n"), 1) },
		"another ledger's": func(_ []byte, other *home) []byte { return read(other.t, filepath.Join(other.dir, HeadName)) },
	} {
		t.Run(name, func(t *testing.T) {
			h, other := newHome(t), newHome(t)
			h.append(KindAdmitted, 5)
			other.append(KindAdmitted, 5)
			public := h.public()
			h.ledger.Close()
			path := filepath.Join(h.dir, HeadName)
			whole := read(t, path)
			if head, err := chain.ParseCheckpoint(string(whole)); err != nil || head.Size != 11 {
				t.Fatalf("head %+v, %v", head, err)
			}
			spoiled := change(whole, other)
			write(t, path, spoiled)
			if _, err := OpenLedger(h.dir); err == nil || !strings.Contains(err.Error(), "damaged") || !strings.Contains(err.Error(), "creel audit verify") {
				t.Errorf("error %v", err)
			}
			l, err := PrepareLedger(h.dir)
			if err != nil {
				t.Fatal(err)
			}
			if err := l.Append(t.Context(), Event{Kind: KindAdmitted}); err == nil {
				t.Error("it goes on")
			}
			l.Close()
			if !bytes.Equal(read(t, path), spoiled) {
				t.Error("the head was replaced")
			}
			if r, err := Verify(t.Context(), h.dir, public, Options{Live: true}); err != nil || len(r.Faults) != 1 || r.Faults[0].Where != HeadName {
				t.Errorf("the verifier: %+v, %v", r, err)
			}
			if broken, _ := Inspect(t.Context(), h.dir); broken == nil || !strings.Contains(broken.Error(), "creel audit verify") {
				t.Errorf("a look says %v", broken)
			}
			os.Remove(path) // as the error says
			h.ledger = nil
			h.reopen()
			h.append(KindAdmitted, 1)
		})
	}
}

// A head that a rotation or a killed writer has left is none that is damaged.
func TestHeadsThatAreFine(t *testing.T) {
	h := newHome(t)
	h.append(KindAdmitted, 3)
	path := filepath.Join(h.dir, HeadName)
	before := read(t, path)
	if err := h.ledger.RotateKey(); err != nil {
		t.Fatal(err)
	}
	rotated := read(t, path)
	h.append(KindAdmitted, 1) // a shorter checkpoint follows one that two keys have signed
	for _, head := range [][]byte{before, rotated, append(read(t, path), "\n\n\n"...)} {
		write(t, path, head)
		h.sound(Options{Live: true})
		if broken, doubt := Inspect(t.Context(), h.dir); broken != nil || doubt != nil {
			t.Errorf("a look says %v, %v", broken, doubt)
		}
		h.reopen()
		h.append(KindAdmitted, 1)
	}
}
