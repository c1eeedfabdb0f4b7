package flatten

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"

	"github.com/Microsoft/hcsshim/ext4/tar2ext4"
)

// diskMax is what the ext4 writer keeps room for in its tables (a few blocks);
// the file is as large as its content. Above [Limits].Bytes, for the rounding
// of each file to a block.
const diskMax = 128 << 30

func (t *tree) writeExt4(ctx context.Context, out *os.File) error {
	if lf := t.root.children["lost+found"]; lf != nil && !lf.isDir() {
		return errors.New("the image has a /lost+found that is not a directory, which ext4 cannot hold; remove it from the image")
	}
	pr, pw := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		pw.CloseWithError(t.writeTar(ctx, pw))
	}()
	err := tar2ext4.ConvertTarToExt4(pr, out, tar2ext4.MaximumDiskSize(diskMax))
	pr.Close()
	<-done
	if err != nil {
		return fmt.Errorf("write ext4: %w", err)
	}
	return mend(out)
}

func (t *tree) writeTar(ctx context.Context, w io.Writer) error {
	bw := bufio.NewWriterSize(w, bufferSize)
	e := &emitter{ctx: ctx, tw: tar.NewWriter(bw), buf: make([]byte, bufferSize)}
	if err := e.write("./", t.root); err != nil {
		return err
	}
	if err := e.tw.Close(); err != nil {
		return err
	}
	return bw.Flush()
}

// emitter writes the tree as one tar, names in order, each directory before
// its content.
type emitter struct {
	ctx context.Context // of the one call that made it
	tw  *tar.Writer
	buf []byte
}

func (e *emitter) write(name string, n *node) error {
	if err := e.ctx.Err(); err != nil {
		return err
	}
	if len(name) > maxPath {
		return fmt.Errorf("path %.200q… is longer than %d bytes", name, maxPath)
	}
	if n.written != "" {
		return e.tw.WriteHeader(&tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: n.written})
	}
	n.written = name
	h, err := header(name, n)
	if err != nil {
		return fmt.Errorf("%.200q: %w", name, err)
	}
	if err := e.tw.WriteHeader(h); err != nil {
		return fmt.Errorf("%.200q: %w", name, err)
	}
	if n.typ == tar.TypeReg {
		content := io.NewSectionReader(n.src, n.offset, n.size)
		if _, err := io.CopyBuffer(onlyWriter{e.tw}, content, e.buf); err != nil {
			return fmt.Errorf("copy %.200q: %w", name, err)
		}
	}
	for _, child := range slices.Sorted(maps.Keys(n.children)) {
		c := n.children[child]
		path := name + child
		if c.isDir() {
			path += "/"
		}
		if err := e.write(path, c); err != nil {
			return err
		}
	}
	return nil
}

// onlyWriter hides ReadFrom, so that the large buffer is used.
type onlyWriter struct{ io.Writer }

func header(name string, n *node) (*tar.Header, error) {
	t := ext4Time(n.mtime)
	h := &tar.Header{
		Typeflag: n.typ, Name: name, Linkname: n.link, Size: n.size,
		Mode: n.mode, Uid: n.uid, Gid: n.gid,
		ModTime: t, AccessTime: t, ChangeTime: t,
		Devmajor: n.major, Devminor: n.minor,
		Format: tar.FormatPAX,
	}
	if len(n.xattrs) > 0 {
		h.PAXRecords = make(map[string]string, len(n.xattrs))
		for k, v := range n.xattrs {
			if k == aclAccess || k == aclDefault {
				var err error
				if v, err = ext4ACL(v); err != nil {
					return nil, err
				}
			}
			h.PAXRecords[xattrRecord+k] = v
		}
	}
	return h, nil
}
