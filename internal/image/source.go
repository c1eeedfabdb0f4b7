package image

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"creel/internal/image/blobs"
	"creel/internal/image/flatten"
)

// source is an archive or a layout, by the names of its files.
type source interface {
	// fetch takes a file into the session. The error is fs.ErrNotExist where
	// there is none.
	fetch(ctx context.Context, name string) (blobs.Blob, error)
}

const (
	maxArchiveFiles = 100_000
	maxAliases      = 8 // links to links in one archive
)

// tarSource is an archive that was read to its end: it cannot be read twice.
type tarSource struct {
	files map[string]blobs.Blob
	links map[string]string // docker save of old versions links equal layers
}

func readArchive(ctx context.Context, w *session, r io.Reader) (*tarSource, error) {
	zr, _, err := flatten.Decompress(r)
	if err != nil {
		return nil, err
	}
	defer zr.Close()
	src := &tarSource{files: map[string]blobs.Blob{}, links: map[string]string{}}
	left := w.store.limits.Bytes
	tr := tar.NewReader(zr)
	for n := 0; ; n++ {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("damaged archive: %w; fetch or save it again", err)
		}
		if n == maxArchiveFiles {
			return nil, fmt.Errorf("archive has more than %d files, the most that Creel accepts", maxArchiveFiles)
		}
		name := path.Clean(h.Name)
		switch h.Typeflag {
		case tar.TypeReg:
			b, err := w.Write(ctx, tr, left)
			if err != nil {
				return nil, fmt.Errorf("read %.200q from archive: %w", name, err)
			}
			left -= b.Size
			src.files[name] = b
		case tar.TypeSymlink:
			src.links[name] = path.Join(path.Dir(name), h.Linkname)
		case tar.TypeLink:
			src.links[name] = path.Clean(h.Linkname)
		}
	}
	// What follows the end of the tar is read, so that the checksum of a
	// compressed archive is checked.
	if _, err := blobs.Copy(ctx, io.Discard, io.LimitReader(zr, left)); err != nil {
		return nil, fmt.Errorf("damaged archive: %w; fetch or save it again", err)
	}
	return src, nil
}

func (t *tarSource) fetch(_ context.Context, name string) (blobs.Blob, error) {
	name = path.Clean(name)
	for range maxAliases {
		if b, ok := t.files[name]; ok {
			return b, nil
		}
		target, ok := t.links[name]
		if !ok {
			break
		}
		name = target
	}
	return blobs.Blob{}, fmt.Errorf("%.200q in the archive: %w", name, fs.ErrNotExist)
}

// dirSource is an OCI layout as a directory. Links out of it are refused.
type dirSource struct {
	root *os.Root
	w    *session
}

func (d *dirSource) fetch(ctx context.Context, name string) (blobs.Blob, error) {
	f, err := d.root.Open(name)
	if err != nil {
		return blobs.Blob{}, err
	}
	defer f.Close()
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() {
		return blobs.Blob{}, errors.Join(fmt.Errorf("%q is not a regular file", name), err)
	}
	return d.w.Write(ctx, f, d.w.store.limits.Bytes)
}

// fetchSmall returns a small file's content, nil where there is none.
func fetchSmall(ctx context.Context, src source, name string) ([]byte, error) {
	b, err := src.fetch(ctx, name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return b.Read()
}

// blobName is where a layout keeps the blob with a digest.
func blobName(digest string) string {
	return "blobs/" + strings.Replace(digest, ":", "/", 1)
}
