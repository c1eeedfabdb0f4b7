package archive

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

const maxListed = 20 // trusted files that an error or a note names

// Placed is what a copy did.
type Placed struct {
	Merged         bool // with a directory that was there
	Replaced, Made int  // files and links
	// Trusted are the files and links of the copy that programs here run or
	// trust for their names, and that were not named.
	Trusted TrustedFiles
}

// TrustedFiles are some of them, each with the reason, and how many there are.
type TrustedFiles struct {
	Count int
	First []string
}

func (t *TrustedFiles) add(name, why string) {
	if t.Count++; len(t.First) < maxListed {
		t.First = append(t.First, fmt.Sprintf("%s (%s)", strings.ToValidUTF8(name, "?"), why))
	}
}

// String has at most max of them.
func (t TrustedFiles) String(max int) string {
	s := strings.Join(t.First[:min(max, len(t.First))], ", ")
	if more := t.Count - min(max, len(t.First)); more > 0 {
		s += fmt.Sprintf(" and %d more", more)
	}
	return s
}

// Place moves the copy to a name in the directory that it was staged for. With
// "." it is the content of the copy, which is a directory then, that goes in.
// A file takes the place of a file; a directory is merged with one that is
// there, which keeps its mode. A link that is there is never followed. A merge
// that would make or change what is [trusted] is refused, but with force; one
// that is the same as ours is left as it is.
//
// What does not fit is found before anything is moved, as far as the file system
// lets one know.
func (s *Staged) Place(name string, force bool) (Placed, error) {
	if name != "." && (strings.Contains(name, "/") || name == ".." || name == "") {
		return Placed{}, fmt.Errorf("place the copy as %q: not a name", name)
	}
	abs, err := filepath.Abs(s.root.Name())
	if err == nil {
		abs, err = filepath.EvalSymlinks(abs)
	}
	if err != nil {
		return Placed{}, fmt.Errorf("find the directory that is copied to: %w", err)
	}
	p := &placing{Staged: s, abs: abs, force: force, kept: map[string]bool{}}
	if p.from, err = s.mountOf(s.dir); err != nil {
		return Placed{}, err
	}
	top := path.Join(s.dir, content)
	if err := p.each(top, name, p.look); err != nil {
		return Placed{}, err
	}
	if p.done.Merged && p.done.Trusted.Count > 0 && !force {
		return Placed{}, fmt.Errorf("the copy would make or change, below what is here already, what programs here run or trust: %s; "+
			"nothing was copied; copy to a new directory and look at them there, or use --force to have them too", p.done.Trusted.String(maxListed))
	}
	if err := p.each(top, name, p.move); err != nil {
		return Placed{}, fmt.Errorf("put the copy in its place, of which %d files and directories were moved already: %w", p.moved, err)
	}
	return p.done, nil
}

// placing is one call of Place.
type placing struct {
	*Staged
	abs   string // of root
	from  mount  // of the copy
	force bool
	kept  map[string]bool // what is there is the same, and trusted
	done  Placed
	moved int
}

// each calls do for all that has to be moved so that from becomes to. What is
// there is nil where nothing is.
func (p *placing) each(from, to string, do func(from, to string, ours, there fs.FileInfo) error) error {
	ours, err := p.root.Lstat(from)
	if err != nil {
		return err
	}
	there, err := p.root.Lstat(to)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return do(from, to, ours, nil)
	case err != nil:
		return err
	case !there.IsDir() && ours.IsDir():
		return fmt.Errorf("%q is a directory in the sandbox, and not one here; remove it here, or copy to another place", to)
	case there.IsDir() && !ours.IsDir():
		return fmt.Errorf("%q is a directory here, and not one in the sandbox; remove it here, or copy to another place", to)
	case !there.IsDir() && !there.Mode().IsRegular() && there.Mode()&fs.ModeSymlink == 0:
		return fmt.Errorf("%q is not a file here; copy to another place", to)
	}
	if err := do(from, to, ours, there); err != nil || !there.IsDir() {
		return err
	}
	names, err := p.list(from)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := p.each(path.Join(from, name), path.Join(to, name), do); err != nil {
			return err
		}
	}
	return nil
}

// look finds what hinders a move, and what it would do.
func (p *placing) look(from, to string, ours, there fs.FileInfo) error {
	top := from == path.Join(p.dir, content)
	switch {
	case there != nil && there.IsDir():
		p.done.Merged = true
		return p.enterable(to)
	case there != nil:
		if err := p.replaceable(to); err != nil {
			return err
		}
	case ours.IsDir():
		return p.lookBelow(from, to)
	}
	why := ""
	if !top {
		why = p.why(from, to, ours)
	}
	if why != "" && p.same(from, to, ours, there) {
		p.kept[to] = true
		return nil
	}
	p.count(to, why, there != nil)
	return nil
}

// why is [whyTrusted] of what is moved to to, and of where it leads: a later copy
// may go through a link that this one makes.
func (p *placing) why(from, to string, info fs.FileInfo) string {
	why := whyTrusted(p.abs, to)
	if why != "" || info.Mode()&fs.ModeSymlink == 0 {
		return why
	}
	target, err := p.root.Readlink(from)
	if err != nil {
		return "it cannot be seen where it leads"
	}
	return whyTrusted(p.abs, path.Join(path.Dir(to), target))
}

func (p *placing) count(to, why string, replaces bool) {
	if why != "" {
		p.done.Trusted.add(to, why)
	}
	if replaces {
		p.done.Replaced++
	} else {
		p.done.Made++
	}
}

// lookBelow looks at all of a directory that is moved whole.
func (p *placing) lookBelow(from, to string) error {
	names, err := p.list(from)
	if err != nil {
		return err
	}
	for _, name := range names {
		from, to := path.Join(from, name), path.Join(to, name)
		info, err := p.root.Lstat(from)
		switch {
		case err != nil:
			return err
		case info.IsDir():
			err = p.lookBelow(from, to)
		default:
			p.count(to, p.why(from, to, info), false)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (p *placing) move(from, to string, _, there fs.FileInfo) error {
	if there != nil && there.IsDir() || p.kept[to] {
		return nil
	}
	if err := p.root.Rename(from, to); err != nil {
		return err
	}
	p.moved++
	return nil
}

// same tells whether a file that is there has all that ours has. What cannot be
// read may differ.
func (p *placing) same(from, to string, ours, there fs.FileInfo) bool {
	if there == nil || !ours.Mode().IsRegular() || !there.Mode().IsRegular() || ours.Size() != there.Size() || ours.Mode() != there.Mode() {
		return false
	}
	a, err := p.root.Open(from)
	if err != nil {
		return false
	}
	defer a.Close()
	b, err := p.root.Open(to)
	if err != nil {
		return false
	}
	defer b.Close()
	return sameContent(a, b)
}

func sameContent(a, b io.Reader) bool {
	one, other := make([]byte, 32<<10), make([]byte, 32<<10)
	for {
		n, errA := io.ReadFull(a, one)
		m, errB := io.ReadFull(b, other)
		switch {
		case !bytes.Equal(one[:n], other[:m]) || errA != errB:
			return false
		case errA == io.EOF || errA == io.ErrUnexpectedEOF:
			return true
		case errA != nil:
			return false
		}
	}
}

// enterable finds what would hinder a move into a directory that is there: a
// rename does not reach another file system, nor another mount of its own.
func (p *placing) enterable(dir string) error {
	at, err := p.mountOf(dir)
	if err != nil {
		return err
	}
	if at != p.from {
		return fmt.Errorf("%q is on another file system or mount than %s; nothing was copied; copy to it by itself, or to a new directory", dir, p.abs)
	}
	f, err := p.root.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Faccessat(int(f.Fd()), ".", unix.W_OK|unix.X_OK, unix.AT_EACCESS); err != nil {
		return fmt.Errorf("%q cannot be written to: %w; nothing was copied; change its mode, or copy to another place", dir, err)
	}
	return nil
}

// replaceable finds a file that something is mounted on.
func (p *placing) replaceable(name string) error {
	parent, err := p.root.Open(path.Dir(name))
	if err != nil {
		return err
	}
	defer parent.Close()
	at, err := mountAt(parent, path.Base(name))
	if err != nil {
		return err
	}
	if at.id != p.from.id {
		return fmt.Errorf("%q has something mounted on it; nothing was copied; unmount it, or copy to another place", name)
	}
	return nil
}

// mount is where a directory is: renames stay in one. A file system may have
// several mounts, and a mount several parts with devices of their own.
type mount struct {
	id           uint64 // 0 where the kernel does not tell
	major, minor uint32
}

func (s *Staged) mountOf(dir string) (mount, error) {
	f, err := s.root.Open(dir)
	if err != nil {
		return mount{}, err
	}
	defer f.Close()
	return mountAt(f, "")
}

// mountAt is the mount of a name in a directory, or of itself.
func mountAt(dir *os.File, name string) (mount, error) {
	var st unix.Statx_t
	flags := unix.AT_SYMLINK_NOFOLLOW
	if name == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	if err := unix.Statx(int(dir.Fd()), name, flags, unix.STATX_TYPE|unix.STATX_MNT_ID, &st); err != nil {
		return mount{}, fmt.Errorf("look where %s is mounted: %w", filepath.Join(dir.Name(), name), err)
	}
	return mount{id: st.Mnt_id, major: st.Dev_major, minor: st.Dev_minor}, nil
}

func (s *Staged) list(dir string) ([]string, error) {
	f, err := s.root.Open(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.Readdirnames(-1)
}
