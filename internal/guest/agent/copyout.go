package agent

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"creel/internal/guest/api"
	"creel/internal/wire"
)

const maxXattrs = 64 << 10 // bytes of names or of one value; the kernel's own limit

func (a *Agent) serveStat(ctx context.Context, s *wire.Stream) {
	var req api.CopyRequest
	if err := s.Body(&req); err != nil {
		s.Send(ctx, api.StatReply{Error: invalid(err)})
		return
	}
	name := a.path(req.Path)
	info, err := os.Lstat(name)
	if err != nil {
		s.Send(ctx, api.StatReply{Error: refusal(err)})
		return
	}
	r := api.StatReply{Name: info.Name(), Size: info.Size(), Mode: uint32(info.Mode()), MTime: info.ModTime().Unix()}
	if info.Mode()&fs.ModeSymlink != 0 {
		r.LinkTarget, err = os.Readlink(name)
		r.Error = refusal(err)
	}
	s.Send(ctx, r)
}

// serveCopyOut replies as soon as the path is known to exist. A tar that
// cannot be finished ends without the end of its channel.
func (a *Agent) serveCopyOut(ctx context.Context, s *wire.Stream) {
	var req api.CopyRequest
	if err := s.Body(&req); err != nil {
		reply(ctx, s, invalid(err))
		return
	}
	top := a.path(req.Path)
	if _, err := os.Lstat(top); err != nil {
		reply(ctx, s, err)
		return
	}
	if s.Send(ctx, api.Reply{}) != nil {
		return
	}
	out := bufio.NewWriterSize(s.Writer(api.ChannelOut), 32<<10)
	p := packer{archive: tar.NewWriter(out), seen: map[inode]string{}}
	base := path.Base(filepath.Join("/", req.Path))
	if base == "/" {
		base = "."
	}
	if p.tree(top, base) == nil && p.archive.Close() == nil && out.Flush() == nil {
		s.Writer(api.ChannelOut).Close()
	}
}

type inode struct{ dev, ino uint64 }

type packer struct {
	archive *tar.Writer
	seen    map[inode]string // files with several names that are in the tar
}

// tree writes top and what is below it on the same file system: what is
// mounted in a directory, such as /proc, is not part of it.
func (p *packer) tree(top, base string) error {
	parents := map[string]uint64{} // device of each directory on the way
	return filepath.WalkDir(top, func(name string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) && name != top {
			return nil // the task removed it meanwhile
		}
		if err != nil {
			return err
		}
		info, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(top, name)
		if err != nil {
			return err
		}
		if err := p.entry(name, path.Join(base, rel), info); err != nil {
			return fmt.Errorf("copy out %q: %w", name, err)
		}
		if d.IsDir() {
			dev := info.Sys().(*syscall.Stat_t).Dev
			if above, ok := parents[filepath.Dir(name)]; ok && name != top && above != dev {
				return filepath.SkipDir
			}
			parents[name] = dev
		}
		return nil
	})
}

func (p *packer) entry(name, inTar string, info fs.FileInfo) error {
	if info.Mode()&fs.ModeSocket != 0 {
		return nil // cannot be in a tar
	}
	target := ""
	if info.Mode()&fs.ModeSymlink != 0 {
		var err error
		if target, err = os.Readlink(name); err != nil {
			return err
		}
	}
	h, err := tar.FileInfoHeader(plain{info}, target)
	if err != nil {
		return err
	}
	stat := info.Sys().(*syscall.Stat_t)
	h.Uid, h.Gid = int(stat.Uid), int(stat.Gid)
	h.Name = inTar
	if info.IsDir() {
		h.Name += "/"
	}
	if info.Mode()&fs.ModeDevice != 0 {
		h.Devmajor, h.Devminor = int64(unix.Major(stat.Rdev)), int64(unix.Minor(stat.Rdev))
	}
	id := inode{stat.Dev, stat.Ino}
	if info.Mode().IsRegular() && stat.Nlink > 1 {
		if first, ok := p.seen[id]; ok {
			h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
			return p.archive.WriteHeader(h)
		}
		p.seen[id] = h.Name
	}
	if target == "" {
		h.PAXRecords = xattrs(name)
	}
	if !info.Mode().IsRegular() {
		return p.archive.WriteHeader(h)
	}
	f, err := openRegular(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if err := p.archive.WriteHeader(h); err != nil {
		return err
	}
	_, err = io.CopyN(p.archive, f, h.Size) // one that grows is cut, one that shrinks is an error
	return err
}

// plain keeps package tar from looking owners up by name, which would read
// this process's /etc/passwd for each file.
type plain struct{ fs.FileInfo }

func (plain) Sys() any { return nil }

// xattrs are the attributes that a tar carries; a file system without any has
// none.
func xattrs(name string) map[string]string {
	size, err := unix.Llistxattr(name, nil)
	if err != nil || size == 0 || size > maxXattrs {
		return nil
	}
	names := make([]byte, size)
	if size, err = unix.Llistxattr(name, names); err != nil {
		return nil
	}
	var found map[string]string
	for key := range strings.SplitSeq(string(names[:size]), "\x00") {
		if key != "security.capability" && !strings.HasPrefix(key, "user.") {
			continue
		}
		value := make([]byte, maxXattrs)
		n, err := unix.Lgetxattr(name, key, value)
		if err != nil {
			continue
		}
		if found == nil {
			found = map[string]string{}
		}
		found[xattrRecord+key] = string(value[:n])
	}
	return found
}
