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
	Bytes   int64 // of files
}

// DefaultLimits are beyond any directory in use, and keep what is held in memory
// of an archive below 256 MiB: at worst all of its names, and some words for each entry.
func DefaultLimits() Limits { return Limits{Entries: 1 << 20, Names: 128 << 20, Bytes: 1 << 40} }

const (
	maxPath    = 4096    // bytes of a name or a link's target, as PATH_MAX
	maxPadding = 1 << 20 // bytes behind an archive's end
	maxShown   = 5       // links that an error or a note names
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

	// SkipLinks leaves out the symbolic links that lead, or may lead, out of
	// what is copied. Without it they end the archive with an error.
	SkipLinks bool
	left      LinksOut
}

// LinksOut are symbolic links that lead out of what is copied.
type LinksOut struct {
	Count int
	First []string // a few of them, with their targets, safe to show
}

func (l *LinksOut) add(name, target string) {
	if l.Count++; len(l.First) < maxShown {
		l.First = append(l.First, strings.ToValidUTF8(short(name)+" -> "+short(target), "?"))
	}
}

// String is what a user reads of them.
func (l LinksOut) String() string {
	if more := l.Count - len(l.First); more > 0 {
		return fmt.Sprintf("%s and %d more", strings.Join(l.First, ", "), more)
	}
	return strings.Join(l.First, ", ")
}

// Left are the links that SkipLinks has left out until now.
func (r *Reader) Left() LinksOut { return r.left }

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
	for {
		h, err := r.tar.Next()
		if err == io.EOF {
			if err := r.refusedLinks(); err != nil {
				return Entry{}, err
			}
			return Entry{}, r.end()
		}
		if err != nil {
			return Entry{}, fmt.Errorf("read the sandbox's archive: %w", err)
		}
		e, err := r.entry(h)
		switch {
		case errors.Is(err, errLeadsOut):
			r.left.add(h.Name, h.Linkname)
		case err != nil:
			return Entry{}, fmt.Errorf("the sandbox's archive has %q, %w; %s", short(h.Name), err, asIs)
		case r.SkipLinks || r.left.Count == 0:
			return e, nil
		}
		if r.left.Count >= maxShown { // enough to tell; the rest is not waited for
			if err := r.refusedLinks(); err != nil {
				return Entry{}, err
			}
		}
	}
}

// refusedLinks is an error where links lead out, and are not to be left out.
// What follows the first of them is read only to name a few more.
func (r *Reader) refusedLinks() error {
	if r.SkipLinks || r.left.Count == 0 {
		return nil
	}
	count := fmt.Sprintf("%d", r.left.Count)
	if r.left.Count >= maxShown {
		count = "at least " + count
	}
	return fmt.Errorf("the sandbox's archive has symbolic links that lead, or may lead, out of what is copied, %s: %s; "+
		"nothing was copied; use --skip-links to leave them out, or copy to - for the archive as the sandbox made it", count, r.left)
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

// entry checks a header. It copies the names that it passes on: those of a
// header may be pieces of a block of 1 MiB, which they would keep in memory.
func (r *Reader) entry(h *tar.Header) (Entry, error) {
	if err := r.spend(h); err != nil {
		return Entry{}, err
	}
	if sparse(h) {
		return Entry{}, errors.New("a file with holes, which a few bytes of an archive make as large as they like, and Creel never sends")
	}
	name, err := r.below(h.Name, h.Typeflag == tar.TypeDir)
	if err != nil {
		return Entry{}, err
	}
	if r.begun == (name == ".") {
		return Entry{}, fmt.Errorf("which is not the one %q that was asked for", r.top)
	}
	r.begun = true
	e := Entry{Name: strings.Clone(name), Mode: fs.FileMode(h.Mode) & fs.ModePerm, ModTime: h.ModTime}
	switch h.Typeflag {
	case tar.TypeReg:
		e.Size = h.Size
	case tar.TypeDir:
		e.Mode |= fs.ModeDir
	case tar.TypeSymlink:
		e.Mode |= fs.ModeSymlink
		e.Target, err = strings.Clone(h.Linkname), inside(name, h.Linkname)
	case tar.TypeLink:
		e.Hard, err = r.below(h.Linkname, false)
	default:
		err = errors.New("which is not a file, directory or link")
	}
	return e, err
}

// sparse tells whether tar would fill holes of a file: both of its own ways, of
// which the agent uses none.
func sparse(h *tar.Header) bool {
	for key := range h.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return true
		}
	}
	return h.Typeflag == tar.TypeGNUSparse
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

// errLeadsOut is of a symbolic link that is harmless but for where it leads.
var errLeadsOut = errors.New("out of what is copied")

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
				return errLeadsOut
			}
		default:
			down = true
		}
	}
	if target == "" || path.IsAbs(target) || up > strings.Count(name, "/") {
		return errLeadsOut
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
