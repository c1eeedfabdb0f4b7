package image

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"creel/internal/undo"
)

// lockRetry is how long a waiting process sleeps between tries for a lock.
const lockRetry = 20 * time.Millisecond

// lock takes a lock that other processes respect, and waits for it as long as
// ctx allows. The kernel frees it when the process dies.
func (s *Store) lock(ctx context.Context, name string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(s.dir, name), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock image store: %w", err)
	}
	tick := time.NewTicker(lockRetry)
	defer tick.Stop()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return func() { f.Close() }, nil
		case err != unix.EWOULDBLOCK && err != unix.EINTR:
			f.Close()
			return nil, fmt.Errorf("lock image store: %w", err)
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("wait for another creel that works on the image store: %w", context.Cause(ctx))
		case <-tick.C:
		}
	}
}

// session is a directory of its own for work that may fail: nothing in it is
// part of the store until commit.
type session struct {
	store *Store
	dir   string
	held  *os.File         // the directory, locked: it is in use
	blobs map[string]*blob // by digest
	n     int
}

// blob is content that was written to the session and hashed while it was.
type blob struct {
	path   string
	digest string
	size   int64
}

// begin opens a session and clears away those of processes that died. The
// caller calls end.
func (s *Store) begin(ctx context.Context) (*session, error) {
	unlock, err := s.lock(ctx, "lock")
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := s.sweep(); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(filepath.Join(s.dir, "tmp"), "work-")
	if err != nil {
		return nil, fmt.Errorf("begin work on image store: %w", err)
	}
	held, err := os.Open(dir)
	if err == nil {
		err = unix.Flock(int(held.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("begin work on image store: %w", err), os.RemoveAll(dir))
	}
	return &session{store: s, dir: dir, held: held, blobs: map[string]*blob{}}, nil
}

func (w *session) end() {
	os.RemoveAll(w.dir)
	w.held.Close()
}

// sweep removes what is in tmp and locked by nobody. The store's lock is held,
// so nobody is between making a directory and locking it.
func (s *Store) sweep() error {
	entries, err := os.ReadDir(filepath.Join(s.dir, "tmp"))
	if err != nil {
		return fmt.Errorf("read image store: %w", err)
	}
	for _, e := range entries {
		path := filepath.Join(s.dir, "tmp", e.Name())
		f, err := os.Open(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // its session ended just now
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

// path returns a new name in the session's directory.
func (w *session) path() string {
	w.n++
	return filepath.Join(w.dir, fmt.Sprintf("%06d", w.n))
}

// write takes content in, at most limit bytes.
func (w *session) write(ctx context.Context, r io.Reader, limit int64) (*blob, error) {
	f, err := os.OpenFile(w.path(), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	h := sha256.New()
	n, err := io.CopyBuffer(io.MultiWriter(f, h), io.LimitReader(&ctxReader{ctx, r}, limit+1), make([]byte, copyBuffer))
	if err == nil && n > limit {
		err = fmt.Errorf("content is larger than %d MiB, the most that Creel accepts", limit>>20)
	}
	if err := errors.Join(err, f.Close()); err != nil {
		os.Remove(f.Name())
		return nil, err
	}
	b := &blob{path: f.Name(), digest: fmt.Sprintf("sha256:%x", h.Sum(nil)), size: n}
	w.blobs[b.digest] = b
	return b, nil
}

const copyBuffer = 1 << 20

// ctxReader ends a long copy when its call's context does.
type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (c *ctxReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

// syncBlobs sends what was written so far to the disk while other work goes
// on; the returned function waits for the end of it.
func (w *session) syncBlobs() (wait func() error) {
	done := make(chan error, 1)
	paths := make([]string, 0, len(w.blobs))
	for _, b := range w.blobs {
		paths = append(paths, b.path)
	}
	go func() {
		var errs []error
		for _, path := range paths {
			errs = append(errs, syncPath(path))
		}
		done <- errors.Join(errs...)
	}()
	return sync.OnceValue(func() error { return <-done })
}

// open opens a blob of the session or, where it has none, of the store.
func (w *session) open(digest string) (*os.File, error) {
	if b := w.blobs[digest]; b != nil {
		return os.Open(b.path)
	}
	return os.Open(w.store.blobPath(digest))
}

// pending is an image ready to enter the store.
type pending struct {
	parsed *parsed
	names  []string
	root   rootRecord
	file   string // the root file system in the session; "" where the store has it
}

// commit makes images part of the store: all of them, or on error none.
func (w *session) commit(ctx context.Context, images []pending) error {
	unlock, err := w.store.lock(ctx, "lock")
	if err != nil {
		return err
	}
	defer unlock()
	x, err := w.store.readIndex()
	if err != nil {
		return err
	}
	var steps undo.Stack
	defer steps.Unwind()
	for _, p := range images {
		if err := w.place(p, &steps); err != nil {
			return err
		}
		if err := x.add(p); err != nil {
			return err
		}
	}
	for _, dir := range []string{"blobs/sha256", "rootfs/sha256"} {
		if err := syncPath(filepath.Join(w.store.dir, dir)); err != nil {
			return err
		}
	}
	if err := w.store.writeIndex(x); err != nil {
		return err
	}
	steps.Release()
	return nil
}

// place moves an image's parts to their names in the store.
func (w *session) place(p pending, steps *undo.Stack) error {
	m := p.parsed.manifest
	digests := []string{p.parsed.digest, m.Config.Digest.String()}
	for _, l := range m.Layers {
		digests = append(digests, l.Digest.String())
	}
	for _, d := range digests {
		b := w.blobs[d]
		if b == nil {
			if _, err := os.Stat(w.store.blobPath(d)); err != nil {
				return fmt.Errorf("another creel removed part of the image meanwhile: %w; try again", err)
			}
			continue
		}
		if err := move(b.path, w.store.blobPath(d), steps); err != nil {
			return err
		}
	}
	if p.file == "" {
		return nil
	}
	return move(p.file, w.store.rootPath(p.root.Digest), steps)
}

// move puts a file that was synced in place. One that is there already is replaced
// by the same content, verified just now.
func move(from, to string, steps *undo.Stack) error {
	f, err := os.Open(from)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // moved for another image of this session
	}
	if err != nil {
		return err
	}
	if err := errors.Join(f.Chmod(0o400), f.Close()); err != nil {
		return fmt.Errorf("store %s: %w", filepath.Base(to), err)
	}
	_, statErr := os.Stat(to)
	if err := os.Rename(from, to); err != nil {
		return err
	}
	if statErr != nil {
		steps.Push("store "+filepath.Base(to), func() error { return os.Remove(to) })
	}
	return nil
}

func (x *storeIndex) add(p pending) error {
	id := p.parsed.manifest.Config.Digest.String()
	i := slices.IndexFunc(x.Images, func(r imageRecord) bool { return r.ID == id })
	if i < 0 {
		x.Images = append(x.Images, imageRecord{ID: id})
		i = len(x.Images) - 1
	}
	x.Images[i].Manifest = p.parsed.digest
	x.setRoot(p.root)
	return x.setNames(id, p.names)
}

func (x *storeIndex) setRoot(root rootRecord) {
	x.RootFS = slices.DeleteFunc(x.RootFS, func(r rootRecord) bool { return slices.Equal(r.Layers, root.Layers) })
	x.RootFS = append(x.RootFS, root)
}
