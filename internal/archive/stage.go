package archive

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"github.com/docker/go-units"
	"golang.org/x/sys/unix"
)

// StagePrefix begins the name of the directory that a copy is unpacked to. One
// that is there while no copy is under way is of a copy that was killed, and can
// be removed.
const StagePrefix = ".creel-cp-"

const content = "content" // the copy's name in that directory

// Staged is a copy that is whole, in a directory of its own beside the place
// that it is for.
type Staged struct {
	root *os.Root // that the copy is for
	dir  string   // in root
	tmp  *os.Root // dir
	at   *os.File // dir: for the room on its file system

	isDir bool
	dirs  []Entry // have their times set last: what is put into one changes it
	links []Entry // made last: no name ever leads through a link
}

// Stage unpacks an archive into a new directory in root. On error nothing of
// it remains. The caller closes what it returns.
func Stage(root *os.Root, r *Reader) (*Staged, error) {
	s := &Staged{root: root, dir: StagePrefix + rand.Text()[:12]}
	if err := root.Mkdir(s.dir, 0o700); err != nil {
		return nil, fmt.Errorf("make a directory for the copy: %w", err)
	}
	if err := s.unpack(r); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// IsDir tells whether the copy is a directory.
func (s *Staged) IsDir() bool { return s.isDir }

// Close removes what was not placed.
func (s *Staged) Close() error {
	var errs []error
	if s.at != nil {
		errs = append(errs, s.at.Close())
	}
	if s.tmp != nil {
		errs = append(errs, s.tmp.Close())
	}
	if err := s.root.RemoveAll(s.dir); err != nil {
		errs = append(errs, fmt.Errorf("remove the copy's directory: %w", err))
	}
	return errors.Join(errs...)
}

func (s *Staged) unpack(r *Reader) error {
	var err error
	if s.tmp, err = s.root.OpenRoot(s.dir); err != nil {
		return fmt.Errorf("open the copy's directory: %w", err)
	}
	if s.at, err = s.tmp.Open("."); err != nil {
		return fmt.Errorf("open the copy's directory: %w", err)
	}
	for {
		e, err := r.Next()
		if err == io.EOF {
			return s.finish()
		}
		if err != nil {
			return err
		}
		if e.Name == "." {
			s.isDir = e.Mode.IsDir()
		}
		if err := s.add(e, r); err != nil {
			return explain(e, err)
		}
	}
}

// explain says what a file system's error means: an archive has each name once,
// and directories before what is in them.
func explain(e Entry, err error) error {
	switch {
	case errors.Is(err, fs.ErrExist):
		err = errors.New("the archive has it twice, or this file system takes two names for one")
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTDIR):
		err = errors.New("the archive does not have its directory")
	}
	return fmt.Errorf("unpack %q: %w", e.Name, err)
}

// add makes all but symbolic links. Modes go through the umask, as those of all
// files that this user makes; a directory stays its owner's to write to.
func (s *Staged) add(e Entry, from io.Reader) error {
	name := path.Join(content, e.Name)
	switch {
	case e.Hard != "":
		return s.addHard(path.Join(content, e.Hard), name)
	case e.Mode.IsDir():
		s.dirs = append(s.dirs, e)
		return s.tmp.Mkdir(name, e.Mode.Perm()|0o700)
	case e.Mode&fs.ModeSymlink != 0:
		s.links = append(s.links, e)
		return nil
	}
	if err := s.room(e.Size); err != nil {
		return err
	}
	f, err := s.tmp.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, e.Mode.Perm())
	if err != nil {
		return err
	}
	_, err = io.CopyN(f, from, e.Size)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	return s.tmp.Chtimes(name, e.ModTime, e.ModTime)
}

// addHard gives a file of the archive one more name.
func (s *Staged) addHard(old, name string) error {
	info, err := s.tmp.Lstat(old)
	if err == nil && !info.Mode().IsRegular() {
		err = errors.New("a hard link to what is not a file")
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = errors.New("a hard link to what is not in the archive")
	}
	if err != nil {
		return err
	}
	return s.tmp.Link(old, name)
}

// room refuses a file that would fill the file system before it is written.
func (s *Staged) room(size int64) error {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(s.at.Fd()), &st); err != nil {
		return fmt.Errorf("ask for the room on the file system: %w", err)
	}
	if blocks := uint64(st.Bsize); uint64(size)/blocks > st.Bavail {
		return fmt.Errorf("it has %s, and there is room for %s; make room or copy to another file system",
			units.BytesSize(float64(size)), units.BytesSize(float64(st.Bavail)*float64(blocks)))
	}
	return nil
}

// finish makes the symbolic links, and sets the times of directories, the
// deepest first.
func (s *Staged) finish() error {
	for _, e := range s.links {
		if err := s.tmp.Symlink(e.Target, path.Join(content, e.Name)); err != nil {
			return explain(e, err)
		}
	}
	for i := len(s.dirs) - 1; i >= 0; i-- {
		e := s.dirs[i]
		if err := s.tmp.Chtimes(path.Join(content, e.Name), e.ModTime, e.ModTime); err != nil {
			return explain(e, err)
		}
	}
	return nil
}

// Place moves the copy to a name in the directory that it was staged for. With
// "." it is the content of the copy, which is a directory then, that goes in.
// A file takes the place of a file; a directory is merged with one that is
// there, which keeps its mode. A link that is there is never followed. What does
// not fit is found before anything is moved.
func (s *Staged) Place(name string) error {
	if name != "." && (strings.Contains(name, "/") || name == ".." || name == "") {
		return fmt.Errorf("place the copy as %q: not a name", name)
	}
	from := path.Join(s.dir, content)
	if err := s.each(from, name, func(string, string) error { return nil }); err != nil {
		return err
	}
	return s.each(from, name, s.root.Rename)
}

// each calls move for all that has to be moved so that from becomes to.
func (s *Staged) each(from, to string, move func(from, to string) error) error {
	ours, err := s.root.Lstat(from)
	if err != nil {
		return err
	}
	there, err := s.root.Lstat(to)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return move(from, to)
	case err != nil:
		return err
	case !there.IsDir() && ours.IsDir():
		return fmt.Errorf("%q is a directory in the sandbox, and not one here; remove it here, or copy to another place", to)
	case there.IsDir() && !ours.IsDir():
		return fmt.Errorf("%q is a directory here, and not one in the sandbox; remove it here, or copy to another place", to)
	case !there.IsDir() && !there.Mode().IsRegular() && there.Mode()&fs.ModeSymlink == 0:
		return fmt.Errorf("%q is not a file here; copy to another place", to)
	case !there.IsDir():
		return move(from, to)
	}
	names, err := s.list(from)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := s.each(path.Join(from, name), path.Join(to, name), move); err != nil {
			return err
		}
	}
	return nil
}

func (s *Staged) list(dir string) ([]string, error) {
	f, err := s.root.Open(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.Readdirnames(-1)
}
