package audit

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"creel/internal/audit/chain"

	"golang.org/x/sys/unix"
)

func event(id string) Event {
	return Event{Kind: KindExec, Sandbox: id, Data: map[string]string{"pad": strings.Repeat("x", 8<<10)}}
}

// padded is an open log that has grown so far that zeros follow its commits.
func (h *home) padded(id string) (*Log, string) {
	h.t.Helper()
	l, dir := h.open(id)
	for l.size < padFrom {
		if l.end != l.size {
			h.t.Fatalf("%d zeros behind %d bytes", l.end-l.size, l.size)
		}
		if err := l.Append(h.t.Context(), event(id)); err != nil {
			h.t.Fatal(err)
		}
	}
	return l, dir
}

// kill leaves a log as a killed keeper does.
func (l *Log) kill() {
	l.batch.Close()
	l.file.Close()
}

func TestCommitsOverwriteZeros(t *testing.T) {
	h := newHome(t)
	l, dir := h.padded("aa")
	path := filepath.Join(dir, LogName)
	before := read(t, path)
	if int64(len(before)) <= l.size || len(bytes.Trim(before[l.size:], "\x00")) > 0 {
		t.Fatalf("%d bytes in the file, %d of the log: want zeros between", len(before), l.size)
	}
	if err := l.Append(t.Context(), event("aa")); err != nil {
		t.Fatal(err)
	}
	if n := len(read(t, path)); n != len(before) {
		t.Errorf("an append made %d bytes of %d", n, len(before))
	}
	for range 100 { // over the end of the zeros
		if err := l.Append(t.Context(), event("aa")); err != nil {
			t.Fatal(err)
		}
	}
	h.sound(Options{Live: true})
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if n := len(read(t, path)); int64(n) != l.size {
		t.Errorf("%d bytes in a log that was closed with %d", n, l.size)
	}
	if err := h.ledger.CloseSandbox(t.Context(), "aa", dir); err != nil {
		t.Fatal(err)
	}
	h.sound(Options{})
}

func TestZerosKeepToTheQuota(t *testing.T) {
	h := newHome(t)
	l, dir := h.padded("aa")
	l.max = 1 << 20
	var err error
	for err == nil {
		err = l.Append(t.Context(), event("aa"))
	}
	if err := l.Append(t.Context(), Event{Kind: KindExit, Sandbox: "aa"}); err != nil {
		t.Errorf("the end of the run found no room: %v", err)
	}
	if n := len(read(t, filepath.Join(dir, LogName))); n > 1<<20 {
		t.Errorf("%d bytes", n)
	}
	l.kill()
}

func TestNoRoomForZerosIsNoFault(t *testing.T) {
	disk := t.TempDir()
	if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=420k"); err != nil {
		t.Skipf("a small file system cannot be mounted: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(disk, unix.MNT_DETACH) })
	h := newHome(t)
	key, err := h.ledger.OpenSandbox(t.Context(), "aa", disk)
	if err != nil {
		t.Fatal(err)
	}
	l, err := OpenLog(disk, key)
	if err != nil {
		t.Fatal(err)
	}
	defer l.kill()
	for l.size < padFrom+64<<10 {
		if err := l.Append(t.Context(), event("aa")); err != nil {
			t.Fatal(err)
		}
	}
	if !l.bare || int64(len(read(t, filepath.Join(disk, LogName)))) != l.size {
		t.Errorf("bare %v, %d bytes known", l.bare, l.size)
	}
	h.sound(Options{Live: true})
}

// TestKilledLogWithZeros is closed as one without: what a crash left of a commit
// is set aside, blocks of it may be missing, and zeros are nothing.
func TestKilledLogWithZeros(t *testing.T) {
	for name, leave := range map[string]func(commit []byte) []byte{
		"nothing of a commit":                   func(c []byte) []byte { return nil },
		"half a record":                         func(c []byte) []byte { return c[:20] },
		"the end of a commit":                   func(c []byte) []byte { clear(c[:100]); return c },
		"a commit with a hole":                  func(c []byte) []byte { clear(c[1000:2000]); return c },
		"a commit without its checkpoint's end": func(c []byte) []byte { return c[:len(c)-40] },
		"a commit without its newline":          func(c []byte) []byte { return c[:len(c)-1] },
	} {
		t.Run(name, func(t *testing.T) {
			h := newHome(t)
			l, dir := h.padded("aa")
			at := l.size
			if err := l.Append(t.Context(), event("aa")); err != nil {
				t.Fatal(err)
			}
			l.kill()
			path := filepath.Join(dir, LogName)
			data := read(t, path)
			left := leave(bytes.Clone(data[at:l.size]))
			clear(data[at:])
			copy(data[at:], left)
			write(t, path, data)
			h.sound(Options{Live: true})
			if err := h.ledger.CloseSandbox(t.Context(), "aa", dir); err != nil {
				t.Fatal(err)
			}
			h.sound(Options{})
			if got := read(t, h.archived("aa")); !bytes.Equal(got, data[:at]) {
				t.Errorf("%d bytes in the archive, want %d", len(got), at)
			}
			aside, _ := filepath.Glob(filepath.Join(h.dir, tornName, "*"))
			if len(aside) > 0 != (left != nil) || left != nil && !bytes.Equal(read(t, aside[0]), left) {
				t.Errorf("set aside: %v", aside)
			}
		})
	}
}

func TestReopenedLogHasNoZeros(t *testing.T) {
	h := newHome(t)
	dir := filepath.Join(t.TempDir(), "log")
	key, err := h.ledger.OpenSandbox(t.Context(), "aa", dir)
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, LogName), append(read(t, filepath.Join(dir, LogName)), make([]byte, 5000)...))
	l, err := OpenLog(dir, key)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Append(t.Context(), event("aa")); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(read(t, filepath.Join(dir, LogName)), []byte(KindRecovered)) {
		t.Error("zeros are on record as torn")
	}
}

// TestAttacksOnZeros finds that they hide nothing.
func TestAttacksOnZeros(t *testing.T) {
	for name, c := range map[string]struct {
		do    func(data []byte, size int64) []byte
		want  string // of the verifier; "": nothing that a cut would not do as well
		noted bool   // by the keeper, which appends no more
	}{
		"an inner record": {func(d []byte, _ int64) []byte { clear(d[3000:4000]); return d }, "line 2", false},
		"the first byte of an inner commit": {func(d []byte, _ int64) []byte {
			d[bytes.Index(d, []byte(`{"v":1,"seq":4,`))] = 0
			return d
		}, "line 4", false},
		"a checkpoint that two follow": {func(d []byte, size int64) []byte {
			clear(d[bytes.LastIndex(d[:size-13<<10], []byte(`"checkpoint"`)):][:10])
			return d
		}, "line ", false},
		"the last commit":                 {func(d []byte, size int64) []byte { clear(d[size-8<<10 : size]); return d }, "", false},
		"more behind the zeros":           {func(d []byte, _ int64) []byte { return append(d, "x"...) }, "", true},
		"no zeros":                        {func(d []byte, size int64) []byte { return d[:size] }, "", true},
		"a commit again, among the zeros": {func(d []byte, size int64) []byte { copy(d[size+4096:], d[:3000]); return d }, "line ", false},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHome(t)
			l, dir := h.padded("aa")
			path := filepath.Join(dir, LogName)
			write(t, path, c.do(read(t, path), l.size))
			r := h.verify(Options{Live: true})
			if got := fmt.Sprint(r.Faults); len(r.Faults) > 0 != (c.want != "") || !strings.Contains(got, c.want) {
				t.Errorf("faults %s, want %q", got, c.want)
			}
			if err := l.Append(t.Context(), event("aa")); (err != nil) != c.noted {
				t.Errorf("append: %v", err)
			}
			l.kill()
		})
	}
}

func TestZerosInAClosedLogAreAFault(t *testing.T) {
	h := newHome(t)
	l, dir := h.padded("aa")
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := h.ledger.CloseSandbox(t.Context(), "aa", dir); err != nil {
		t.Fatal(err)
	}
	h.sound(Options{})
	write(t, h.archived("aa"), append(read(t, h.archived("aa")), 0))
	if r := h.verify(Options{}); len(r.Faults) != 1 || !strings.Contains(r.Faults[0].What, "1 bytes at its end that no checkpoint covers") {
		t.Errorf("faults %v", r.Faults)
	}
}

// TestVerifyWhileALogIsWritten to, whose zeros become commits as they are read.
func TestVerifyWhileALogIsWritten(t *testing.T) {
	h := newHome(t)
	l, _ := h.padded("aa")
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	var writing sync.WaitGroup
	for range 4 {
		writing.Go(func() {
			small := Event{Kind: KindExec, Sandbox: "aa"}
			for ctx.Err() == nil {
				l.Append(t.Context(), small)
			}
		})
	}
	for ctx.Err() == nil {
		h.sound(Options{Live: true})
	}
	writing.Wait()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestWrittenIsBounded(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), LogName))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for size, want := range map[int64]int64{0: 0, 1000: 0, 1 << 40: 1<<40 - padMost - chain.MaxTorn} {
		if err := f.Truncate(size); err != nil {
			t.Fatal(err)
		}
		if got, err := Written(f); err != nil || got != want {
			t.Errorf("%d zeros: written %d, want %d, %v", size, got, want, err)
		}
	}
}
