package content

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const testSize = 5<<20 + 3*pageBytes

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// memory makes a sparse file with data at the given places.
func memory(t testing.TB, size int64, data map[int64]string) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "memory"))
	must(t, err)
	t.Cleanup(func() { f.Close() })
	must(t, f.Truncate(size))
	for at, s := range data {
		_, err := f.WriteAt([]byte(s), at)
		must(t, err)
	}
	return f
}

func base() map[int64]string {
	return map[int64]string{0: "first", 3<<20 - 2: "across a window", testSize - 4: "last"}
}

func digestOf(t testing.TB, f *os.File) string {
	t.Helper()
	d, err := Memory(t.Context(), f, nil)
	must(t, err)
	return d
}

// TestMemoryIsTheDocumentedDigest computes it a second time, from the words of
// docs/format/template.md.
func TestMemoryIsTheDocumentedDigest(t *testing.T) {
	f := memory(t, testSize, base())
	data, err := os.ReadFile(f.Name())
	must(t, err)
	h := sha256.New()
	h.Write([]byte("memory-v1:"))
	h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(data))))
	for at := 0; at < len(data); at += 4096 {
		page := [4096]byte(data[at : at+4096])
		if page != [4096]byte{} {
			sum := sha256.Sum256(page[:])
			h.Write(binary.BigEndian.AppendUint64(nil, uint64(at)))
			h.Write(sum[:])
		}
	}
	if want, got := "memory-v1:"+hex.EncodeToString(h.Sum(nil)), digestOf(t, f); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestMemoryChangesWithAnyChange(t *testing.T) {
	want := digestOf(t, memory(t, testSize, base()))
	for name, f := range map[string]*os.File{
		"bit":          memory(t, testSize, map[int64]string{0: "girst", 3<<20 - 2: "across a window", testSize - 4: "last"}),
		"moved a page": memory(t, testSize, map[int64]string{4096: "first", 3<<20 - 2: "across a window", testSize - 4: "last"}),
		"moved a byte": memory(t, testSize, map[int64]string{1: "first", 3<<20 - 2: "across a window", testSize - 4: "last"}),
		"hole to data": memory(t, testSize, map[int64]string{0: "first", 3<<20 - 2: "across a window", testSize - 4: "last", 2 << 20: "x"}),
		"data to hole": memory(t, testSize, map[int64]string{0: "first", testSize - 4: "last"}),
		"longer":       memory(t, testSize+4096, base()),
	} {
		if digestOf(t, f) == want {
			t.Errorf("%s: the digest is the same", name)
		}
	}
	zeros := base()
	zeros[1<<20] = string(make([]byte, 64<<10))
	if digestOf(t, memory(t, testSize, zeros)) != want {
		t.Error("zeros that are written differ from holes")
	}
}

func TestMemoryCopies(t *testing.T) {
	zeros := base()
	zeros[1<<20] = string(make([]byte, 64<<10))
	src := memory(t, testSize, zeros)
	dst, err := NewMemfd("copy")
	must(t, err)
	defer dst.Close()
	want, err := Memory(t.Context(), src, dst)
	must(t, err)
	if got := digestOf(t, dst); got != want {
		t.Error("the copy has another digest")
	}
	windows, err := dataWindows(dst, testSize)
	must(t, err)
	if len(windows) != 4 { // the first, two for "across", the last
		t.Errorf("the copy has data in windows %v; zeros were copied", windows)
	}
	must(t, Seal(dst))
	if !Sealed(dst) || Sealed(src) {
		t.Error("Sealed does not tell a sealed file from another")
	}
	if _, err := dst.WriteAt([]byte("x"), 0); err == nil {
		t.Error("a sealed file was written")
	}
	if dst.Truncate(0) == nil || dst.Truncate(testSize*2) == nil {
		t.Error("a sealed file was resized")
	}
}

func TestMemoryRefusesPartOfAPage(t *testing.T) {
	if _, err := Memory(t.Context(), memory(t, 4097, nil), nil); err == nil {
		t.Error("4097 bytes were accepted")
	}
}

func TestCheck(t *testing.T) {
	path := filepath.Join(t.TempDir(), "root")
	must(t, os.WriteFile(path, []byte("content"), 0o600))
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	digest := Bytes([]byte("content"))

	young, err := Check(t.Context(), f, digest, Stamp{})
	must(t, err)
	if young.CTime != 0 {
		t.Error("a file changed a moment ago got a stamp that will match")
	}
	known, err := stampOf(f, digest)
	must(t, err)
	if got, err := Check(t.Context(), f, digest, known); err != nil || got != known {
		t.Errorf("an unchanged file: %v, %v", got, err)
	}
	// Same size, and the old times set again: only ctime tells.
	must(t, os.WriteFile(path, []byte("CONTENT"), 0o600))
	must(t, os.Chtimes(path, time.Time{}, time.Unix(0, known.MTime)))
	_, err = Check(t.Context(), f, digest, known)
	if _, ok := errors.AsType[*MismatchError](err); !ok {
		t.Errorf("a changed file: %v", err)
	}
}

func TestOpenTakesRegularFilesOnly(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	must(t, os.WriteFile(path("file"), nil, 0o600))
	must(t, os.Symlink("file", path("link")))
	must(t, unix.Mkfifo(path("pipe"), 0o600))
	for name, want := range map[string]bool{"file": true, "link": false, "pipe": false, ".": false, "absent": false} {
		f, err := Open(path(name))
		if (err == nil) != want {
			t.Errorf("%s: %v", name, err)
		}
		f.Close()
	}
}

func TestStamps(t *testing.T) {
	s := Stamps{Dir: t.TempDir()}
	digest := Bytes([]byte("x"))
	if s.Load(digest) != (Stamp{}) {
		t.Error("a stamp that was never saved")
	}
	want := Stamp{Digest: digest, Device: 1, Inode: 2, Size: 3, CTime: 4, MTime: 5}
	must(t, s.Save(want))
	if got := s.Load(digest); got != want {
		t.Errorf("got %v", got)
	}
	must(t, os.Rename(s.path(digest), s.path(Bytes([]byte("y")))))
	if s.Load(Bytes([]byte("y"))) != (Stamp{}) {
		t.Error("another file's stamp was taken")
	}
}

func BenchmarkMemory(b *testing.B) {
	src, err := NewMemfd("src")
	must(b, err)
	defer src.Close()
	must(b, src.Truncate(512<<20))
	chunk := make([]byte, 107<<20)
	for i := range chunk {
		chunk[i] = byte(i>>3) | 1
	}
	_, err = src.WriteAt(chunk, 0)
	must(b, err)
	for _, copying := range []bool{false, true} {
		name := map[bool]string{false: "hash", true: "copy"}[copying]
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(chunk)))
			for b.Loop() {
				var dst *os.File
				if copying {
					dst, err = NewMemfd("dst")
					must(b, err)
				}
				_, err := Memory(b.Context(), src, dst)
				must(b, err)
				dst.Close()
			}
		})
	}
}
