// Package content says whether a file is what a digest names: [File] for
// ordinary files, [Memory] for a guest's RAM, which is mostly holes, and
// [Stamp] to tell cheaply that a file has not changed since it was hashed. It
// also makes the sealed copies ([Seal]) that nobody can change afterwards. It
// must not know what the files are for.
package content

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

const (
	sha256Prefix = "sha256:"
	memoryPrefix = "memory-v1:"

	pageBytes   = 4096
	windowBytes = 1 << 20 // what is read at once
)

// Open opens a regular file for reading: no symlink in its place is followed,
// no pipe waited for.
func Open(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		f.Close()
		return nil, errors.Join(err, fmt.Errorf("%s is not a regular file", path))
	}
	return f, nil
}

// Bytes is the digest of data, in the form of [File].
func Bytes(data []byte) string {
	sum := sha256.Sum256(data)
	return sha256Prefix + hex.EncodeToString(sum[:])
}

// File is the digest of src, "sha256:" and 64 hexadecimal digits, whatever its
// offset is. Where dst is not nil src is copied there on the way.
func File(ctx context.Context, src, dst *os.File) (string, error) {
	h := sha256.New()
	w := io.Writer(h)
	if dst != nil {
		w = io.MultiWriter(h, dst)
	}
	buf := make([]byte, windowBytes)
	for at := int64(0); ctx.Err() == nil; {
		n, err := src.ReadAt(buf, at)
		if _, err := w.Write(buf[:n]); err != nil {
			return "", fmt.Errorf("copy %s: %w", src.Name(), err)
		}
		at += int64(n)
		if errors.Is(err, io.EOF) {
			return sha256Prefix + hex.EncodeToString(h.Sum(nil)), nil
		}
		if err != nil {
			return "", fmt.Errorf("read %s: %w", src.Name(), err)
		}
	}
	return "", ctx.Err()
}

// Memory is the digest of a guest's RAM: over the size and, for each 4 KiB page
// that is not all zero, in order, its offset and its SHA-256. It changes with
// any byte and any page's place, costs what the pages in use cost, and does not
// depend on which zeros are holes. docs/format/template.md has the bytes.
//
// Where dst is not nil, an empty file, the pages in use are copied there on the
// way and the rest stays holes. The work is spread over up to four CPUs.
func Memory(ctx context.Context, src, dst *os.File) (string, error) {
	st, err := src.Stat()
	if err != nil {
		return "", fmt.Errorf("stat memory: %w", err)
	}
	size := st.Size()
	if size%pageBytes != 0 {
		return "", fmt.Errorf("memory of %d bytes is not made of whole pages", size)
	}
	if dst != nil {
		if err := dst.Truncate(size); err != nil {
			return "", fmt.Errorf("size copy of memory: %w", err)
		}
	}
	windows, err := dataWindows(src, size)
	if err != nil {
		return "", err
	}
	sums, err := hashWindows(ctx, windows, src, dst)
	if err != nil {
		return "", err
	}
	h := sha256.New()
	h.Write([]byte(memoryPrefix))
	h.Write(binary.BigEndian.AppendUint64(nil, uint64(size)))
	for _, s := range sums {
		h.Write(s)
	}
	return memoryPrefix + hex.EncodeToString(h.Sum(nil)), nil
}

// dataWindows are the windows of the file that are not wholly a hole.
func dataWindows(f *os.File, size int64) (windows []int64, err error) {
	for at := int64(0); at < size; {
		data, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("seek data in memory: %w", err)
		}
		start := data &^ (windowBytes - 1)
		windows = append(windows, start)
		at = start + windowBytes
	}
	return windows, nil
}

func hashWindows(ctx context.Context, windows []int64, src, dst *os.File) ([][]byte, error) {
	sums := make([][]byte, len(windows))
	workers := min(runtime.GOMAXPROCS(0), 4)
	errs := make([]error, workers)
	var next atomic.Int64
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			buf := make([]byte, windowBytes)
			for errs[w] == nil {
				i := int(next.Add(1)) - 1
				if i >= len(windows) {
					return
				}
				if errs[w] = ctx.Err(); errs[w] == nil {
					sums[i], errs[w] = hashWindow(buf, windows[i], src, dst)
				}
			}
		})
	}
	wg.Wait()
	return sums, errors.Join(errs...)
}

// hashWindow returns offset and sum of each page in use, and copies runs of
// such pages.
func hashWindow(buf []byte, start int64, src, dst *os.File) ([]byte, error) {
	n, err := src.ReadAt(buf, start)
	if err != nil && !(errors.Is(err, io.EOF) && n > 0) {
		return nil, fmt.Errorf("read memory at %d: %w", start, err)
	}
	var zero [pageBytes]byte
	var sums []byte
	run := 0 // where the run of pages in use that ends here began
	flush := func(end int) error {
		if dst == nil || run == end {
			return nil
		}
		_, err := dst.WriteAt(buf[run:end], start+int64(run))
		return err
	}
	for at := 0; at < n; at += pageBytes {
		page := buf[at : at+pageBytes]
		if bytes.Equal(page, zero[:]) {
			if err := flush(at); err != nil {
				return nil, fmt.Errorf("copy memory: %w", err)
			}
			run = at + pageBytes
			continue
		}
		sum := sha256.Sum256(page)
		sums = binary.BigEndian.AppendUint64(sums, uint64(start)+uint64(at))
		sums = append(sums, sum[:]...)
	}
	if err := flush(n); err != nil {
		return nil, fmt.Errorf("copy memory: %w", err)
	}
	return sums, nil
}

// NewMemfd makes an empty file in memory that [Seal] can seal. Its name is for
// people who look at /proc.
func NewMemfd(name string) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("make memory file: %w", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

const seals = unix.F_SEAL_WRITE | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_SEAL

// Seal makes a memory file's content and size final, for everybody who has it.
func Seal(f *os.File) error {
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals); err != nil {
		return fmt.Errorf("seal %s: %w", f.Name(), err)
	}
	return nil
}

// Sealed reports whether f is a memory file that [Seal] has sealed.
func Sealed(f *os.File) bool {
	got, err := unix.FcntlInt(f.Fd(), unix.F_GET_SEALS, 0)
	return err == nil && got&seals == seals
}
