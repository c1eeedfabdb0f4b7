// Package blobs keeps content by digest in a directory that many processes
// share: [Dir] is the directory with its locks, [Work] one process's unfinished
// work in it, of which nothing can be seen before it is placed, and nothing
// remains when its process dies.
//
// The package must not know what the content is.
package blobs

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// MaxSmall bounds content that is read into memory, in bytes: manifests,
// indexes and configurations.
const MaxSmall = 16 << 20

const copyBuffer = 1 << 20

// lockRetry is the time between tries for a lock that another process has.
const lockRetry = 20 * time.Millisecond

// Dir is a directory of blobs. It holds nothing open.
type Dir struct{ path string }

// Open makes what is missing of the directory.
func Open(path string) (*Dir, error) {
	for _, sub := range []string{"blobs/sha256", "partial", "tmp"} {
		if err := os.MkdirAll(filepath.Join(path, sub), 0o700); err != nil {
			return nil, err
		}
	}
	return &Dir{path}, nil
}

// Path is where the blob with this digest is, sha256:… and checked by whoever
// parsed it.
func (d *Dir) Path(digest string) string {
	return filepath.Join(d.path, "blobs", "sha256", strings.TrimPrefix(digest, "sha256:"))
}

// Read returns a small blob, checked.
func (d *Dir) Read(digest string) ([]byte, error) {
	f, err := os.Open(d.Path(digest))
	if err != nil {
		return nil, fmt.Errorf("%w; load or pull the image again", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, MaxSmall))
	if err != nil {
		return nil, err
	}
	if Digest(b) != digest {
		return nil, fmt.Errorf("blob %s is damaged; load or pull the image again", digest)
	}
	return b, nil
}

// Intact reads a blob and tells whether it is there as it should be.
func (d *Dir) Intact(ctx context.Context, digest string, size int64) bool {
	f, err := os.Open(d.Path(digest))
	if err != nil {
		return false
	}
	defer f.Close()
	got, n, err := DigestReader(ctx, f)
	return err == nil && n == size && got == digest
}

// Partial opens the unfinished download of a blob for this process alone;
// others that want the same blob wait for it. Closing the file unlocks it.
func (d *Dir) Partial(ctx context.Context, digest string) (*os.File, error) {
	path := filepath.Join(d.path, "partial", strings.TrimPrefix(digest, "sha256:"))
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, err
		}
		if err := flock(ctx, f); err != nil {
			f.Close()
			return nil, err
		}
		mine, err1 := f.Stat()
		named, err2 := os.Stat(path)
		if err1 == nil && err2 == nil && os.SameFile(mine, named) {
			return f, nil
		}
		f.Close() // it was completed and moved away while we waited
		if err := errors.Join(err1, err2); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
}

// Drop deletes every blob but those to keep. The caller holds the main lock.
func (d *Dir) Drop(keep map[string]bool) error {
	return Clear(filepath.Join(d.path, "blobs", "sha256"), func(name string) bool { return keep["sha256:"+name] })
}

// DropPartials deletes downloads that nobody is at. The caller holds the main
// lock.
func (d *Dir) DropPartials() error { return d.sweep("partial") }

// Clear deletes the files of a directory but those to keep.
func Clear(dir string, keep func(name string) bool) error {
	entries, err := os.ReadDir(dir)
	errs := []error{err}
	for _, e := range entries {
		if keep(e.Name()) {
			continue
		}
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("delete unused part: %w", err))
		}
	}
	return errors.Join(errs...)
}

// MainLock is the name of the lock that guards changes of what is in the
// directory.
const MainLock = "lock"

// Lock takes a lock that other processes respect, and waits for it as long as
// ctx allows. The kernel frees it when the process dies.
func (d *Dir) Lock(ctx context.Context, name string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(d.path, name), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock image store: %w", err)
	}
	if err := flock(ctx, f); err != nil {
		f.Close()
		return nil, err
	}
	return func() { f.Close() }, nil
}

func flock(ctx context.Context, f *os.File) error {
	tick := time.NewTicker(lockRetry)
	defer tick.Stop()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return nil
		case err != unix.EWOULDBLOCK && err != unix.EINTR:
			return fmt.Errorf("lock image store: %w", err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for another creel that works on the image store: %w", context.Cause(ctx))
		case <-tick.C:
		}
	}
}

// Reclaim clears away the work of processes that died. It waits for nobody: a
// process that changes the directory just now does the same.
func (d *Dir) Reclaim() error {
	entries, err := os.ReadDir(filepath.Join(d.path, "tmp"))
	if err != nil || len(entries) == 0 {
		return err
	}
	f, err := os.OpenFile(filepath.Join(d.path, MainLock), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if err == unix.EWOULDBLOCK {
			return nil
		}
		return err
	}
	return d.sweep("tmp")
}

// sweep removes what is in a directory and locked by nobody. The main lock is
// held, so nobody is between making a Work's directory and locking it; who
// locks a download looks whether it is still there.
func (d *Dir) sweep(dir string) error {
	entries, err := os.ReadDir(filepath.Join(d.path, dir))
	if err != nil {
		return fmt.Errorf("read image store: %w", err)
	}
	for _, e := range entries {
		path := filepath.Join(d.path, dir, e.Name())
		f, err := os.Open(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // its work ended just now
		}
		if err != nil {
			return fmt.Errorf("clear image store: %w", err)
		}
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			err = os.RemoveAll(path)
		}
		f.Close()
		if err != nil {
			return fmt.Errorf("clear image store: %w", err)
		}
	}
	return nil
}

// Replace writes a file of the directory so that it is at any moment, and after
// a crash, either the old or the new one. The caller holds the main lock.
func (d *Dir) Replace(name string, content []byte) error {
	f, err := os.CreateTemp(filepath.Join(d.path, "tmp"), "index-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // fails once the file has its name
	_, err = f.Write(content)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), filepath.Join(d.path, name))
	}
	if err != nil {
		return err
	}
	// The new file is in place. Should a crash undo that, the old one is back,
	// which is no less true; so an error here must not make callers undo.
	_ = syncPath(d.path)
	return nil
}

// syncPath makes what is known of a file or directory durable.
func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// Digest is sha256:… of b.
func Digest(b []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(b)) }

// DigestReader hashes to the end of r.
func DigestReader(ctx context.Context, r io.Reader) (digest string, n int64, err error) {
	h := sha256.New()
	n, err = Copy(ctx, h, r)
	return fmt.Sprintf("sha256:%x", h.Sum(nil)), n, err
}

// Copy is io.Copy with a large buffer, that ends when ctx does.
func Copy(ctx context.Context, w io.Writer, r io.Reader) (int64, error) {
	return io.CopyBuffer(onlyWriter{w}, &ctxReader{ctx, r}, make([]byte, copyBuffer))
}

// onlyWriter hides ReadFrom, so that the large buffer is used.
type onlyWriter struct{ io.Writer }

type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (c *ctxReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.r.Read(p)
}
