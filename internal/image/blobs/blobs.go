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

	"creel/internal/durable"
)

// MaxSmall bounds content that is read into memory, in bytes: manifests,
// indexes and configurations.
const MaxSmall = 16 << 20

const copyBuffer = 1 << 20

// Dir is a directory of blobs. It holds nothing open.
type Dir struct{ path string }

// Open makes what is missing of the directory.
func Open(path string) *Dir {
	d := &Dir{path}
	d.make() // where it cannot be made, whoever changes it is told
	return d
}

// make makes what is missing of the directory. Whatever changes it has a lock.
func (d *Dir) make() error {
	for _, sub := range []string{"blobs/sha256", "rootfs/sha256", "partial", "tmp"} {
		if err := os.MkdirAll(filepath.Join(d.path, sub), 0o700); err != nil {
			return fmt.Errorf("make image store: %w", err)
		}
	}
	return nil
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
	// One that was completed and moved away while we waited is begun anew.
	lock, err := acquire(ctx, path)
	if err != nil {
		return nil, err
	}
	return lock.File, nil
}

func acquire(ctx context.Context, path string) (*durable.Lock, error) {
	lock, err := durable.Acquire(ctx, path)
	if err != nil && ctx.Err() != nil {
		return nil, fmt.Errorf("wait for another creel that works on the image store: %w", err)
	}
	if err != nil {
		return nil, fmt.Errorf("lock image store: %w", err)
	}
	return lock, nil
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
	if err := d.make(); err != nil {
		return nil, err
	}
	lock, err := acquire(ctx, filepath.Join(d.path, name))
	if err != nil {
		return nil, err
	}
	return func() { lock.Close() }, nil
}

// Reclaim clears away the work of processes that died. It waits for nobody: a
// process that changes the directory just now does the same.
func (d *Dir) Reclaim() error {
	entries, err := os.ReadDir(filepath.Join(d.path, "tmp"))
	if err != nil || len(entries) == 0 {
		return err
	}
	lock, err := durable.TryAcquire(filepath.Join(d.path, MainLock))
	if err != nil || lock == nil {
		return err
	}
	defer lock.Close()
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
		lock, err := durable.OpenExisting(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // its work ended just now
		}
		if err != nil {
			return fmt.Errorf("clear image store: %w", err)
		}
		free, err := lock.TryLock()
		if free {
			err = os.RemoveAll(path)
		}
		lock.Close()
		if err != nil {
			return fmt.Errorf("clear image store: %w", err)
		}
	}
	return nil
}

// Replace writes a file of the directory so that it is at any moment, and after
// a crash, either the old or the new one. The caller holds the main lock.
func (d *Dir) Replace(name string, content []byte) error {
	if err := durable.Swap(filepath.Join(d.path, name), content); err != nil {
		return err
	}
	// The new file is in place. Should a crash undo that, the old one is back,
	// which is no less true; so an error here must not make callers undo.
	_ = durable.Sync(d.path)
	return nil
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
