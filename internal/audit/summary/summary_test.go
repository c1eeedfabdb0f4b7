package summary

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"creel/internal/audit"
	"creel/internal/audit/event"
	"creel/internal/audit/receipt"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// story writes a record as engine and keepers do.
type story struct {
	t      *testing.T
	dir    string
	ledger *audit.Ledger
}

func begin(t *testing.T) *story {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "audit")
	ledger, err := audit.OpenLedger(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ledger.Close() })
	return &story{t, dir, ledger}
}

func (s *story) add(to audit.Recorder, id string, kind audit.Kind, data any) {
	s.t.Helper()
	if err := to.Append(s.t.Context(), audit.Event{Kind: kind, Sandbox: id, Data: data}); err != nil {
		s.t.Fatal(err)
	}
}

func (s *story) admitted(id, name string) {
	s.t.Helper()
	s.add(s.ledger, id, audit.KindAdmitted, event.Admitted{Name: name, Image: "debian", Tier: "untrusted", Policy: "sha256:22"})
	s.add(s.ledger, id, audit.KindTemplate, event.Template{Image: "sha256:33", Template: "sha256:11", Accel: "tcg"})
}

// run opens a log, lets keeper write it, and closes it unless told not to.
func (s *story) run(id string, keeper func(*audit.Log), closing bool) {
	s.t.Helper()
	dir := s.t.TempDir()
	key, err := s.ledger.OpenSandbox(s.t.Context(), id, dir)
	if err != nil {
		s.t.Fatal(err)
	}
	log, err := audit.OpenLog(dir, key)
	if err != nil {
		s.t.Fatal(err)
	}
	keeper(log)
	if err := log.Close(); err != nil {
		s.t.Fatal(err)
	}
	if closing {
		if err := s.ledger.CloseSandbox(s.t.Context(), id, dir); err != nil {
			s.t.Fatal(err)
		}
	}
}

func (s *story) of(id string) (receipt.Receipt, error) {
	return Of(context.Background(), s.dir, id)
}

// Of a run whose log was pruned nobody can tell what happened, and no receipt
// must look as if nothing had.
func TestNoReceiptOfAPrunedRun(t *testing.T) {
	s := begin(t)
	for _, id := range []string{"aa", "bb"} {
		s.admitted(id, "web")
		s.run(id, func(*audit.Log) {}, true)
	}
	before, err := s.of("aa")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.ledger.Prune(t.Context(), audit.PruneOptions{Before: time.Now().Add(time.Hour), Keep: 1}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.of("aa"); !errors.Is(err, ErrPruned) || !strings.Contains(err.Error(), before.Audit.Log.Root.String()) {
		t.Errorf("error %v", err)
	}
	if _, err := s.of("bb"); err != nil {
		t.Errorf("of one that was kept: %v", err)
	}
}

func TestReceiptTellsWhatTheRecordSays(t *testing.T) {
	s := begin(t)
	s.admitted("aa", "web")
	s.run("aa", func(l *audit.Log) {
		s.add(l, "aa", event.KindConfined, event.Confined{VMM: "full", Keeper: "seccomp, landlock 7"})
		s.add(l, "aa", audit.KindStarted, event.Process{Args: []string{"true"}})
		s.add(l, "aa", event.KindCopied, event.Copied{Copy: event.Copy{Direction: event.In, Path: "/in"}, Digest: "sha256:44", Bytes: 4})
		s.add(l, "aa", audit.KindExit, event.Exit{ExitCode: 7})
		s.add(l, "aa", audit.KindCleanup, event.Cleanup{Complete: true})
	}, true)
	s.add(s.ledger, "aa", audit.KindCleanup, event.Cleanup{Complete: true, Checked: []string{"mounts"}, Kept: []string{"disk"}})
	s.run("aa", func(l *audit.Log) { // a helper, for files of what has ended
		s.add(l, "aa", event.KindCopied, event.Copied{Copy: event.Copy{Direction: event.Out, Path: "/out"}, Digest: "sha256:55", Bytes: 5})
		s.add(l, "aa", audit.KindExit, event.Exit{ExitCode: 0})
	}, true)
	got, err := s.of("aa")
	if err != nil {
		t.Fatal(err)
	}
	code := 7
	want := receipt.Receipt{
		Sandbox: "aa", Name: "web", Image: "debian", Template: "sha256:11", Policies: []string{"sha256:22"}, Tier: "untrusted",
		Confinement: "full; keeper: seccomp, landlock 7", Accel: "tcg", ExitCode: &code,
		FilesIn: []receipt.File{{Path: "/in", Digest: "sha256:44", Bytes: 4}}, FilesOut: []receipt.File{{Path: "/out", Digest: "sha256:55", Bytes: 5}},
		Cleanup: receipt.Cleanup{Complete: true, Checked: []string{"mounts"}, Kept: []string{"disk"}},
	}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(receipt.Receipt{}, "Started", "Finished", "Audit")); diff != "" {
		t.Error(diff)
	}
	if got.Started.IsZero() || got.Finished.Before(got.Started) || got.Audit.Log.Size == 0 || !strings.HasPrefix(got.Audit.Log.Origin, "creel/log/aa/") {
		t.Errorf("from %s to %s, log %+v", got.Started, got.Finished, got.Audit.Log)
	}
}

// A keeper that was taken over writes into its log what only the ledger has a
// say in.
func TestAKeeperHasNoSayInWhatTheLedgerSays(t *testing.T) {
	s := begin(t)
	s.admitted("aa", "web")
	s.run("aa", func(l *audit.Log) {
		s.add(l, "aa", audit.KindAdmitted, event.Admitted{Name: "forged", Tier: "trusted", Policy: "sha256:forged"})
		s.add(l, "aa", audit.KindTemplate, event.Template{Template: "sha256:forged"})
		s.add(l, "aa", audit.KindOpened, audit.Opened{Log: "creel/log/forged/1"})
		s.add(l, "aa", audit.KindClosed, audit.Closed{Log: "creel/log/forged/1", Head: &audit.Head{Origin: "forged"}})
		s.add(l, "aa", audit.KindCleanup, event.Cleanup{Complete: true, Checked: []string{"forged"}})
	}, true)
	s.add(s.ledger, "aa", audit.KindCleanup, event.Cleanup{Left: []string{"process 7"}})
	got, err := s.of("aa")
	if err != nil {
		t.Fatal(err)
	}
	if got.Name != "web" || got.Tier != "untrusted" || got.Template != "sha256:11" || got.Cleanup.Complete ||
		!strings.HasPrefix(got.Audit.Log.Origin, "creel/log/aa/") || got.ExitCode != nil {
		t.Errorf("the receipt says %+v", got)
	}
}

func TestNoReceiptOfWhatHasNotEnded(t *testing.T) {
	s := begin(t)
	s.admitted("aa", "refused-later")
	s.admitted("bb", "running")
	s.run("bb", func(*audit.Log) {}, false)
	if _, err := s.of("aa"); err == nil || !strings.Contains(err.Error(), "never began") {
		t.Errorf("without a log: %v", err)
	}
	if _, err := s.of("bb"); !errors.Is(err, ErrOpen) {
		t.Errorf("running: %v", err)
	}
	if _, err := s.of("cc"); !errors.Is(err, ErrUnknown) {
		t.Errorf("unknown: %v", err)
	}
}

func TestNamedFindsAlsoWhatIsGone(t *testing.T) {
	s := begin(t)
	s.admitted("aa11", "web")
	s.admitted("aa22", "web")
	s.admitted("bb33", "db")
	for ref, want := range map[string]string{"web": "aa22", "db": "bb33", "aa11": "aa11", "b": "bb33", "aa": "", "none": "", "": ""} {
		got, err := Named(t.Context(), s.dir, ref)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v, want %q", ref, got, err, want)
		}
	}
}
