package audit

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"creel/internal/audit/chain"

	"golang.org/x/sys/unix"
)

const (
	// LedgerName is the directory of the ledger's segments.
	LedgerName = "ledger"
	logsName   = "logs" // directory of the logs that were closed
	tornName   = "torn" // directory of what crashes left
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
	if err := writeFile(path, c.Bytes); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("open ledger: %w", err)
	}
	return &segment{file: f, path: path, size: int64(len(c.Bytes)), tree: c.Tree, head: c.Head, checkpoint: c.Checkpoint}, nil
}

// readHead returns the head that was last noted beside the ledger, or the zero
// Head. It is not synced, so after a crash it may be old or spoiled.
func readHead(dir string) Head {
	data, err := os.ReadFile(filepath.Join(dir, HeadName))
	if err != nil {
		return Head{}
	}
	h, err := chain.ParseCheckpoint(string(data))
	if err != nil {
		return Head{}
	}
	return h
}

// writeHead notes a checkpoint that is durable in the ledger.
func writeHead(dir, checkpoint string) error {
	f, err := os.OpenFile(filepath.Join(dir, HeadName), os.O_WRONLY|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("note ledger's head: %w", err)
	}
	_, err = f.WriteAt([]byte(checkpoint), 0)
	if err = errors.Join(err, f.Truncate(int64(len(checkpoint))), f.Close()); err != nil {
		return fmt.Errorf("note ledger's head: %w", err)
	}
	return nil
}
