// Package printable makes text safe to show. A guest, an image, an upstream or
// a keeper that was taken over has a say in much of what Creel prints: names,
// paths, errors, labels. [Text] and [Line] write what could steer a terminal,
// or turn the reading direction around, as visible escapes; [Writer] does so for
// all that is written through it.
//
// The package must not know where a text comes from, and must not touch a
// task's own output, which is the task's and stays as it is.
package printable

import (
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Text keeps line breaks and tabs.
func Text(s string) string { return clean(s, true) }

// Line is one line, and one cell of a table: line breaks and tabs are escaped
// too.
func Line(s string) string { return clean(s, false) }

// Safe tells whether Line would leave s as it is.
func Safe(s string) bool {
	for i, r := range s {
		if unsafe(r) || invalid(r, s[i:]) {
			return false
		}
	}
	return true
}

func clean(s string, lines bool) string {
	if Safe(s) {
		return s
	}
	var b strings.Builder
	for i, r := range s {
		switch {
		case lines && (r == '\n' || r == '\t'):
			b.WriteRune(r)
		case invalid(r, s[i:]):
			fmt.Fprintf(&b, `\x%02x`, s[i])
		case unsafe(r):
			fmt.Fprintf(&b, `\u%04x`, r) // a valid escape in JSON as well
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}

// unsafe are the control characters C0, DEL and C1, the separators that some
// terminals take for line breaks, and what changes the reading direction.
func unsafe(r rune) bool {
	return unicode.IsControl(r) || r == '\u2028' || r == '\u2029' || unicode.Is(unicode.Bidi_Control, r)
}

// invalid tells whether r stands for a byte that is not UTF-8. A terminal may
// read such a byte as a C1 control.
func invalid(r rune, rest string) bool {
	if r != utf8.RuneError {
		return false
	}
	_, size := utf8.DecodeRuneInString(rest)
	return size == 1
}

// Writer is [Text] of all that is written to it. The bytes of one character
// may come in several writes. It is for one goroutine at a time.
type Writer struct {
	to      io.Writer
	pending []byte // the beginning of a character
}

// NewWriter cleans what goes to w.
func NewWriter(w io.Writer) *Writer { return &Writer{to: w} }

// Write reports all of p as written, or an error.
func (w *Writer) Write(p []byte) (int, error) {
	data := append(w.pending, p...)
	whole := len(data)
	for i := max(0, len(data)-utf8.UTFMax+1); i < len(data); i++ {
		if utf8.RuneStart(data[i]) && !utf8.FullRune(data[i:]) {
			whole = i
			break
		}
	}
	w.pending = append([]byte(nil), data[whole:]...)
	if whole == 0 {
		return len(p), nil
	}
	if _, err := io.WriteString(w.to, Text(string(data[:whole]))); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Flush writes the beginning of a character that never came to its end.
func (w *Writer) Flush() error {
	rest := Text(string(w.pending))
	w.pending = nil
	_, err := io.WriteString(w.to, rest)
	return err
}
