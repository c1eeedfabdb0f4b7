package audit

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"creel/internal/audit/chain"
	"creel/internal/durable"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/sys/unix"
)

const (
	// LedgerName is the directory of the ledger's segments.
	LedgerName = "ledger"
	logsName   = "logs"     // directory of the logs that were closed
	tornName   = "torn"     // directory of what crashes left
	asideName  = "unclosed" // directory of logs that were set aside until they can be closed
	lockName   = "lock"
	closeName  = "close.lock"
	// HeadName is the file with the last checkpoint, beside the ledger.
	HeadName = "head"

	extension  = ".jsonl"
	maxSegment = 4 << 20 // bytes, but for one commit
)

// segmentName is the file of the segment whose first line has number seq.
func segmentName(seq int64) string { return fmt.Sprintf("%012d%s", seq, extension) }

// Segments lists a ledger's files, oldest first.
func Segments(dir string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(dir, LedgerName))
	if err != nil {
		return nil, fmt.Errorf("list ledger: %w", err)
	}
	var paths []string
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), extension) {
			paths = append(paths, filepath.Join(dir, LedgerName, e.Name()))
		}
	}
	return paths, nil
}

// segment is the ledger's newest file, open to append.
type segment struct {
	file *os.File
	path string
	size int64      // up to the end of its last commit
	tree chain.Tree // of the whole ledger, at that size

	head       Head
	checkpoint string
}

// openSegment finds the last commit of a file by reading only its end, and
// returns besides what follows that commit. Its signature is not checked.
func openSegment(path string) (*segment, []byte, error) {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("open ledger: %w", err)
	}
	s := &segment{file: f, path: path}
	tail, err := s.load()
	if err != nil {
		f.Close()
		return nil, nil, fmt.Errorf("read ledger %s: %w", filepath.Base(path), err)
	}
	return s, tail, nil
}

// load reads a little of the end, and more of it only where a crash left
// something there.
func (s *segment) load() (tail []byte, err error) {
	info, err := s.file.Stat()
	if err != nil {
		return nil, err
	}
	for _, window := range []int64{16 << 10, chain.MaxTorn + 2*chain.MaxLine} {
		from := max(0, info.Size()-window)
		data, err := io.ReadAll(io.NewSectionReader(s.file, from, info.Size()-from))
		if err != nil {
			return nil, err
		}
		end := int64(bytes.LastIndexByte(data, '\n') + 1)
		for stop := end; stop > 0; {
			start := int64(bytes.LastIndexByte(data[:stop-1], '\n') + 1)
			raw := data[start : stop-1]
			if l, err := chain.Parse(raw); err == nil && l.Checkpoint != "" && (start > 0 || from == 0) {
				s.size = from + stop
				return data[stop:], s.adopt(l, raw)
			}
			if start == 0 || window < chain.MaxTorn && stop == end && info.Size() > window {
				break // look at more of the file first
			}
			stop = start
		}
	}
	return nil, errors.New("it ends without a checkpoint: it was cut or overwritten; run `creel audit verify`")
}

// adopt takes the state of the ledger from a checkpoint's line.
func (s *segment) adopt(l chain.Line, raw []byte) error {
	head, err := chain.ParseCheckpoint(l.Checkpoint)
	if err != nil {
		return err
	}
	s.tree = chain.Tree{Size: l.Seq, Peaks: l.Peaks}
	if head.Size != l.Seq || !s.tree.WellFormed() || s.tree.Root() != head.Root {
		return errors.New("its last checkpoint contradicts itself; run `creel audit verify`")
	}
	s.tree.Add(raw)
	s.head, s.checkpoint = head, l.Checkpoint
	return nil
}

// newSegment makes a file that begins with a whole commit. It appears under its
// name only then, so a ledger's file without one was tampered with.
func newSegment(dir string, first int64, c chain.Commit) (*segment, error) {
	path := filepath.Join(dir, LedgerName, segmentName(first))
	if err := errors.Join(durable.Sweep(filepath.Dir(path)), durable.Replace(path, c.Bytes)); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("open ledger: %w", err)
	}
	return &segment{file: f, path: path, size: int64(len(c.Bytes)), tree: c.Tree, head: c.Head, checkpoint: c.Checkpoint}, nil
}

// readHead returns the head that was last noted beside the ledger, or the zero
// Head where none was. It is not synced, so after a crash it may be old. Key is
// the one in force; what an earlier one has signed cannot be checked here.
func readHead(dir string, key note.Verifier) (Head, error) {
	data, err := os.ReadFile(filepath.Join(dir, HeadName))
	if errors.Is(err, fs.ErrNotExist) {
		return Head{}, nil
	}
	if err != nil {
		return Head{}, damagedHead(dir, err)
	}
	signed := strings.TrimRight(string(data), "\n") + "\n"
	h, err := chain.ParseCheckpoint(signed)
	if err == nil && h.Origin != key.Name() {
		err = fmt.Errorf("it is of %q, and this is %q", h.Origin, key.Name())
	}
	if err == nil {
		_, err = note.Open([]byte(signed), note.VerifierList(key))
		if _, another := errors.AsType[*note.UnverifiedNoteError](err); another {
			err = nil
		}
	}
	if err != nil {
		return Head{}, damagedHead(dir, err)
	}
	return h, nil
}

// reaches fails where the ledger that ends with s had once come further than it
// does now.
func (s *segment) reaches(noted Head) error {
	if noted.Size > s.head.Size || noted.Size == s.head.Size && noted != s.head {
		return fmt.Errorf("the ledger ends at line %d, but had reached %d: it was cut, exchanged or put back from a copy; run `creel audit verify`, and see docs/audit.md",
			s.head.Size, noted.Size)
	}
	return nil
}

// lacks reports whether noted is missing: none is noted of a ledger's first
// commit.
func (s *segment) lacks(noted Head) bool { return noted == Head{} && s.head.Size > 1 }

func damagedHead(dir string, err error) error {
	return fmt.Errorf("%s is damaged: %w. It says how far the ledger had come, and without it nobody sees here that the ledger's end was cut off: "+
		"run `creel audit verify --expect` with a checkpoint or receipt that you keep elsewhere, and where that is its only fault remove that file; see docs/audit.md",
		filepath.Join(dir, HeadName), err)
}

// CheckHead fails where the head that is noted beside the ledger is no
// checkpoint.
func CheckHead(dir, signed string) error {
	if _, err := chain.ParseCheckpoint(signed); err != nil {
		return damagedHead(dir, err)
	}
	return nil
}

// writeHead notes a checkpoint that is durable in the ledger. A process that is
// killed meanwhile leaves the old one or the new one: it is written at once, over
// all that is there.
func writeHead(dir, checkpoint string) error {
	f, err := os.OpenFile(filepath.Join(dir, HeadName), os.O_WRONLY|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("note ledger's head: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err == nil {
		rest := max(info.Size()-int64(len(checkpoint)), 0)
		_, err = f.WriteAt(append([]byte(checkpoint), bytes.Repeat([]byte("\n"), int(min(rest, 64<<10)))...), 0)
	}
	if err = errors.Join(err, f.Truncate(int64(len(checkpoint)))); err != nil {
		return fmt.Errorf("note ledger's head: %w", err)
	}
	return nil
}
