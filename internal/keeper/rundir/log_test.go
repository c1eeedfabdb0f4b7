package rundir

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func openTestLog(t *testing.T) (*Log, *os.Root) {
	t.Helper()
	root, err := os.OpenRoot(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	l, err := New(root)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.End)
	return l, root
}

func TestLogKeepsOutputExactly(t *testing.T) {
	l, root := openTestLog(t)
	want := [][]byte{[]byte("plain\n"), {0, 0xff, '\n', 0x80}, bytes.Repeat([]byte("x"), 64<<10)}
	for i, data := range want {
		if err := l.Append(1+i%2, data); err != nil {
			t.Fatal(err)
		}
	}
	var got [][]byte
	if err := ReadLog(root.Name(), func(e Entry) error {
		if e.Stream != 1+len(got)%2 {
			t.Errorf("entry %d is of stream %d", len(got), e.Stream)
		}
		got = append(got, e.Data)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if len(got) != len(want) {
		t.Fatalf("%d entries, want %d", len(got), len(want))
	}
	for i := range want {
		if !bytes.Equal(got[i], want[i]) {
			t.Errorf("entry %d differs", i)
		}
	}
}

func TestLogIsBounded(t *testing.T) {
	l, root := openTestLog(t)
	chunk := bytes.Repeat([]byte("y"), 64<<10)
	for range 5 * logFileBytes / len(chunk) {
		if err := l.Append(1, chunk); err != nil {
			t.Fatal(err)
		}
	}
	var total int64
	for _, name := range []string{logCurrent, logOlder} {
		info, err := root.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		total += info.Size()
	}
	if total > 2*logFileBytes || total < logFileBytes {
		t.Errorf("the log takes %d bytes, want %d to %d", total, logFileBytes, 2*logFileBytes)
	}
}

// A follower that starts in the middle and reads slower than the log rotates
// once still gets every later entry, in order, and then the end.
func TestFollowGoesThroughRotation(t *testing.T) {
	l, _ := openTestLog(t)
	chunk := strings.Repeat("z", 60<<10)
	const entries = logFileBytes / (60 << 10) * 5 / 4 // past one rotation
	r, w := io.Pipe()
	go func() { w.CloseWithError(l.Follow(context.Background(), w)) }()
	go func() {
		for i := range entries {
			l.Append(1, []byte(chunk+string(rune('a'+i%26))))
		}
		l.End()
	}()
	n := 0
	err := Decode(r, func(e Entry) error {
		if last := e.Data[len(e.Data)-1]; last != byte('a'+n%26) {
			t.Fatalf("entry %d ends in %q", n, last)
		}
		n++
		return nil
	})
	if err != nil || n != entries {
		t.Errorf("%d entries of %d, error %v", n, entries, err)
	}
}

func TestReadLogLeavesOutAHalfWrittenLine(t *testing.T) {
	l, root := openTestLog(t)
	if err := l.Append(1, []byte("whole")); err != nil {
		t.Fatal(err)
	}
	if _, err := l.file.WriteString(`{"time":"2026-`); err != nil {
		t.Fatal(err)
	}
	n := 0
	if err := ReadLog(root.Name(), func(Entry) error { n++; return nil }); err != nil || n != 1 {
		t.Errorf("%d entries, error %v", n, err)
	}
}

// A keeper that a guest has taken over can lay a log of any size, and of any
// kind of file.
func TestReadersOfAHostileLogAreBounded(t *testing.T) {
	line := append([]byte(`{"time":"2026-01-31T15:04:05Z","stream":1,"data":"`), bytes.Repeat([]byte("eHh4"), 1<<10)...)
	line = append(line, "\"}\n"...)
	for name, lay := range map[string]func(path string) error{
		"huge":        func(p string) error { return os.WriteFile(p, bytes.Repeat(line, 2*logFileBytes/len(line)), 0o600) },
		"one line":    func(p string) error { return os.WriteFile(p, bytes.Repeat([]byte("x"), 2*logFileBytes), 0o600) },
		"a pipe":      func(p string) error { return unix.Mkfifo(p, 0o600) },
		"a link":      func(p string) error { return os.Symlink("/dev/zero", p) },
		"a directory": func(p string) error { return os.Mkdir(p, 0o700) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := lay(filepath.Join(dir, logCurrent)); err != nil {
				t.Fatal(err)
			}
			size := 0
			err := ReadLog(dir, func(e Entry) error { size += len(e.Data); return nil })
			if size > logFileBytes || name == "huge" && size < logFileBytes/2 {
				t.Errorf("%d bytes were read", size)
			}
			if err == nil && name != "huge" {
				t.Error("nothing was said of it")
			}
		})
	}
}
