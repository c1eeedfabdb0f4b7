package audit

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// withDescriptors calls do while this process can have no descriptor from n on.
func withDescriptors(t *testing.T, n uint64, do func()) {
	t.Helper()
	var before unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: n, Max: before.Max}); err != nil {
		t.Fatal(err)
	}
	do()
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
}

// What the process that closes a log lacks is no fault of the log, wherever it
// comes to lack it: the log stays, and is closed later.
func TestWhatTheCloserLacksIsNoFaultOfTheLog(t *testing.T) {
	h := newHome(t)
	dir := h.run("aa", 3, false)
	public := h.public()
	closed, failed := false, 0
	for n := uint64(3); n < 200 && !closed; n++ {
		var verified Report
		var verifyErr, err error
		withDescriptors(t, n, func() {
			verified, verifyErr = Verify(t.Context(), h.dir, public, Options{Live: true})
			err = h.ledger.CloseSandbox(t.Context(), "aa", dir)
		})
		if verifyErr == nil && len(verified.Faults) > 0 {
			t.Errorf("with %d descriptors the verifier says %v", n, verified.Faults)
		}
		if errors.Is(err, ErrUnsound) {
			t.Fatalf("with %d descriptors: %v", n, err)
		}
		if closed = err == nil; !closed {
			failed++
			h.sound(Options{Live: true})
		}
	}
	if !closed || failed < 3 {
		t.Fatalf("closed: %v, after %d failures", closed, failed)
	}
	if r := h.sound(Options{Live: true}); r.Closed != 1 || r.Killed != 0 {
		t.Errorf("report %+v", r)
	}
}

// What is in a log's place and is none is its fault, once and for all.
func TestWhatIsNoLogIsAFault(t *testing.T) {
	for name, lay := range map[string]func(dir, log string) error{
		"a link":      func(_, log string) error { return errors.Join(os.Remove(log), os.Symlink("/dev/zero", log)) },
		"a directory": func(_, log string) error { return errors.Join(os.Remove(log), os.Mkdir(log, 0o700)) },
		"a pipe":      func(_, log string) error { return errors.Join(os.Remove(log), unix.Mkfifo(log, 0o600)) },
		"a socket":    func(_, log string) error { return errors.Join(os.Remove(log), unix.Mknod(log, unix.S_IFSOCK|0o600, 0)) },
		"nothing":     func(_, log string) error { return os.Remove(log) },
		"a file as its directory": func(dir, _ string) error {
			return errors.Join(os.RemoveAll(dir), os.WriteFile(dir, nil, 0o600))
		},
		"a link as its directory": func(dir, _ string) error { return errors.Join(os.RemoveAll(dir), os.Symlink("/", dir)) },
	} {
		t.Run(name, func(t *testing.T) {
			h := newHome(t)
			dir := h.run("aa", 3, false)
			if err := lay(dir, filepath.Join(dir, LogName)); err != nil {
				t.Fatal(err)
			}
			if err := h.ledger.CloseSandbox(t.Context(), "aa", dir); !errors.Is(err, ErrUnsound) {
				t.Errorf("error %v", err)
			}
			if err := h.ledger.CloseSandbox(t.Context(), "aa", dir); err != nil {
				t.Errorf("of one that is closed: %v", err)
			}
		})
	}
}

// A log on the disk that no opening is on record of harms nothing: a command
// was killed between the two.
func TestLogWithoutItsOpeningHarmsNothing(t *testing.T) {
	for name, content := range map[string]string{"empty": "", "half-written": `{"seq":0,"ti`} {
		t.Run(name, func(t *testing.T) {
			h := newHome(t)
			dir := filepath.Join(t.TempDir(), "log")
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			write(t, filepath.Join(dir, LogName), []byte(content))
			if err := errors.Join(h.ledger.CloseSandbox(t.Context(), "aa", dir), h.ledger.SetAside("aa", dir), h.ledger.CloseAside(t.Context())); err != nil {
				t.Error(err)
			}
			if r := h.sound(Options{Live: true}); r.Open != 0 || r.Closed != 0 {
				t.Errorf("report %+v", r)
			}
		})
	}
}

// What a prune says is what it did: where its record cannot be written, only
// what an earlier one had on record is gone.
func TestPruneSaysWhatItRemoved(t *testing.T) {
	h := newHome(t)
	for n := range 4 {
		h.run(fmt.Sprintf("aa%d", n), 3, true)
	}
	logs, err := h.ledger.closedLogs(t.Context())
	if err == nil {
		err = h.ledger.recordPruned(t.Context(), logs[:1])
	}
	if err != nil {
		t.Fatal(err)
	}
	h.ledger.seg.file.Close()
	if h.ledger.seg.file, err = os.Open(h.ledger.seg.path); err != nil { // nothing can be written
		t.Fatal(err)
	}
	r, err := h.ledger.Prune(t.Context(), old())
	if err == nil || len(r.Logs) != 1 || r.Logs[0].Sandbox != "aa0" || h.archives() != 3 {
		t.Errorf("pruned %+v, %v; %d logs are left", r.Logs, err, h.archives())
	}
	h.reopen()
	h.sound(Options{})
	if r := h.prune(old()); len(r.Logs) != 3 || h.archives() != 0 {
		t.Errorf("pruned %+v, %d logs are left", r.Logs, h.archives())
	}
	h.sound(Options{})
}
