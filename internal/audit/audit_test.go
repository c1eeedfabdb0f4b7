package audit

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"creel/internal/audit/chain"

	"golang.org/x/sys/unix"
)

// home is one installation's audit directory in a test.
type home struct {
	expect []Head
	t      *testing.T
	dir    string
	ledger *Ledger
}

func newHome(t *testing.T) *home {
	t.Helper()
	h := &home{t: t, dir: filepath.Join(t.TempDir(), "audit")}
	h.reopen()
	t.Cleanup(func() { h.ledger.Close() })
	return h
}

func (h *home) reopen() {
	h.t.Helper()
	if h.ledger != nil {
		h.ledger.Close()
	}
	var err error
	if h.ledger, err = OpenLedger(h.dir); err != nil {
		h.t.Fatal(err)
	}
}

func (h *home) append(kind Kind, n int) {
	h.t.Helper()
	for i := range n {
		if err := h.ledger.Append(h.t.Context(), Event{Kind: kind, Data: map[string]int{"i": i}}); err != nil {
			h.t.Fatal(err)
		}
	}
}

// open begins a log and returns its directory.
func (h *home) open(id string) (*Log, string) {
	h.t.Helper()
	dir := filepath.Join(h.t.TempDir(), "log")
	key, err := h.ledger.OpenSandbox(h.t.Context(), id, dir)
	if err != nil {
		h.t.Fatal(err)
	}
	l, err := OpenLog(dir, key)
	if err != nil {
		h.t.Fatal(err)
	}
	return l, dir
}

// run writes a whole log of n events and returns its directory.
func (h *home) run(id string, n int, closeIt bool) string {
	h.t.Helper()
	l, dir := h.open(id)
	for i := range n {
		if err := l.Append(h.t.Context(), Event{Kind: KindExec, Sandbox: id, Data: map[string]int{"i": i}}); err != nil {
			h.t.Fatal(err)
		}
	}
	if err := l.Close(); err != nil {
		h.t.Fatal(err)
	}
	if closeIt {
		if err := h.ledger.CloseSandbox(h.t.Context(), id, dir); err != nil {
			h.t.Fatal(err)
		}
	}
	return dir
}

func (h *home) public() string {
	h.t.Helper()
	public, err := h.ledger.PublicKey()
	if err != nil {
		h.t.Fatal(err)
	}
	return public
}

func (h *home) head() Head {
	h.t.Helper()
	signed, err := h.ledger.Checkpoint()
	if err != nil {
		h.t.Fatal(err)
	}
	head, err := chain.ParseCheckpoint(signed)
	if err != nil {
		h.t.Fatal(err)
	}
	return head
}

func (h *home) verify(o Options) Report {
	h.t.Helper()
	r, err := Verify(h.t.Context(), h.dir, h.public(), o)
	if err != nil {
		h.t.Fatal(err)
	}
	return r
}

func (h *home) sound(o Options) Report {
	h.t.Helper()
	r := h.verify(o)
	if len(r.Faults) > 0 {
		h.t.Fatalf("faults in a sound record: %v", r.Faults)
	}
	return r
}

func (h *home) segment(n int) string {
	h.t.Helper()
	paths, err := Segments(h.dir)
	if err != nil || len(paths) == 0 {
		h.t.Fatal(paths, err)
	}
	if n < 0 {
		n += len(paths)
	}
	return paths[n]
}

func (h *home) archived(sandbox string) string {
	h.t.Helper()
	paths, err := filepath.Glob(filepath.Join(h.dir, logsName, sandbox+"-*"+extension))
	if err != nil || len(paths) != 1 {
		h.t.Fatal(paths, err)
	}
	return paths[0]
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func write(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestLedgerAndLogsVerify(t *testing.T) {
	h := newHome(t)
	h.append(KindAdmitted, 3)
	h.run("aa", 5, true)
	running := h.run("bb", 2, false)
	if err := h.ledger.RotateKey(); err != nil {
		t.Fatal(err)
	}
	first := read(t, h.segment(0))
	h.append(KindRefused, 1)
	r := h.sound(Options{Live: true, Expect: []Head{h.head()}})
	if r.Closed != 1 || r.Open != 1 || r.Killed != 0 || r.Keys != 2 {
		t.Errorf("report %+v", r)
	}
	if want := int64(1 + 3 + 2 + 7 + 1 + 4 + 1 + 1); r.Records != want {
		t.Errorf("%d records, want %d", r.Records, want)
	}
	// The first key goes on serving.
	var l chain.Line
	if err := json.Unmarshal(first[:bytes.IndexByte(first, '\n')], &l); err != nil {
		t.Fatal(err)
	}
	old, err := decodeData[keyData](l.Record())
	if err != nil {
		t.Fatal(err)
	}
	if old.Key == h.public() {
		t.Fatal("the key was not rotated")
	}
	if r, err := Verify(t.Context(), h.dir, old.Key, Options{}); err != nil || len(r.Faults) > 0 {
		t.Errorf("by the first key: %v %v", r.Faults, err)
	}
	var open []string
	err = h.ledger.Unclosed(t.Context(), func(sandbox string, o Opened) error {
		open = append(open, sandbox+" "+o.Dir)
		return nil
	})
	if want := "bb " + running; err != nil || len(open) != 1 || open[0] != want {
		t.Errorf("unclosed: %q %v, want %q", open, err, want)
	}
	if info, err := os.Stat(filepath.Join(h.dir, keyName)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("key file: %v %v", info.Mode(), err)
	}
}

func TestPrintingAKeyHidesIt(t *testing.T) {
	key, err := newSandboxKey("aa", DefaultMaxLog)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{fmt.Sprint(key), fmt.Sprintf("%+v", key), fmt.Sprintf("%#v", key), key.LogValue().String()} {
		if strings.Contains(s, "PRIVATE") || strings.Contains(s, key.Private) {
			t.Errorf("printed as %s", s)
		}
	}
}

func TestManyGoroutinesAndLedgersKeepOneChain(t *testing.T) {
	h := newHome(t)
	const ledgers, writers, each = 4, 5, 20
	var wg sync.WaitGroup
	for range ledgers {
		l, err := OpenLedger(h.dir)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		for range writers {
			wg.Go(func() {
				for range each {
					if err := l.Append(t.Context(), Event{Kind: KindAdmitted}); err != nil {
						t.Error(err)
					}
				}
			})
		}
	}
	wg.Wait()
	if r := h.sound(Options{}); r.Records != 1+ledgers*writers*each {
		t.Errorf("%d records", r.Records)
	}
}

// TestProcessHelper is a process of TestManyProcesses and TestKilledWriter.
func TestProcessHelper(t *testing.T) {
	dir, n := os.Getenv("AUDIT_TEST_DIR"), 0
	if dir == "" {
		t.Skip("only runs as a child of another test")
	}
	l, err := OpenLedger(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Sscan(os.Getenv("AUDIT_TEST_COUNT"), &n); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for i := 0; i < n || n < 0; i++ {
				if err := l.Append(context.Background(), Event{Kind: KindAdmitted, Data: map[string]string{"pad": strings.Repeat("x", 3000)}}); err != nil {
					t.Error(err)
					return
				}
				fmt.Println("durable")
			}
		})
	}
	wg.Wait()
}

func helper(t *testing.T, dir string, n int) *exec.Cmd {
	cmd := exec.Command(os.Args[0], "-test.run=^TestProcessHelper$", "-test.count=1")
	cmd.Env = append(os.Environ(), "AUDIT_TEST_DIR="+dir, fmt.Sprintf("AUDIT_TEST_COUNT=%d", n))
	return cmd
}

func TestManyProcessesKeepOneChainOverSegments(t *testing.T) {
	h := newHome(t)
	const processes, each = 3, 125
	var wg sync.WaitGroup
	for range processes {
		wg.Go(func() {
			if out, err := helper(t, h.dir, each).CombinedOutput(); err != nil {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
	wg.Wait()
	if r := h.sound(Options{}); r.Records != 1+processes*each*4 {
		t.Errorf("%d records", r.Records)
	}
	if paths, _ := Segments(h.dir); len(paths) < 2 {
		t.Errorf("segments %v: want more than one", paths)
	}
}

func TestKilledWriterLosesNothingDurable(t *testing.T) {
	h := newHome(t)
	cmd := helper(t, h.dir, -1)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	durable, buf := 0, make([]byte, 4096)
	for killed := false; ; {
		n, err := out.Read(buf)
		durable += bytes.Count(buf[:n], []byte("durable\n"))
		if durable > 50 && !killed {
			killed = true
			cmd.Process.Kill()
		}
		if err != nil {
			break
		}
	}
	cmd.Wait()
	h.append(KindAdmitted, 1)
	if r := h.sound(Options{}); r.Records < int64(durable) {
		t.Errorf("%d records, but %d were durable", r.Records, durable)
	}
}

func TestTornEndIsSetAsideAndRecorded(t *testing.T) {
	whole := newHome(t)
	whole.append(KindAdmitted, 3)
	data := read(t, whole.segment(0))
	last := bytes.LastIndexByte(data[:len(data)-1], '\n') + 1 // the checkpoint's line
	commit := bytes.LastIndexByte(data[:last-1], '\n') + 1    // its record's line
	for name, torn := range map[string][]byte{
		"half a record":              data[commit : commit+20],
		"a record, no checkpoint":    data[commit:last],
		"a record, half checkpoint":  data[commit : len(data)-9],
		"checkpoint without newline": data[commit : len(data)-1],
		"zeros":                      make([]byte, 5000),
	} {
		t.Run(name, func(t *testing.T) {
			h := newHome(t)
			h.append(KindAdmitted, 2)
			f, err := os.OpenFile(h.segment(0), os.O_WRONLY|os.O_APPEND, 0)
			if err != nil {
				t.Fatal(err)
			}
			f.Write(torn)
			f.Close()
			if r := h.verify(Options{}); len(r.Faults) > 0 {
				t.Errorf("the ledger was not mended before it was verified: %v", r.Faults) // PublicKey mends
			}
			h.append(KindAdmitted, 1)
			r := h.sound(Options{})
			if want := int64(1 + 2 + 1 + 1); r.Records != want {
				t.Errorf("%d records, want %d", r.Records, want)
			}
			aside, err := filepath.Glob(filepath.Join(h.dir, tornName, "*"))
			if err != nil || len(aside) != 1 || !bytes.Equal(read(t, aside[0]), torn) {
				t.Errorf("set aside: %v %v", aside, err)
			}
			if !bytes.Contains(read(t, h.segment(0)), []byte(`"kind":"recovered"`)) {
				t.Error("not recorded")
			}
		})
	}
}

// An opening is on record only once its log is on the disk: a command that is
// killed between the two must not look like one who has removed a log.
func TestNoOpeningWithoutItsLog(t *testing.T) {
	h := newHome(t)
	h.ledger.MaxLog = 1 // has no room for the log's own first line
	if _, err := h.ledger.OpenSandbox(t.Context(), "aa", filepath.Join(t.TempDir(), "log")); err == nil {
		t.Fatal("a log was made that has no room")
	}
	if err := h.ledger.Unclosed(t.Context(), func(id string, _ Opened) error {
		t.Errorf("an opening of %s is on record", id)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

func TestTornLogIsCutAndRecorded(t *testing.T) {
	h := newHome(t)
	for _, reopen := range []bool{true, false} {
		id := fmt.Sprint("torn-", reopen)
		dir := filepath.Join(t.TempDir(), "log")
		key, err := h.ledger.OpenSandbox(t.Context(), id, dir)
		if err != nil {
			t.Fatal(err)
		}
		l, err := OpenLog(dir, key)
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Append(t.Context(), Event{Kind: KindStarted, Sandbox: id}); err != nil {
			t.Fatal(err)
		}
		l.batch.Close() // as a killed keeper leaves it
		if _, err := l.file.WriteAt([]byte(`{"v":1,"seq":`), l.size); err != nil {
			t.Fatal(err)
		}
		if reopen {
			again, err := OpenLog(dir, key)
			if err != nil {
				t.Fatal(err)
			}
			if err := again.Close(); err != nil {
				t.Fatal(err)
			}
		}
		if err := h.ledger.CloseSandbox(t.Context(), id, dir); err != nil {
			t.Fatal(err)
		}
		l.file.Close()
	}
	r := h.sound(Options{})
	if r.Killed != 1 || r.Closed != 2 {
		t.Errorf("report %+v", r)
	}
	if !bytes.Contains(read(t, h.archived("torn-true")), []byte(`"kind":"recovered"`)) {
		t.Error("the cut is not in the log")
	}
	if !bytes.Contains(read(t, h.segment(-1)), []byte(`"torn":{"bytes":13`)) {
		t.Error("the cut is not in the ledger")
	}
}

// What one class of records uses up is not another's own room, in whatever order
// they come; and visitors get a share only.
func TestClassesHaveRoomOfTheirOwn(t *testing.T) {
	kinds := []Kind{"lookup", "published", "denied", KindExec, "policy", KindExit} // one of each class
	for greedy, kind := range kinds {
		t.Run(string(kind), func(t *testing.T) {
			h := newHome(t)
			dir := filepath.Join(t.TempDir(), "log")
			h.ledger.MaxLog = MinMaxLog
			key, err := h.ledger.OpenSandbox(t.Context(), "aa", dir)
			if err != nil {
				t.Fatal(err)
			}
			l, err := OpenLog(dir, key)
			if err != nil {
				t.Fatal(err)
			}
			defer l.file.Close()
			defer l.batch.Close()
			fill := func(kind Kind, size int) (bytes int64, err error) {
				before := l.size
				for err == nil {
					err = l.Append(t.Context(), Event{Kind: kind, Sandbox: "aa", Data: map[string]string{"x": strings.Repeat("x", size)}})
				}
				return l.size - before, err
			}
			var full *QuotaError
			for _, size := range []int{4 << 10, 0} { // to the last byte
				if _, err := fill(kind, size); !errors.As(err, &full) || !errors.Is(err, ErrQuota) || full.Visitors != (classOf[kind] == classVisitor) {
					t.Fatal(err)
				}
			}
			for class, other := range kinds {
				if class == greedy {
					continue
				}
				own := reserve(MinMaxLog, class)
				if kind == "published" && class == classGuest {
					own = MinMaxLog / 4 // it does not run out for visitors
				}
				if got, _ := fill(other, 100); got < own-4<<10 {
					t.Errorf("%s found %d bytes, and %d are its own", other, got, own)
				}
			}
			if l.size > MinMaxLog {
				t.Errorf("the log has %d bytes", l.size)
			}
		})
	}
}

func TestNoRecordNoSuccess(t *testing.T) {
	event := Event{Kind: KindExec, Sandbox: "aa", Data: map[string]string{"pad": strings.Repeat("x", 40<<10)}}
	open := func(t *testing.T) (*Log, string) {
		h := newHome(t)
		dir := filepath.Join(t.TempDir(), "log")
		key, err := h.ledger.OpenSandbox(t.Context(), "aa", dir)
		if err != nil {
			t.Fatal(err)
		}
		key.MaxBytes = 400 << 10
		l, err := OpenLog(dir, key)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			l.batch.Close() // an event that was given up may still be on its way
			l.file.Close()
		})
		return l, filepath.Join(dir, LogName)
	}
	t.Run("quota", func(t *testing.T) {
		l, path := open(t)
		var err error
		for n := 0; err == nil && n < 100; n++ {
			err = l.Append(t.Context(), event)
		}
		if !errors.Is(err, ErrQuota) {
			t.Fatalf("got %v", err)
		}
		if err := l.Append(t.Context(), Event{Kind: KindExit, Sandbox: "aa"}); err != nil {
			t.Errorf("the end of the run found no room: %v", err)
		}
		if info, _ := os.Stat(path); info.Size() != l.size || info.Size() > 400<<10 {
			t.Errorf("%d bytes in the file, %d known", info.Size(), l.size)
		}
	})
	t.Run("file gone", func(t *testing.T) {
		l, path := open(t)
		os.Remove(path)
		if err := l.Append(t.Context(), event); err == nil || !strings.Contains(err.Error(), "deleted") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("file cut", func(t *testing.T) {
		l, path := open(t)
		os.Truncate(path, 10)
		if err := l.Append(t.Context(), event); err == nil || !strings.Contains(err.Error(), "something else") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("not writable", func(t *testing.T) {
		l, path := open(t)
		l.file.Close()
		l.file, _ = os.Open(path)
		before := read(t, path)
		if err := l.Append(t.Context(), event); err == nil {
			t.Error("no error")
		}
		if !bytes.Equal(before, read(t, path)) {
			t.Error("the file has changed")
		}
	})
	t.Run("context ended", func(t *testing.T) {
		l, _ := open(t)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		for range 100 { // either may come first
			if err := l.Append(ctx, Event{Kind: KindExec}); err != nil {
				return
			}
		}
		t.Error("an ended context was never noticed")
	})
	t.Run("too large", func(t *testing.T) {
		l, _ := open(t)
		if err := l.Append(t.Context(), Event{Kind: KindExec, Data: map[string]string{"x": strings.Repeat("x", chain.MaxLine)}}); err == nil {
			t.Error("no error")
		}
	})
	t.Run("not an object", func(t *testing.T) {
		l, _ := open(t)
		if err := l.Append(t.Context(), Event{Kind: KindExec, Data: "text"}); err == nil {
			t.Error("no error")
		}
	})
	t.Run("disk full", func(t *testing.T) { fullDisk(t, event) })
}

// fullDisk fills a small file system and finds ledger and log as they were.
func fullDisk(t *testing.T, event Event) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=256k"); err != nil {
		t.Skipf("a small file system cannot be mounted: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	h := &home{t: t, dir: filepath.Join(dir, "audit")}
	h.reopen()
	defer h.ledger.Close()
	logDir := filepath.Join(dir, "log")
	key, err := h.ledger.OpenSandbox(t.Context(), "aa", logDir)
	if err != nil {
		t.Fatal(err)
	}
	l, err := OpenLog(logDir, key)
	if err != nil {
		t.Fatal(err)
	}
	defer l.file.Close()
	for name, r := range map[string]Recorder{"log": l, "ledger": h.ledger} {
		var err error
		written := 0
		for ; err == nil && written < 20; written++ {
			err = r.Append(t.Context(), event)
		}
		if !errors.Is(err, unix.ENOSPC) {
			t.Fatalf("%s: got %v", name, err)
		}
	}
	h.sound(Options{Live: true})
	if info, err := l.file.Stat(); err != nil || info.Size() != l.size {
		t.Errorf("%d bytes in the log, %d known: something half-written was left", info.Size(), l.size)
	}
}
