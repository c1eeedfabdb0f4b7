package agent

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"creel/internal/guest/api"
	"creel/internal/wire"
)

const xattrRecord = "SCHILY.xattr." // prefix of a PAX record that holds an extended attribute

func (a *Agent) serveCopyIn(ctx context.Context, s *wire.Stream) {
	var req api.CopyRequest
	if err := s.Body(&req); err != nil {
		reply(ctx, s, invalid(err))
		return
	}
	in := s.Reader(api.ChannelIn)
	err := a.unpack(req, in)
	if err == nil {
		_, err = io.Copy(io.Discard, in) // padding behind the tar's end
	}
	reply(ctx, s, err)
}

// unpack extracts a tar below the directory that req names, which must exist.
// Links in the way are followed only where they stay below it.
func (a *Agent) unpack(req api.CopyRequest, from io.Reader) error {
	info, err := os.Stat(a.path(req.Path))
	if err == nil && !info.IsDir() {
		return &api.Error{Code: api.CodeInvalid, Message: fmt.Sprintf("copy to %q: not a directory", req.Path)}
	}
	var root *os.Root
	if err == nil {
		root, err = os.OpenRoot(a.path(req.Path))
	}
	if err != nil {
		return fmt.Errorf("copy to %q: %w", req.Path, err)
	}
	defer root.Close()
	u := unpacker{root: root, keepKinds: req.NoOverwriteDirNonDir}
	archive := tar.NewReader(from)
	for {
		h, err := archive.Next()
		if err == io.EOF {
			return u.finish()
		}
		if err != nil {
			return fmt.Errorf("read tar: %w", err)
		}
		if err := u.entry(h, archive); err != nil {
			return fmt.Errorf("copy in %q: %w", h.Name, err)
		}
	}
}

type unpacker struct {
	root      *os.Root
	keepKinds bool
	dirs      []dirTime // set last: what is put into a directory changes its time
}

type dirTime struct {
	name  string
	mtime time.Time
}

func (u *unpacker) entry(h *tar.Header, content io.Reader) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	name := path.Clean(strings.TrimLeft(h.Name, "/"))
	if !filepath.IsLocal(name) {
		return &api.Error{Code: api.CodeInvalid, Message: fmt.Sprintf("tar entry %q is not below its directory", h.Name)}
	}
	dir := h.Typeflag == tar.TypeDir
	if err := u.makeWay(name, dir); err != nil {
		return err
	}
	parent, err := u.root.Open(path.Dir(name))
	if err != nil {
		return err
	}
	defer parent.Close()
	at, base := int(parent.Fd()), path.Base(name)
	switch h.Typeflag {
	case tar.TypeReg:
		err = u.file(at, base, h, content)
	case tar.TypeDir:
		if err = unix.Mkdirat(at, base, 0o700); err == nil || err == unix.EEXIST {
			u.dirs = append(u.dirs, dirTime{name, h.ModTime})
			err = own(at, base, unix.O_RDONLY|unix.O_DIRECTORY, h)
		}
		return err
	case tar.TypeLink:
		target := path.Clean(strings.TrimLeft(h.Linkname, "/"))
		return u.root.Link(target, name)
	case tar.TypeSymlink:
		if err = unix.Symlinkat(h.Linkname, at, base); err == nil {
			err = unix.Fchownat(at, base, h.Uid, h.Gid, unix.AT_SYMLINK_NOFOLLOW)
		}
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		err = special(at, base, h)
	default:
		return &api.Error{Code: api.CodeInvalid, Message: fmt.Sprintf("tar entry %q has type %q", h.Name, h.Typeflag)}
	}
	if err != nil {
		return err
	}
	return setTime(at, base, h.ModTime)
}

// makeWay makes the parents of name and removes what it replaces.
func (u *unpacker) makeWay(name string, dir bool) error {
	if name == "." {
		return nil
	}
	old, err := u.root.Lstat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return u.root.MkdirAll(path.Dir(name), 0o755)
	case err != nil:
		return err
	case old.IsDir() && dir:
		return nil
	case old.IsDir() != dir && u.keepKinds:
		return &api.Error{Code: api.CodeInvalid, Message: fmt.Sprintf("cannot overwrite %q: one is a directory, the other is not", name)}
	case old.IsDir():
		return u.root.RemoveAll(name)
	}
	return u.root.Remove(name)
}

func (u *unpacker) file(at int, base string, h *tar.Header, content io.Reader) error {
	fd, err := unix.Openat(at, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), base)
	defer f.Close()
	if _, err := io.Copy(f, content); err != nil {
		return err
	}
	return ownFile(f, h)
}

// finish sets the times of directories, the deepest first.
func (u *unpacker) finish() error {
	for i := len(u.dirs) - 1; i >= 0; i-- {
		d := u.dirs[i]
		f, err := u.root.Open(d.name)
		if errors.Is(err, fs.ErrNotExist) {
			continue // replaced by a later entry
		}
		if err != nil {
			return err
		}
		err = setTime(int(f.Fd()), ".", d.mtime)
		f.Close()
		if err != nil {
			return fmt.Errorf("time of %q: %w", d.name, err)
		}
	}
	return nil
}

func special(at int, base string, h *tar.Header) error {
	kind := map[byte]uint32{tar.TypeChar: unix.S_IFCHR, tar.TypeBlock: unix.S_IFBLK, tar.TypeFifo: unix.S_IFIFO}[h.Typeflag]
	device := unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))
	if err := unix.Mknodat(at, base, kind|0o600, int(device)); err != nil {
		return err
	}
	if err := unix.Fchownat(at, base, h.Uid, h.Gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	return unix.Fchmodat(at, base, uint32(h.Mode)&0o7777, 0)
}

func own(at int, base string, flags int, h *tar.Header) error {
	fd, err := unix.Openat(at, base, flags|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), base)
	defer f.Close()
	return ownFile(f, h)
}

// ownFile sets owner, then mode, which a change of owner strips, then extended
// attributes: file capabilities are stripped by both.
func ownFile(f *os.File, h *tar.Header) error {
	fd := int(f.Fd())
	if err := unix.Fchown(fd, h.Uid, h.Gid); err != nil {
		return err
	}
	if err := unix.Fchmod(fd, uint32(h.Mode)&0o7777); err != nil {
		return err
	}
	for key, value := range h.PAXRecords {
		if name, ok := strings.CutPrefix(key, xattrRecord); ok {
			if err := unix.Fsetxattr(fd, name, []byte(value), 0); err != nil && err != unix.ENOTSUP {
				return fmt.Errorf("attribute %s: %w", name, err)
			}
		}
	}
	return nil
}

func setTime(at int, base string, mtime time.Time) error {
	ts, err := unix.TimeToTimespec(mtime)
	if err != nil {
		return err
	}
	return unix.UtimesNanoAt(at, base, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
}
