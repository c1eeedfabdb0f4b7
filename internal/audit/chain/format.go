// Package chain is the file format of ledger and logs: JSON lines that are the
// leaves of a Merkle tree, with signed checkpoints among them. [Sealer] makes
// the bytes of a commit, [Parse] reads a line, [Scanner] checks lines as they
// stream by, [Tree] is the tree's growing edge. docs/format/audit.md says the
// same in prose. The package must not touch files, time or keys' storage.
package chain

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// Version is of the format of ledger and logs; docs/format/audit.md has it.
const Version = 1

// Bounds of the format, in bytes.
const (
	MaxLine   = 1 << 20 // one line with its newline
	maxCommit = 2 << 20 // the lines that one checkpoint commits
	MaxBatch  = 1 << 20 // records that are gathered into one commit, beside the last
)

// Kind says what a record is about; package audit names them.
type Kind string

// Record is an event as it stands on disk.
type Record struct {
	Seq     int64           // index of its line in its ledger or log
	Time    time.Time       // when it was written, UTC
	Kind    Kind            //
	Sandbox string          // "" where none is concerned
	Data    json.RawMessage // a JSON object, or empty
}

// Head is a tree at one size: what a checkpoint signs.
type Head struct {
	Origin string    `json:"origin"` // names the ledger or log
	Size   int64     `json:"size"`   // lines
	Root   tlog.Hash `json:"root"`   // in JSON: base64
}

// Line is one line of a file: a record, or a checkpoint over all before it.
// Checkpoints are leaves of the tree as records are.
type Line struct {
	V          int             `json:"v"`
	Seq        int64           `json:"seq"`
	Time       time.Time       `json:"time,omitzero"`
	Kind       Kind            `json:"kind,omitempty"`
	Sandbox    string          `json:"sandbox,omitempty"`
	Data       json.RawMessage `json:"data,omitempty"`
	Checkpoint string          `json:"checkpoint,omitempty"` // a signed note
	Peaks      []tlog.Hash     `json:"peaks,omitempty"`      // of the tree that the checkpoint signs
}

// Record is the record that a line is which is no checkpoint.
func (l *Line) Record() Record {
	return Record{Seq: l.Seq, Time: l.Time, Kind: l.Kind, Sandbox: l.Sandbox, Data: l.Data}
}

// Text is what a checkpoint of the head signs.
func (h Head) Text() string {
	return fmt.Sprintf("%s\n%d\n%s\n", h.Origin, h.Size, h.Root)
}

// ParseCheckpoint reads the head from a signed note without looking at the
// signature; [Scanner] and verifiers take such heads.
func ParseCheckpoint(signed string) (Head, error) {
	text, _, ok := strings.Cut(signed, "\n\n")
	lines := strings.Split(text, "\n")
	if !ok || len(lines) != 3 {
		return Head{}, errors.New("checkpoint is not a signed note of three lines")
	}
	h := Head{Origin: lines[0]}
	size, err := strconv.ParseInt(lines[1], 10, 64)
	if err != nil || size < 0 || strconv.FormatInt(size, 10) != lines[1] {
		return Head{}, fmt.Errorf("checkpoint has size %q", lines[1])
	}
	h.Size = size
	if h.Root, err = tlog.ParseHash(lines[2]); err != nil || h.Root.String() != lines[2] {
		return Head{}, fmt.Errorf("checkpoint has root %q", lines[2])
	}
	return h, nil
}

// SignedBy reports whether key has signed the note.
func SignedBy(signed string, key note.Verifier) bool {
	_, err := note.Open([]byte(signed), note.VerifierList(key))
	return err == nil
}

// Entry is a record before it has its number.
type Entry struct {
	Kind    Kind
	Sandbox string
	Data    json.RawMessage
}

// Size is about how many bytes the record will have.
func (e *Entry) Size() int { return len(e.Data) + len(e.Sandbox) + len(e.Kind) + 128 }

// maxName is the most that the name of a kind or a sandbox has, in bytes.
const maxName = 128

// IsName reports whether kinds and sandboxes may be named so: by letters,
// digits, '.', '_' and '-', the first a letter or digit, at most 128 of them.
func IsName[S ~string](name S) bool {
	return len(name) <= maxName && word(name) && name[0] >= '0' && name[0] != '_'
}

// Encode checks the parts of a record and encodes its data; nil is none.
func Encode(kind Kind, sandbox string, data any) (Entry, error) {
	if !IsName(kind) {
		return Entry{}, fmt.Errorf("event kind %q: want letters, digits, '.', '_' and '-'", kind)
	}
	if sandbox != "" && !IsName(sandbox) {
		return Entry{}, fmt.Errorf("event sandbox %q: want letters, digits, '.', '_' and '-'", sandbox)
	}
	out := Entry{Kind: kind, Sandbox: sandbox}
	if data == nil {
		return out, nil
	}
	encoded, err := encodeJSON(data)
	if err != nil {
		return Entry{}, fmt.Errorf("encode %s event: %w", kind, err)
	}
	out.Data = encoded
	if len(out.Data) == 0 || out.Data[0] != '{' {
		return Entry{}, fmt.Errorf("encode %s event: data is not an object", kind)
	}
	if out.Size() > MaxLine {
		return Entry{}, fmt.Errorf("encode %s event: %d bytes, at most %d", kind, len(out.Data), MaxLine)
	}
	return out, nil
}

// Sealer turns entries into the bytes of a commit.
type Sealer struct {
	Origin  string
	Signers []note.Signer
	Peaks   bool // a checkpoint carries what is needed to go on from it
}

// Commit is one unit of writing: records and the checkpoint over them.
type Commit struct {
	Bytes      []byte
	Checkpoint string // a signed note
	Head       Head
	Tree       Tree // with the checkpoint's own line
}

// Seal appends the entries to a tree, which stays as it was.
func (s *Sealer) Seal(t *Tree, entries []Entry, now time.Time) (Commit, error) {
	c := Commit{Tree: t.Clone()}
	for i := range entries {
		start := len(c.Bytes)
		c.Bytes = entries[i].appendLine(c.Bytes, c.Tree.Size, now)
		c.Tree.Add(c.Bytes[start:])
		c.Bytes = append(c.Bytes, '\n')
	}
	c.Head = Head{Origin: s.Origin, Size: c.Tree.Size, Root: c.Tree.Root()}
	signed, err := note.Sign(&note.Note{Text: c.Head.Text()}, s.Signers...)
	if err != nil {
		return Commit{}, fmt.Errorf("sign checkpoint: %w", err)
	}
	c.Checkpoint = string(signed)
	l := Line{V: Version, Seq: c.Tree.Size, Checkpoint: c.Checkpoint}
	if s.Peaks {
		l.Peaks = c.Tree.Clone().Peaks
	}
	line, err := encodeJSON(l)
	if err != nil {
		return Commit{}, fmt.Errorf("encode checkpoint: %w", err)
	}
	c.Tree.Add(line)
	c.Bytes = append(append(c.Bytes, line...), '\n')
	return c, nil
}

// appendLine appends what encoding/json would make of the record's [Line],
// which takes several times as long.
func (e *Entry) appendLine(dst []byte, seq int64, now time.Time) []byte {
	dst = strconv.AppendInt(append(dst, `{"v":1,"seq":`...), seq, 10)
	dst = now.AppendFormat(append(dst, `,"time":"`...), time.RFC3339Nano)
	dst = append(append(dst, `","kind":"`...), e.Kind...)
	if e.Sandbox != "" {
		dst = append(append(dst, `","sandbox":"`...), e.Sandbox...)
	}
	dst = append(dst, '"')
	if len(e.Data) > 0 {
		dst = append(append(dst, `,"data":`...), e.Data...)
	}
	return append(dst, '}')
}

// encodeJSON is without a newline, and leaves <, > and & as they are.
func encodeJSON(v any) ([]byte, error) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	err := enc.Encode(v)
	return bytes.TrimSuffix(buf.Bytes(), []byte("\n")), err
}
