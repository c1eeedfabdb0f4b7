package chain

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"unicode/utf8"
)

// Parse decodes one line, without its newline, strictly.
func Parse(raw []byte) (Line, error) {
	if l, ok := parsePlain(raw); ok {
		return l, nil
	}
	return parseAny(raw)
}

// parseAny is Parse for whatever is a line.
func parseAny(raw []byte) (Line, error) {
	var l Line
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&l); err != nil {
		return Line{}, fmt.Errorf("decode line: %w", err)
	}
	switch {
	case dec.InputOffset() != int64(len(raw)):
		return Line{}, errors.New("decode line: more than one value")
	case l.V != Version:
		return Line{}, fmt.Errorf("line has version %d, this creel knows %d", l.V, Version)
	case l.Checkpoint == "" && (l.Kind == "" || l.Time.IsZero() || l.Peaks != nil):
		return Line{}, errors.New("line is neither a record nor a checkpoint")
	case l.Checkpoint != "" && (l.Kind != "" || !l.Time.IsZero() || l.Sandbox != "" || l.Data != nil):
		return Line{}, errors.New("line is both a record and a checkpoint")
	case l.Data != nil && l.Data[0] != '{':
		return Line{}, errors.New("record has data that is not an object")
	}
	return l, nil
}

// parsePlain is Parse for lines in the very form in which [Sealer] writes them,
// which costs a fifth. It leaves all others, the wrong ones among them, to
// parseAny, and what it takes it takes as that would.
func parsePlain(raw []byte) (l Line, ok bool) {
	l.V = Version
	p := plain(raw)
	if !p.skip(`{"v":1,"seq":`) {
		return l, false
	}
	seq := p.until(',')
	var err error
	if l.Seq, err = strconv.ParseInt(string(seq), 10, 64); err != nil || len(seq) > 1 && seq[0] == '0' || !digits(seq) {
		return l, false
	}
	if p.skip(`,"checkpoint":"`) {
		l.Checkpoint, ok = p.checkpoint()
		return l, ok
	}
	if !p.skip(`,"time":"`) || l.Time.UnmarshalText(p.until('"')) != nil || l.Time.IsZero() || !p.skip(`","kind":"`) {
		return l, false
	}
	kind := p.until('"')
	l.Kind = Kind(kind)
	if !p.skip(`"`) || !word(kind) {
		return l, false
	}
	if p.skip(`,"sandbox":"`) {
		sandbox := p.until('"')
		l.Sandbox = string(sandbox)
		if !p.skip(`"`) || !word(sandbox) {
			return l, false
		}
	}
	if !p.skip(`,"data":`) {
		return l, string(p) == "}"
	}
	n := len(p) - 1
	if n < 2 || p[0] != '{' || p[n-1] != '}' || p[n] != '}' || !json.Valid(p[:n]) {
		return l, false
	}
	l.Data = bytes.Clone(p[:n])
	return l, true
}

// plain is what is left to read of a line.
type plain []byte

// skip passes over a part that has to come here.
func (p *plain) skip(part string) bool {
	if len(*p) < len(part) || string((*p)[:len(part)]) != part {
		return false
	}
	*p = (*p)[len(part):]
	return true
}

// until returns what comes before a byte, and stands at that byte.
func (p *plain) until(b byte) []byte {
	n := bytes.IndexByte(*p, b)
	if n < 0 {
		return nil
	}
	part := (*p)[:n]
	*p = (*p)[n:]
	return part
}

// checkpoint reads a signed note to the end of the line. Of what JSON escapes,
// ends of lines are all that a note has.
func (p *plain) checkpoint() (string, bool) {
	n := len(*p) - len(`"}`)
	if n < 1 || string((*p)[n:]) != `"}` || !utf8.Valid((*p)[:n]) {
		return "", false
	}
	out := make([]byte, 0, n)
	for i := 0; i < n; i++ {
		switch b := (*p)[i]; {
		case b == '\\' && i+1 < n && (*p)[i+1] == 'n':
			out = append(out, '\n')
			i++
		case b == '\\' || b == '"' || b < ' ':
			return "", false
		default:
			out = append(out, b)
		}
	}
	return string(out), true
}

// word reports whether s is of characters that JSON does not escape and that
// names are made of.
func word[S ~string | ~[]byte](s S) bool {
	for i := range len(s) {
		b := s[i]
		if (b < '0' || b > '9') && (b < 'A' || b > 'Z') && (b < 'a' || b > 'z') && b != '.' && b != '_' && b != '-' {
			return false
		}
	}
	return len(s) > 0
}

func digits(s []byte) bool {
	for _, b := range s {
		if b < '0' || b > '9' {
			return false
		}
	}
	return len(s) > 0
}
