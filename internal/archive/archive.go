// Package archive packs files for a sandbox and unpacks what comes out of one.
// [Pack] reads files of this machine's user; [Unpack] trusts nothing that it
// reads. The package must not know sandboxes, and must not follow a link out of
// the directory that it unpacks into.
package archive

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// Pack writes a tar of the file or directory src, under the name given. What is
// packed becomes root's, as `docker cp` has it: users differ between here and
// there.
func Pack(w io.Writer, src, name string) error {
	tw := tar.NewWriter(w)
	err := filepath.WalkDir(src, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(src, p)
		if err != nil {
			return err
		}
		return writeEntry(tw, p, path.Join(name, filepath.ToSlash(rel)), d)
	})
	return errors.Join(err, tw.Close())
}

func writeEntry(tw *tar.Writer, p, name string, d fs.DirEntry) error {
	info, err := d.Info()
	if err != nil {
		return err
	}
	link := ""
	if info.Mode()&fs.ModeSymlink != 0 {
		if link, err = os.Readlink(p); err != nil {
			return err
		}
	}
	h, err := tar.FileInfoHeader(info, link)
	if err != nil {
		return fmt.Errorf("pack %s: %w", p, err)
	}
	h.Name = name
	if info.IsDir() {
		h.Name += "/"
	}
	h.Uid, h.Gid, h.Uname, h.Gname = 0, 0, "", ""
	if err := tw.WriteHeader(h); err != nil || !info.Mode().IsRegular() {
		return err
	}
	f, err := os.Open(p)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(tw, f)
	return err
}

// Unpack unpacks a sandbox's archive below root, which no entry and no link in
// it can leave. Where rename is not empty it takes the place of the first part
// of every name. What is not a file, directory or link is refused: a sandbox
// could otherwise plant a device here.
func Unpack(root *os.Root, r io.Reader, rename string) error {
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read the sandbox's archive: %w", err)
		}
		if h.Typeflag == tar.TypeLink {
			h.Linkname = place(h.Linkname, rename)
		}
		if err := extractEntry(root, tr, h, place(h.Name, rename)); err != nil {
			return fmt.Errorf("unpack %s: %w", h.Name, err)
		}
	}
}

// place is where the entry with that name goes.
func place(name, rename string) string {
	name = path.Clean(name)
	if rename != "" {
		_, below, _ := strings.Cut(name, "/")
		name = path.Join(rename, below)
	}
	return filepath.FromSlash(name)
}

func extractEntry(root *os.Root, tr *tar.Reader, h *tar.Header, name string) error {
	mode := h.FileInfo().Mode().Perm()
	switch h.Typeflag {
	case tar.TypeDir:
		if err := root.MkdirAll(name, 0o700); err != nil {
			return err
		}
		return root.Chmod(name, mode|0o700)
	case tar.TypeReg:
		f, err := root.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, mode)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, tr)
		if err := errors.Join(err, f.Chmod(mode), f.Close()); err != nil {
			return err
		}
		return root.Chtimes(name, h.ModTime, h.ModTime)
	case tar.TypeSymlink:
		return replace(root, name, func() error { return root.Symlink(h.Linkname, name) })
	case tar.TypeLink:
		return replace(root, name, func() error { return root.Link(h.Linkname, name) })
	default:
		return errors.New("not a file, directory or link; copy to - to get the archive as it is")
	}
}

// replace makes a link, in place of what an earlier copy left there.
func replace(root *os.Root, name string, link func() error) error {
	err := link()
	if errors.Is(err, fs.ErrExist) {
		if err = root.Remove(name); err == nil {
			err = link()
		}
	}
	return err
}
