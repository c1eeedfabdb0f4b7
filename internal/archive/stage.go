package archive

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"time"

	"github.com/docker/go-units"
	"golang.org/x/sys/unix"

	"creel/internal/diskroom"
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
	dirs  []stagedDir  // have their times set last: what is put into one changes it
	links []stagedLink // made last: no name ever leads through a link
}

type stagedDir struct {
	name string
	when int64 // in seconds
}

type stagedLink struct{ name, target string }

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
			return explain(e.Name, err)
		}
	}
}

// explain says what a file system's error means: an archive has each name once,
// and directories before what is in them.
func explain(name string, err error) error {
	switch {
	case errors.Is(err, fs.ErrExist):
		err = errors.New("the archive has it twice, or this file system takes two names for one")
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTDIR):
		err = errors.New("the archive does not have its directory")
	}
	return fmt.Errorf("unpack %q: %w", name, err)
}

// add makes all but symbolic links. Modes go through the umask, as those of all
// files that this user makes; a directory stays its owner's to write to.
func (s *Staged) add(e Entry, from io.Reader) error {
	name := path.Join(content, e.Name)
	if err := s.room(e.Size); err != nil {
		return err
	}
	switch {
	case e.Hard != "":
		return s.addHard(path.Join(content, e.Hard), name)
	case e.Mode.IsDir():
		s.dirs = append(s.dirs, stagedDir{e.Name, e.ModTime.Unix()})
		return s.tmp.Mkdir(name, e.Mode.Perm()|0o700)
	case e.Mode&fs.ModeSymlink != 0:
		s.links = append(s.links, stagedLink{e.Name, e.Target})
		return nil
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

// room refuses what would not leave the file system its reserve, before it is
// written. Holes count as if they were filled: no archive is taken that has any.
func (s *Staged) room(size int64) error {
	room, err := diskroom.OfFile(s.at)
	switch {
	case err != nil:
		return err
	case room.Files < room.Spare:
		return errors.New("the file system is near its limit of files; remove some or copy to another file system")
	case size > room.Left()-room.Block:
		return fmt.Errorf("it has %s, and there is room for %s, beside a reserve of %s that stays free; make room or copy to another file system",
			units.BytesSize(float64(size)), units.BytesSize(float64(room.Left())), units.BytesSize(float64(diskroom.Reserve(room.Size))))
	}
	return nil
}

// finish makes the symbolic links, and sets the times of directories, the
// deepest first.
func (s *Staged) finish() error {
	for _, l := range s.links {
		err := s.room(0)
		if err == nil {
			err = s.tmp.Symlink(l.target, path.Join(content, l.name))
		}
		if err != nil {
			return explain(l.name, err)
		}
	}
	for _, d := range slices.Backward(s.dirs) {
		when := time.Unix(d.when, 0)
		if err := s.tmp.Chtimes(path.Join(content, d.name), when, when); err != nil {
			return explain(d.name, err)
		}
	}
	s.links, s.dirs = nil, nil
	return nil
}
