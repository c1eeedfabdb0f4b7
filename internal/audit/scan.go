package audit

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"golang.org/x/mod/sumdb/note"
)

// maxTorn is the most that a crash can leave behind the last checkpoint: one
// commit. What is longer was not left by a crash.
const maxTorn = maxCommit + MaxLine

var errTooLong = fmt.Errorf("line is longer than %d bytes", MaxLine)

// readLine returns the next line without its newline, valid until the next
// read. At the end of the input it returns io.EOF with what stands there of an
// unfinished line.
func readLine(r *bufio.Reader, spill *[]byte) ([]byte, error) {
	*spill = (*spill)[:0]
	for {
		part, err := r.ReadSlice('\n')
		if err == nil && len(*spill) == 0 {
			return part[:len(part)-1], nil
		}
		*spill = append(*spill, part...)
		switch {
		case len(*spill) > MaxLine:
			return nil, errTooLong
		case err == nil:
			return (*spill)[:len(*spill)-1], nil
		case !errors.Is(err, bufio.ErrBufferFull):
			return *spill, err
		}
	}
}

// scanner checks the lines of one ledger or log as they stream by: numbering,
// format, and every checkpoint's text against the tree over the lines before
// it. Signatures are its caller's affair.
type scanner struct {
	origin string // "" takes the first checkpoint's
	tree   tree
	offset int64 // of the next line, in the file that is being read

	last       Head   // the last checkpoint
	checkpoint string // its signed note
	committed  tree   // with the line of the last checkpoint
	end        int64  // offset after it

	record func(Record) error      // each record; may be nil
	sealed func(note string) error // each checkpoint that agrees with its lines; may be nil
}

// errTail is what scan returns where the input ends with lines that no
// checkpoint covers.
var errTail = errors.New("lines at the end that no checkpoint covers")

// scan reads one file to its end. On error [scanner.end] tells how far the
// file is sound.
func (s *scanner) scan(ctx context.Context, r io.Reader) error {
	br, spill := bufio.NewReaderSize(r, 64<<10), []byte(nil)
	s.offset, s.end = 0, 0
	for n := 0; ; n++ {
		if n%1024 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		raw, err := readLine(br, &spill)
		if errors.Is(err, io.EOF) {
			if len(raw) > 0 || s.end != s.offset {
				return errTail
			}
			return nil
		}
		if err == nil {
			err = s.line(raw)
		}
		if err != nil {
			return fmt.Errorf("line %d: %w", s.tree.size, err)
		}
	}
}

func (s *scanner) line(raw []byte) error {
	l, err := parseLine(raw)
	if err != nil {
		return err
	}
	switch {
	case l.Seq < s.tree.size:
		return fmt.Errorf("is numbered %d: lines were repeated or put in another order", l.Seq)
	case l.Seq > s.tree.size:
		return fmt.Errorf("is numbered %d: lines are missing", l.Seq)
	}
	if l.Checkpoint == "" {
		if s.record != nil {
			if err := s.record(l.record()); err != nil {
				return err
			}
		}
		s.tree.add(raw)
		s.offset += int64(len(raw)) + 1
		return nil
	}
	head, err := s.agree(l)
	if err != nil {
		return err
	}
	if s.sealed != nil {
		if err := s.sealed(l.Checkpoint); err != nil {
			return err
		}
	}
	s.tree.add(raw)
	s.offset += int64(len(raw)) + 1
	s.last, s.checkpoint, s.end = head, l.Checkpoint, s.offset
	s.committed = s.tree.clone()
	return nil
}

// agree compares a checkpoint's text with the lines before it.
func (s *scanner) agree(l line) (Head, error) {
	head, err := ParseCheckpoint(l.Checkpoint)
	if err != nil {
		return Head{}, err
	}
	if s.origin == "" {
		s.origin = head.Origin
	}
	switch {
	case head.Origin != s.origin:
		return Head{}, fmt.Errorf("checkpoint is of %q, not of %q: another log stands in its place", head.Origin, s.origin)
	case head.Size != s.tree.size:
		return Head{}, fmt.Errorf("checkpoint is over %d lines, here are %d", head.Size, s.tree.size)
	case head.Root != s.tree.root():
		return Head{}, fmt.Errorf("checkpoint has another root than the lines since line %d give: they were edited", s.last.Size)
	}
	if l.Peaks != nil {
		peaks := tree{size: l.Seq, peaks: l.Peaks}
		if !peaks.wellFormed() || peaks.root() != head.Root {
			return Head{}, errors.New("checkpoint has peaks that do not give its root")
		}
	}
	return head, nil
}

// torn reports whether tail, which follows the last checkpoint that agrees with
// its lines, can be what a crash left of one commit: it is short, and no line
// of it is a checkpoint.
func torn(tail []byte) bool {
	if len(tail) > maxTorn {
		return false
	}
	for raw := range bytes.Lines(tail) {
		if l, err := parseLine(bytes.TrimSuffix(raw, []byte("\n"))); err == nil && l.Checkpoint != "" {
			return false
		}
	}
	return true
}

// verifierOf parses a public key in the form that note has for it.
func verifierOf(public string) (note.Verifier, error) {
	v, err := note.NewVerifier(public)
	if err != nil {
		return nil, fmt.Errorf("public key %q: %w; want NAME+HASH+KEY, as `creel audit key` prints it", public, err)
	}
	return v, nil
}
