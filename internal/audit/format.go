package audit

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
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
	maxBatch  = 1 << 20 // records that are gathered into one commit, beside the last
)

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

// line is one line of a file: a record, or a checkpoint over all before it.
// Checkpoints are leaves of the tree as records are.
type line struct {
	V          int             `json:"v"`
	Seq        int64           `json:"seq"`
	Time       time.Time       `json:"time,omitzero"`
	Kind       Kind            `json:"kind,omitempty"`
	Sandbox    string          `json:"sandbox,omitempty"`
	Data       json.RawMessage `json:"data,omitempty"`
	Checkpoint string          `json:"checkpoint,omitempty"` // a signed note
	Peaks      []tlog.Hash     `json:"peaks,omitempty"`      // of the tree that the checkpoint signs
}

func (l *line) record() Record {
	return Record{Seq: l.Seq, Time: l.Time, Kind: l.Kind, Sandbox: l.Sandbox, Data: l.Data}
}

// parseLine decodes one line, without its newline, strictly.
func parseLine(raw []byte) (line, error) {
	var l line
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&l); err != nil {
		return line{}, fmt.Errorf("decode line: %w", err)
	}
	switch {
	case dec.InputOffset() != int64(len(raw)):
		return line{}, errors.New("decode line: more than one value")
	case l.V != Version:
		return line{}, fmt.Errorf("line has version %d, this creel knows %d", l.V, Version)
	case l.Checkpoint == "" && (l.Kind == "" || l.Time.IsZero() || l.Peaks != nil):
		return line{}, errors.New("line is neither a record nor a checkpoint")
	case l.Checkpoint != "" && (l.Kind != "" || !l.Time.IsZero() || l.Sandbox != "" || l.Data != nil):
		return line{}, errors.New("line is both a record and a checkpoint")
	case l.Data != nil && l.Data[0] != '{':
		return line{}, errors.New("record has data that is not an object")
	}
	return l, nil
}

func (h Head) text() string {
	return fmt.Sprintf("%s\n%d\n%s\n", h.Origin, h.Size, h.Root)
}

// ParseCheckpoint reads the head from a signed note without looking at the
// signature; [Options.Expect] takes such heads.
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
	if h.Root, err = tlog.ParseHash(lines[2]); err != nil {
		return Head{}, fmt.Errorf("checkpoint has root %q: %w", lines[2], err)
	}
	return h, nil
}

// signedBy reports whether key has signed the note.
func signedBy(signed string, key note.Verifier) bool {
	_, err := note.Open([]byte(signed), note.VerifierList(key))
	return err == nil
}

// entry is an event that is encoded and waits to be written.
type entry struct {
	kind    Kind
	sandbox string
	data    json.RawMessage
}

func (e *entry) size() int { return len(e.data) + len(e.sandbox) + len(e.kind) + 128 }

var namePattern = regexp.MustCompile(`^[0-9A-Za-z][0-9A-Za-z._-]{0,127}$`)

// encodeEvent checks an event and encodes its data.
func encodeEvent(e Event) (entry, error) {
	if !namePattern.MatchString(string(e.Kind)) {
		return entry{}, fmt.Errorf("event kind %q: want letters, digits, '.', '_' and '-'", e.Kind)
	}
	if e.Sandbox != "" && !namePattern.MatchString(e.Sandbox) {
		return entry{}, fmt.Errorf("event sandbox %q: want letters, digits, '.', '_' and '-'", e.Sandbox)
	}
	out := entry{kind: e.Kind, sandbox: e.Sandbox}
	if e.Data == nil {
		return out, nil
	}
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(e.Data); err != nil {
		return entry{}, fmt.Errorf("encode %s event: %w", e.Kind, err)
	}
	out.data = bytes.TrimSuffix(buf.Bytes(), []byte("\n"))
	if len(out.data) == 0 || out.data[0] != '{' {
		return entry{}, fmt.Errorf("encode %s event: data is not an object", e.Kind)
	}
	if out.size() > MaxLine {
		return entry{}, fmt.Errorf("encode %s event: %d bytes, at most %d", e.Kind, len(out.data), MaxLine)
	}
	return out, nil
}

// sealer turns entries into the bytes of a commit.
type sealer struct {
	origin  string
	signers []note.Signer
	peaks   bool // a checkpoint carries what is needed to go on from it
}

// commit is one unit of writing: records and the checkpoint over them.
type commit struct {
	bytes      []byte
	checkpoint string
	head       Head
	tree       tree // with the checkpoint's own line
}

func (s *sealer) seal(t *tree, entries []entry, now time.Time) (commit, error) {
	c := commit{tree: t.clone()}
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	put := func(l line) error {
		l.V, l.Seq = Version, c.tree.size
		start := buf.Len()
		if err := enc.Encode(l); err != nil {
			return fmt.Errorf("encode line: %w", err)
		}
		c.tree.add(buf.Bytes()[start : buf.Len()-1])
		return nil
	}
	for _, e := range entries {
		if err := put(line{Time: now, Kind: e.kind, Sandbox: e.sandbox, Data: e.data}); err != nil {
			return commit{}, err
		}
	}
	c.head = Head{Origin: s.origin, Size: c.tree.size, Root: c.tree.root()}
	signed, err := note.Sign(&note.Note{Text: c.head.text()}, s.signers...)
	if err != nil {
		return commit{}, fmt.Errorf("sign checkpoint: %w", err)
	}
	c.checkpoint = string(signed)
	l := line{Checkpoint: c.checkpoint}
	if s.peaks {
		l.Peaks = c.tree.clone().peaks
	}
	if err := put(l); err != nil {
		return commit{}, err
	}
	c.bytes = buf.Bytes()
	return c, nil
}
