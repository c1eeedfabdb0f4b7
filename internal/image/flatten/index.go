package flatten

import (
	"archive/tar"
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"math"
	"os"
	"strings"
	"time"
)

// index is what one layer holds: its entries in the order of the tar, each
// with the place of its content.
type index struct {
	files   []*os.File // that the entries' contents are in
	entries []entry
}

// meta is what an entry says of a file beside its name and content.
type meta struct {
	typ          byte // tar.TypeReg, Dir, Symlink, Char, Block or Fifo
	mode         int64
	uid, gid     int
	mtime        time.Time
	major, minor int64
	xattrs       map[string]string
	link         string // target of a symbolic link
	size         int64
	src          *os.File
	offset       int64
}

type entry struct {
	meta
	name string
	hard bool // a hard link to meta.link
}

func (x *index) close() {
	if x == nil {
		return
	}
	for _, f := range x.files {
		f.Close()
	}
}

// readIndex reads a layer once: it is hashed, unpacked where it is compressed,
// and its headers are kept.
func readIndex(ctx context.Context, l Layer, scratch string, b *budget) (*index, error) {
	stored, err := l.Open()
	if err != nil {
		return nil, err
	}
	x := &index{files: []*os.File{stored}}
	if err := x.read(ctx, l, scratch, b); err != nil {
		x.close()
		return nil, err
	}
	return x, nil
}

func (x *index) read(ctx context.Context, l Layer, scratch string, b *budget) error {
	stored := x.files[0]
	zr, packed, err := Decompress(stored)
	if err != nil {
		return err
	}
	defer zr.Close()
	m := &meter{ctx: ctx, hash: sha256.New(), budget: b}
	src, stream := stored, io.Reader(zr)
	if packed != Plain {
		if src, err = x.temp(scratch); err != nil {
			return err
		}
		m.copy = src
		pr := unpackAside(zr)
		defer pr.Close()
		stream = pr
	}
	cr := &countingReader{r: bufio.NewReaderSize(io.TeeReader(stream, m), bufferSize)}
	if err := x.readEntries(cr, src, scratch, b); err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, cr.r); err != nil { // padding behind the end is part of the digest
		return err
	}
	if got := fmt.Sprintf("sha256:%x", m.hash.Sum(nil)); got != l.DiffID {
		return fmt.Errorf("content has digest %s, but the image's configuration says %s; fetch the image again", got, l.DiffID)
	}
	return nil
}

// unpackAside decompresses in a goroutine of its own, so that it overlaps with
// hashing. The goroutine has ended once the reader is closed: Close waits.
func unpackAside(r io.Reader) io.ReadCloser {
	pr, pw := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		bw := bufio.NewWriterSize(pw, bufferSize)
		_, err := io.Copy(bw, r)
		if err == nil {
			err = bw.Flush()
		}
		pw.CloseWithError(err)
	}()
	return &asideReader{pr, done}
}

type asideReader struct {
	*io.PipeReader
	done chan struct{}
}

func (r *asideReader) Close() error {
	r.PipeReader.Close()
	<-r.done
	return nil
}

// temp adds a nameless file.
func (x *index) temp(dir string) (*os.File, error) {
	f, err := os.CreateTemp(dir, "layer-")
	if err != nil {
		return nil, err
	}
	x.files = append(x.files, f)
	return f, os.Remove(f.Name())
}

func (x *index) readEntries(cr *countingReader, src *os.File, scratch string, b *budget) error {
	tr := tar.NewReader(cr)
	var filled *os.File // contents of sparse files, which lie in pieces in the tar
	for {
		h, err := tr.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("damaged tar after %d entries: %w", len(x.entries), err)
		}
		if h.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		e, err := newEntry(h, b)
		if err != nil {
			return fmt.Errorf("entry %.200q: %w", h.Name, err)
		}
		e.src, e.offset = src, cr.n
		if isSparse(h) {
			if filled == nil {
				if filled, err = x.temp(scratch); err != nil {
					return err
				}
			}
			if e.offset, err = fill(filled, tr, h.Size, b); err != nil {
				return fmt.Errorf("sparse file %.200q: %w", h.Name, err)
			}
			e.src = filled
		}
		x.entries = append(x.entries, e)
	}
}

func isSparse(h *tar.Header) bool {
	_, v1 := h.PAXRecords["GNU.sparse.major"]
	_, v0 := h.PAXRecords["GNU.sparse.map"]
	_, blocks := h.PAXRecords["GNU.sparse.numblocks"]
	return v1 || v0 || blocks || h.Typeflag == tar.TypeGNUSparse
}

func fill(f *os.File, r io.Reader, size int64, b *budget) (offset int64, err error) {
	if err := b.takeBytes(size); err != nil {
		return 0, err
	}
	if offset, err = f.Seek(0, io.SeekEnd); err != nil {
		return 0, err
	}
	_, err = io.CopyN(f, r, size)
	return offset, err
}

// newEntry takes from a header what is known, and refuses what ext4 cannot
// hold.
func newEntry(h *tar.Header, b *budget) (entry, error) {
	e := entry{name: h.Name, meta: meta{
		typ: h.Typeflag, mode: h.Mode & 0o7777, uid: h.Uid, gid: h.Gid, mtime: h.ModTime,
	}}
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
		e.typ, e.size = tar.TypeReg, h.Size
	case tar.TypeDir, tar.TypeFifo:
	case tar.TypeChar, tar.TypeBlock:
		e.major, e.minor = h.Devmajor, h.Devminor
		if e.major < 0 || e.major >= 1<<12 || e.minor < 0 || e.minor >= 1<<20 {
			return e, fmt.Errorf("device number %d:%d is out of range", e.major, e.minor)
		}
	case tar.TypeLink:
		e.hard, e.link = true, h.Linkname
	case tar.TypeSymlink:
		e.link, e.mode = h.Linkname, 0o777
	default:
		return e, fmt.Errorf("unknown type %q", h.Typeflag)
	}
	if len(h.Name) > maxPath || len(h.Linkname) >= maxPath {
		return e, fmt.Errorf("name or link target is longer than %d bytes", maxPath)
	}
	if (e.hard || e.typ == tar.TypeSymlink) && e.link == "" {
		return e, errors.New("link without a target")
	}
	if strings.ContainsRune(h.Name, 0) || strings.ContainsRune(h.Linkname, 0) {
		return e, errors.New("name holds a zero byte")
	}
	if !validOwner(h.Uid) || !validOwner(h.Gid) {
		return e, fmt.Errorf("owner %d:%d is out of range", h.Uid, h.Gid)
	}
	var n int
	var err error
	if e.xattrs, n, err = xattrs(h.PAXRecords); err != nil {
		return e, err
	}
	return e, b.takeEntry(len(h.Name) + len(h.Linkname) + n)
}

// validOwner excludes the last number, which means "unchanged" to chown.
func validOwner(id int) bool { return id >= 0 && id < math.MaxUint32 }

// meter sees every uncompressed byte once.
type meter struct {
	ctx    context.Context // of the one call that made it
	hash   hash.Hash
	copy   *os.File // nil: the content is addressable where it is
	budget *budget
}

func (m *meter) Write(p []byte) (int, error) {
	if err := context.Cause(m.ctx); err != nil {
		return 0, err
	}
	if err := m.budget.takeBytes(int64(len(p))); err != nil {
		return 0, err
	}
	m.hash.Write(p)
	if m.copy != nil {
		return m.copy.Write(p)
	}
	return len(p), nil
}

// countingReader knows how far it is in the stream. It seeks forward only:
// archive/tar then skips contents without copying them.
type countingReader struct {
	r *bufio.Reader
	n int64
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

func (c *countingReader) Seek(offset int64, whence int) (int64, error) {
	if whence != io.SeekCurrent || offset < 0 {
		return 0, errors.ErrUnsupported
	}
	for offset > 0 {
		n, err := c.r.Discard(int(min(offset, 1<<30)))
		c.n += int64(n)
		offset -= int64(n)
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return c.n, err
		}
	}
	return c.n, nil
}
