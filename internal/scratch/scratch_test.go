package scratch

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func needMke2fs(t testing.TB) {
	t.Helper()
	if err := run(t.Context(), "mke2fs", "-V"); err != nil {
		t.Skip(err)
	}
}

func superblock(t *testing.T, path string) []byte {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, superBytes)
	if _, err := f.ReadAt(b, superAt); err != nil {
		t.Fatal(err)
	}
	return b
}

func TestNewMakesSoundAndDistinctDisks(t *testing.T) {
	needMke2fs(t)
	cache := filepath.Join(t.TempDir(), "cache")
	for _, kind := range []Kind{Disposable, Durable} {
		for _, size := range []int64{MinBytes, 10 << 30, 64 << 30} {
			checkPair(t, cache, size, kind)
		}
	}
}

const offDefaultMount = 0x100 // in the superblock

// checkPair makes two disks of one kind and looks at them from outside.
func checkPair(t *testing.T, cache string, size int64, kind Kind) {
	t.Helper()
	a, b := filepath.Join(t.TempDir(), "a"), filepath.Join(t.TempDir(), "b")
	for _, path := range []string{a, b} {
		if err := New(t.Context(), cache, path, size, kind); err != nil {
			t.Fatal(err)
		}
		st, err := os.Stat(path)
		if err != nil || st.Size() != size {
			t.Errorf("size is %d, %v; want %d", st.Size(), err, size)
		}
		if used := st.Sys().(*syscall.Stat_t).Blocks * 512; used > 8<<20 {
			t.Errorf("%d bytes: an empty disk takes %d", size, used)
		}
		out, err := exec.Command("/usr/sbin/e2fsck", "-fn", path).CombinedOutput()
		if err != nil {
			t.Errorf("e2fsck of %d bytes: %v: %s", size, err, out)
		}
		for name, want := range map[string]string{
			"/": "directory Mode: +0755", "/upper": "directory Mode: +0755", "/work": "directory Mode: +0755",
			"/upper/etc": "directory Mode: +0755", "/upper/etc/hostname": "regular Mode: +0644", "/upper/etc/hosts": "regular Mode: +0644",
			"/upper/etc/machine-id": "regular Mode: +0444", "/upper/etc/resolv.conf": "regular Mode: +0644",
		} {
			out, err := exec.Command("/usr/sbin/debugfs", "-R", "stat "+name, path).CombinedOutput()
			want = "Type: " + want + " [^U]*User: +0 +Group: +0 +"
			if strings.Contains(want, "regular") {
				want += "(Project: +0 +)?Size: 0 "
			}
			if err != nil || !regexp.MustCompile(want).Match(bytes.Join(bytes.Fields(out), []byte(" "))) {
				t.Errorf("%s: %v, want %s:\n%s", name, err, want, out)
			}
		}
		options := binary.LittleEndian.Uint32(superblock(t, path)[offDefaultMount:])
		if want := uint32(mountXattrs | mountACLs); options&^mountNoBarrier != want || (options != want) != (kind == Disposable) {
			t.Errorf("%s: default mount options %#x", kind, options)
		}
	}
	if bytes.Equal(superblock(t, a)[offUUID:offUUID+16], superblock(t, b)[offUUID:offUUID+16]) {
		t.Error("two disks have one UUID")
	}
}

func TestNewByManyAtOnce(t *testing.T) {
	needMke2fs(t)
	cache, dir := t.TempDir(), t.TempDir()
	var wg sync.WaitGroup
	for _, name := range strings.Split("abcdefgh", "") {
		wg.Go(func() {
			if err := New(t.Context(), cache, filepath.Join(dir, name), MinBytes, Durable); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if left, _ := filepath.Glob(filepath.Join(cache, ".new-*")); len(left) != 0 {
		t.Errorf("left %v", left)
	}
}

func TestNewRefuses(t *testing.T) {
	needMke2fs(t)
	dir, cache := t.TempDir(), t.TempDir()
	path := filepath.Join(dir, "disk")
	for _, size := range []int64{0, -4096, MinBytes - 4096, MinBytes + 1} {
		if err := New(t.Context(), cache, path, size, Durable); err == nil || !strings.Contains(err.Error(), "at least") {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
	if err := os.WriteFile(path, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := New(t.Context(), cache, path, MinBytes, Durable); !errors.Is(err, os.ErrExist) {
		t.Errorf("an existing file: %v", err)
	}
	if data, _ := os.ReadFile(path); string(data) != "mine" {
		t.Error("an existing file was written or removed")
	}
}

// A pristine disk that is damaged is made again, whatever is in its place.
func TestDamagedPristineDiskIsMadeAgain(t *testing.T) {
	needMke2fs(t)
	dir, cache := t.TempDir(), t.TempDir()
	pristine := filepath.Join(cache, "ext4-v3-durable-67108864.img")
	for name, spoil := range map[string]func() error{
		"empty":   func() error { return os.Truncate(pristine, 0) },
		"cut":     func() error { return os.Truncate(pristine, MinBytes/2) },
		"no ext4": func() error { return errors.Join(os.Truncate(pristine, 0), os.Truncate(pristine, MinBytes)) },
		"flipped": func() error {
			f, err := os.OpenFile(pristine, os.O_WRONLY, 0)
			if err == nil {
				_, err = f.WriteAt([]byte{0xff}, superAt+offUUID)
			}
			return errors.Join(err, f.Close())
		},
		"a directory": func() error {
			return errors.Join(os.Remove(pristine), os.MkdirAll(filepath.Join(pristine, "full"), 0o700))
		},
		"a link": func() error { return errors.Join(os.Remove(pristine), os.Symlink("/dev/zero", pristine)) },
		"a pipe": func() error { return errors.Join(os.Remove(pristine), unix.Mkfifo(pristine, 0o600)) },
	} {
		t.Run(name, func(t *testing.T) {
			if err := New(t.Context(), cache, filepath.Join(dir, name+" before"), MinBytes, Durable); err != nil {
				t.Fatal(err)
			}
			if err := spoil(); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(dir, name)
			if err := New(t.Context(), cache, path, MinBytes, Durable); err != nil {
				t.Fatal(err)
			}
			f, err := os.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if err := whole(f, MinBytes); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestFullDisk(t *testing.T) {
	needMke2fs(t)
	small := t.TempDir()
	if err := unix.Mount("tmpfs", small, "tmpfs", 0, "size=8k"); err != nil {
		t.Skipf("a tmpfs of its own needs root: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(small, 0) })
	err := New(t.Context(), t.TempDir(), filepath.Join(small, "disk"), MinBytes, Durable)
	if !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "free some space") {
		t.Errorf("got %v", err)
	}
	if left, _ := os.ReadDir(small); len(left) != 0 {
		t.Errorf("left %v", left)
	}
}

func BenchmarkNew(b *testing.B) {
	needMke2fs(b)
	cache, path := b.TempDir(), filepath.Join(b.TempDir(), "disk")
	for b.Loop() {
		if err := New(b.Context(), cache, path, 10<<30, Durable); err != nil {
			b.Fatal(err)
		}
		os.Remove(path)
	}
}
