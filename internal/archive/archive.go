// Package archive packs files for a sandbox and takes in what comes out of one.
// [Pack] reads files of this machine's user. [Reader] reads a sandbox's archive
// and passes on only what is harmless; [Stage] unpacks it into a directory of
// its own, a [Staged], which is put in its place once the archive is whole.
//
// Every byte of an archive that comes out of a sandbox is hostile: the guest can
// replace its agent. The package must not know sandboxes, must not use an owner,
// an extended attribute or a special mode bit of an archive, and must not write
// outside the directory that it made before the archive is whole.
package archive

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"path/filepath"
	"strings"
	"time"

	"creel/internal/printable"
)

// Limits bound what one archive may hold. The file system that it is unpacked
// to is a limit of its own.
type Limits struct {
	Entries int64
	Names   int64 // bytes of names and link targets
	Bytes   int64 // of files, with holes filled
}

// DefaultLimits are beyond any directory in use.
func DefaultLimits() Limits { return Limits{Entries: 4 << 20, Names: 256 << 20, Bytes: 1 << 40} }

const (
	maxPath    = 4096    // bytes of a name or a link's target, as PATH_MAX
	maxPadding = 1 << 20 // bytes behind an archive's end
)

// asIs ends errors of what is refused.
const asIs = "to get the archive as the sandbox made it, copy to - and look at it before you unpack it"

// Entry is one file, directory or link.
type Entry struct {
	// Name is relative to what was asked for, which is "."; clean, and never
	// above it.
	Name string
	// Mode has the type, which is a regular file, a directory or a symbolic
	// link, and the permission bits.
	Mode    fs.FileMode
	Size    int64 // of a regular file
	ModTime time.Time
	// Target of a symbolic link is relative, and inside what was asked for if
	// all directories in the archive are real ones.
	Target string
	// Hard is the Name of an earlier file, of which this is one more name.
	Hard string
}

// Reader reads an archive of one file or directory, which has to be its first
// entry; all others have to be below it. What an honest agent never sends ends
// it with an error. It is for one goroutine.
type Reader struct {
	from   io.Reader
	tar    *tar.Reader
	top    string
	limits Limits // what is left of them
	begun  bool
}

// NewReader reads an archive of what is called top in it: a file name, or "."
// for a whole root.
func NewReader(r io.Reader, top string, limits Limits) *Reader {
	return &Reader{from: r, tar: tar.NewReader(r), top: top, limits: limits}
}

// Read reads the content of the entry that Next returned last.
func (r *Reader) Read(p []byte) (int, error) { return r.tar.Read(p) }

// Next is the next entry. It is io.EOF only when the archive is whole: its end
// and the end of what it is read from were seen.
func (r *Reader) Next() (Entry, error) {
	h, err := r.tar.Next()
	if err == io.EOF {
		return Entry{}, r.end()
	}
	if err != nil {
		return Entry{}, fmt.Errorf("read the sandbox's archive: %w", err)
	}
	e, err := r.entry(h)
	if err != nil {
		return Entry{}, fmt.Errorf("the sandbox's archive has %q, %w; %s", short(h.Name), err, asIs)
	}
	return e, nil
}

// end reads what is behind the archive's end, which is little.
func (r *Reader) end() error {
	if !r.begun {
		return errors.New("the sandbox's archive is empty")
	}
	n, err := io.Copy(io.Discard, io.LimitReader(r.from, maxPadding+1))
	switch {
	case err != nil:
		return fmt.Errorf("read the end of the sandbox's archive: %w", err)
	case n > maxPadding:
		return errors.New("the sandbox's archive does not end where it says")
	}
	return io.EOF
}

func (r *Reader) entry(h *tar.Header) (Entry, error) {
	if err := r.spend(h); err != nil {
		return Entry{}, err
	}
	name, err := r.below(h.Name, h.Typeflag == tar.TypeDir)
	if err != nil {
		return Entry{}, err
	}
	if r.begun == (name == ".") {
		return Entry{}, fmt.Errorf("which is not the one %q that was asked for", r.top)
	}
	r.begun = true
	e := Entry{Name: name, Mode: fs.FileMode(h.Mode) & fs.ModePerm, ModTime: h.ModTime}
	switch h.Typeflag {
	case tar.TypeReg:
		e.Size = h.Size
	case tar.TypeDir:
		e.Mode |= fs.ModeDir
	case tar.TypeSymlink:
		e.Mode |= fs.ModeSymlink
		e.Target, err = h.Linkname, inside(name, h.Linkname)
	case tar.TypeLink:
		e.Hard, err = r.below(h.Linkname, false)
	default:
		err = errors.New("which is not a file, directory or link")
	}
	return e, err
}

// spend takes an entry off the limits.
func (r *Reader) spend(h *tar.Header) error {
	r.limits.Entries--
	r.limits.Names -= int64(len(h.Name) + len(h.Linkname))
	switch {
	case r.limits.Entries < 0:
		return errors.New("beyond the number of files that Creel copies")
	case r.limits.Names < 0:
		return errors.New("with more and longer names than Creel copies")
	case h.Size < 0 || h.Size > r.limits.Bytes:
		return errors.New("with more bytes than Creel copies")
	}
	r.limits.Bytes -= h.Size
	return nil
}

// below checks a name, and makes it relative to the top.
func (r *Reader) below(name string, dir bool) (string, error) {
	if dir {
		name = strings.TrimSuffix(name, "/")
	}
	if err := plainName(name); err != nil {
		return "", err
	}
	if !filepath.IsLocal(name) || path.Clean(name) != name {
		return "", errors.New("which is not a plain relative name")
	}
	if name == r.top {
		return ".", nil
	}
	if r.top == "." {
		return name, nil
	}
	rest, ok := strings.CutPrefix(name, r.top+"/")
	if !ok {
		return "", fmt.Errorf("which is not below %q", r.top)
	}
	return rest, nil
}

// plainName refuses what no path can be, and what steers the terminal of whoever
// lists it. Bytes that are not UTF-8 are some other encoding's letters.
func plainName(name string) error {
	switch {
	case len(name) > maxPath:
		return fmt.Errorf("a name of %d bytes, at most %d", len(name), maxPath)
	case !printable.Safe(strings.ToValidUTF8(name, "?")):
		return errors.New("a name with control characters")
	}
	return nil
}

// inside checks that a symbolic link stays below the top. Going up is allowed
// at the beginning alone: the directories that a link is in are real, those that
// it leads through may be links.
func inside(name, target string) error {
	if err := plainName(target); err != nil {
		return err
	}
	if name == "." {
		return fmt.Errorf("a link to %q; name that instead", short(target))
	}
	up, down := 0, false
	for part := range strings.SplitSeq(target, "/") {
		switch part {
		case "", ".":
		case "..":
			if up++; down {
				return fmt.Errorf("a link to %q, which goes up after it went down", short(target))
			}
		default:
			down = true
		}
	}
	if target == "" || path.IsAbs(target) || up > strings.Count(name, "/") {
		return fmt.Errorf("a link to %q, out of what is copied", short(target))
	}
	return nil
}

// short is enough of a text to know it by.
func short(s string) string {
	if len(s) > 200 {
		return s[:200] + "…"
	}
	return s
}
