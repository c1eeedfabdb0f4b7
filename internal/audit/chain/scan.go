package chain

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"golang.org/x/mod/sumdb/note"
)

// MaxTorn is the most that a crash can leave behind the last checkpoint: one
// commit. What is longer was not left by a crash.
const MaxTorn = maxCommit + MaxLine

var errTooLong = fmt.Errorf("line is longer than %d bytes", MaxLine)

// ReadLine returns the next line without its newline, valid until the next
// read. At the end of the input it returns io.EOF with what stands there of an
// unfinished line.
func ReadLine(r *bufio.Reader, spill *[]byte) ([]byte, error) {
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

// Scanner checks the lines of one ledger or log as they stream by: numbering,
// format, and every checkpoint's text against the tree over the lines before
// it. Signatures are its caller's affair.
type Scanner struct {
	Origin string // "" takes the first checkpoint's
	Tree   Tree
	offset int64 // of the next line, in the file that is being read

	Last       Head   // the last checkpoint that agrees with its lines
	Checkpoint string // its signed note
	Committed  Tree   // with its line
	End        int64  // offset after it

	Record func(Record) error                // each record; may be nil
	Sealed func(h Head, signed string) error // each checkpoint that agrees with its lines; may be nil
}

// errTail is what Scan returns where the input ends with lines that no
// checkpoint covers.
var errTail = errors.New("lines at the end that no checkpoint covers")

// Scan reads one file to its end. On error [Scanner.End] tells how far the
// file is sound.
func (s *Scanner) Scan(ctx context.Context, r io.Reader) error {
	br, spill := bufio.NewReaderSize(r, 64<<10), []byte(nil)
	s.offset, s.End = 0, 0
	for n := 0; ; n++ {
		if n%1024 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		raw, err := ReadLine(br, &spill)
		if errors.Is(err, io.EOF) {
			if len(raw) > 0 || s.End != s.offset {
				return errTail
			}
			return nil
		}
		if err == nil {
			err = s.line(raw)
		}
		if err != nil {
			return fmt.Errorf("line %d: %w", s.Tree.Size, err)
		}
	}
}

func (s *Scanner) line(raw []byte) error {
	l, err := Parse(raw)
	if err != nil {
		return err
	}
	switch {
	case l.Seq < s.Tree.Size:
		return fmt.Errorf("is numbered %d: lines were repeated or put in another order", l.Seq)
	case l.Seq > s.Tree.Size:
		return fmt.Errorf("is numbered %d: lines are missing", l.Seq)
	}
	if l.Checkpoint == "" {
		if s.Record != nil {
			if err := s.Record(l.Record()); err != nil {
				return err
			}
		}
		s.Tree.Add(raw)
		s.offset += int64(len(raw)) + 1
		return nil
	}
	head, err := s.agree(l)
	if err != nil {
		return err
	}
	if s.Sealed != nil {
		if err := s.Sealed(head, l.Checkpoint); err != nil {
			return err
		}
	}
	s.Tree.Add(raw)
	s.offset += int64(len(raw)) + 1
	s.Last, s.Checkpoint, s.End = head, l.Checkpoint, s.offset
	s.Committed.Size = s.Tree.Size
	s.Committed.Peaks = append(s.Committed.Peaks[:0], s.Tree.Peaks...)
	return nil
}

// agree compares a checkpoint's text with the lines before it.
func (s *Scanner) agree(l Line) (Head, error) {
	head, err := ParseCheckpoint(l.Checkpoint)
	if err != nil {
		return Head{}, err
	}
	if s.Origin == "" {
		s.Origin = head.Origin
	}
	switch {
	case head.Origin != s.Origin:
		return Head{}, fmt.Errorf("checkpoint is of %q, not of %q: another log stands in its place", head.Origin, s.Origin)
	case head.Size != s.Tree.Size:
		return Head{}, fmt.Errorf("checkpoint is over %d lines, here are %d", head.Size, s.Tree.Size)
	case head.Root != s.Tree.Root():
		return Head{}, fmt.Errorf("checkpoint has another root than the lines since line %d give: they were edited", s.Last.Size)
	}
	if l.Peaks != nil {
		peaks := Tree{Size: l.Seq, Peaks: l.Peaks}
		if !peaks.WellFormed() || peaks.Root() != head.Root {
			return Head{}, errors.New("checkpoint has peaks that do not give its root")
		}
	}
	return head, nil
}

// Torn reports whether tail, which follows the last checkpoint that agrees with
// its lines, can be what a crash left of one commit: it is short, and no line of
// it is a checkpoint. The last one may be where something else of the commit is
// missing: its end, or blocks that have zeros in their place. Who changes a log so
// could as well cut its last commit off.
func Torn(tail []byte) bool {
	if len(tail) > MaxTorn {
		return false
	}
	missing := bytes.IndexByte(tail, 0) >= 0 || !bytes.HasSuffix(tail, []byte("\n"))
	seen := 0
	for raw := range bytes.Lines(tail) {
		seen += len(raw)
		l, err := Parse(bytes.TrimSuffix(raw, []byte("\n")))
		if err == nil && l.Checkpoint != "" && !(missing && seen == len(tail)) {
			return false
		}
	}
	return true
}

// Verifier parses a public key in the form that note has for it.
func Verifier(public string) (note.Verifier, error) {
	v, err := note.NewVerifier(public)
	if err != nil {
		return nil, fmt.Errorf("public key %q: %w; want NAME+HASH+KEY, as `creel audit key` prints it", public, err)
	}
	return v, nil
}
