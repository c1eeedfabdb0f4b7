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
	"sync"

	"creel/internal/durable"
	"creel/internal/undo"
)

// Work is a directory of its own for work that may fail. It is for one
// goroutine.
type Work struct {
	dir   *Dir
	path  string
	held  *durable.Lock   // of path: it is in use
	blobs map[string]Blob // by digest
	n     int

	adopted map[string]string // digest to the download
}

// Blob is content that was written to a Work and hashed while it was.
type Blob struct {
	Path   string
	Digest string // sha256:…
	Size   int64  // bytes
}

// Read returns the content of a small blob.
func (b Blob) Read() ([]byte, error) {
	if b.Size > MaxSmall {
		return nil, fmt.Errorf("manifest or configuration of %d bytes is larger than %d MiB", b.Size, MaxSmall>>20)
	}
	return os.ReadFile(b.Path)
}

// Begin opens a Work and clears away those of processes that died. The caller
// calls End.
func (d *Dir) Begin(ctx context.Context) (*Work, error) {
	unlock, err := d.Lock(ctx, MainLock)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := errors.Join(d.sweep("tmp"), durable.Sweep(d.path)); err != nil {
		return nil, err
	}
	path, err := os.MkdirTemp(filepath.Join(d.path, "tmp"), "work-")
	if err != nil {
		return nil, fmt.Errorf("begin work on image store: %w", err)
	}
	held, err := durable.OpenExisting(path)
	if err == nil {
		err = held.Lock(ctx) // nobody else takes it
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("begin work on image store: %w", err), os.RemoveAll(path))
	}
	return &Work{dir: d, path: path, held: held, blobs: map[string]Blob{}, adopted: map[string]string{}}, nil
}

// End removes what was not placed.
func (w *Work) End() {
	os.RemoveAll(w.path) // what cannot be removed is swept by the next Begin
	w.held.Close()
}

// Dir is the directory of this work.
func (w *Work) Dir() string { return w.path }

// NewPath returns a name in the directory that nothing has.
func (w *Work) NewPath() string {
	w.n++
	return filepath.Join(w.path, fmt.Sprintf("%06d", w.n))
}

// Write takes content in, at most limit bytes.
func (w *Work) Write(ctx context.Context, r io.Reader, limit int64) (Blob, error) {
	f, err := os.OpenFile(w.NewPath(), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return Blob{}, err
	}
	h := sha256.New()
	n, err := Copy(ctx, io.MultiWriter(f, h), io.LimitReader(r, limit+1))
	if err == nil && n > limit {
		err = fmt.Errorf("content is larger than %d MiB, the most that Creel accepts", limit>>20)
	}
	if err := errors.Join(err, f.Close()); err != nil {
		os.Remove(f.Name())
		return Blob{}, err
	}
	b := Blob{Path: f.Name(), Digest: fmt.Sprintf("sha256:%x", h.Sum(nil)), Size: n}
	w.blobs[b.Digest] = b
	return b, nil
}

// Adopt takes over a complete download, whose digest was checked, by a link:
// until it is placed, others that want the blob find and wait for the download.
func (w *Work) Adopt(partial, digest string, size int64) error {
	b := Blob{Path: w.NewPath(), Digest: digest, Size: size}
	if err := os.Link(partial, b.Path); err != nil {
		return err
	}
	w.blobs[digest] = b
	w.adopted[digest] = partial
	return nil
}

// Get returns a blob of this work.
func (w *Work) Get(digest string) (Blob, bool) {
	b, ok := w.blobs[digest]
	return b, ok
}

// Open opens a blob of this work or, where it has none, of the directory.
func (w *Work) Open(digest string) (*os.File, error) {
	if b, ok := w.blobs[digest]; ok {
		return os.Open(b.Path)
	}
	return os.Open(w.dir.Path(digest))
}

// Sync sends what was written so far to the disk while other work goes on; the
// returned function waits for the end of it, and may be called again.
func (w *Work) Sync() (wait func() error) {
	done := make(chan error, 1)
	paths := make([]string, 0, len(w.blobs))
	for _, b := range w.blobs {
		paths = append(paths, b.Path)
	}
	go func() {
		var errs []error
		for _, path := range paths {
			errs = append(errs, durable.Sync(path))
		}
		done <- errors.Join(errs...)
	}()
	return sync.OnceValue(func() error { return <-done })
}

// Place puts blobs, which were synced, into the directory; those that this work
// does not have must be there. The caller holds the main lock, and unwinds
// steps if a later step of its own fails.
func (w *Work) Place(digests []string, steps *undo.Stack) error {
	for _, d := range digests {
		b, ok := w.blobs[d]
		if !ok {
			if _, err := os.Stat(w.dir.Path(d)); err != nil {
				return fmt.Errorf("another creel removed part of the image meanwhile: %w; try again", err)
			}
			continue
		}
		if partial := w.adopted[d]; partial != "" {
			// First, so that no download is ever the same file as a blob in place.
			if err := os.Remove(partial); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		if err := Move(b.Path, w.dir.Path(d), steps); err != nil {
			return err
		}
	}
	return nil
}

// Move puts a file that was synced in its place. One that is there already is
// replaced by the same content, checked just now.
func Move(from, to string, steps *undo.Stack) error {
	err := os.Chmod(from, 0o400)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // moved before, for another image of this work
	}
	if err != nil {
		return fmt.Errorf("store %s: %w", filepath.Base(to), err)
	}
	_, statErr := os.Stat(to)
	if err := os.Rename(from, to); err != nil {
		return err
	}
	if statErr != nil {
		steps.Push("store "+filepath.Base(to), func() error { return os.Remove(to) })
	}
	return durable.Sync(filepath.Dir(to))
}
