package printable

import (
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestTextAndLine(t *testing.T) {
	for in, want := range map[string]struct{ text, line string }{
		"plain":              {"plain", "plain"},
		"größe 日本 👩‍💻":       {"größe 日本 👩‍💻", "größe 日本 👩‍💻"},
		"a\x1b[2Jb":          {`a\u001b[2Jb`, `a\u001b[2Jb`},
		"a\nb\tc":            {"a\nb\tc", `a\u000ab\u0009c`},
		"a\rb":               {`a\u000db`, `a\u000db`},
		"\x7f":               {`\u007f`, `\u007f`},
		"\u009b31m":          {`\u009b31m`, `\u009b31m`},
		"raw \x9b31m":        {`raw \x9b31m`, `raw \x9b31m`},
		"exe\u202etxt.":      {`exe\u202etxt.`, `exe\u202etxt.`},
		"a\u2066b\u2069c":    {`a\u2066b\u2069c`, `a\u2066b\u2069c`},
		"one\u2028two":       {`one\u2028two`, `one\u2028two`},
		"kept \ufffd":        {"kept \ufffd", "kept \ufffd"},
		"\x1b]0;title\a":     {`\u001b]0;title\u0007`, `\u001b]0;title\u0007`},
		"\x00":               {`\u0000`, `\u0000`},
		"cut off \xe2\x82":   {`cut off \xe2\x82`, `cut off \xe2\x82`},
		"\u061c\u200e\u200f": {`\u061c\u200e\u200f`, `\u061c\u200e\u200f`},
	} {
		if got := Text(in); got != want.text {
			t.Errorf("Text(%q) is %q, want %q", in, got, want.text)
		}
		if got := Line(in); got != want.line {
			t.Errorf("Line(%q) is %q, want %q", in, got, want.line)
		}
		if safe := Safe(in); safe != (want.line == in) {
			t.Errorf("Safe(%q) is %v", in, safe)
		}
	}
}

// What encoding/json leaves in a string stays valid, and means the same.
func TestTextKeepsJSON(t *testing.T) {
	in := "a\x7fb\u009bc\u202ed\u2066e\"\\\n"
	b, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	var out string
	if err := json.Unmarshal([]byte(Text(string(b))), &out); err != nil || out != in {
		t.Errorf("%s came back as %q, %v", Text(string(b)), out, err)
	}
	if !Safe(Text(string(b))) {
		t.Errorf("%q is not safe", Text(string(b)))
	}
}

func TestWriterTakesCharactersInPieces(t *testing.T) {
	in := "größe \x1b[31m日本 \u009b \u202e\x9b\n\te\xcc\x81nd \xe2\x82"
	var b strings.Builder
	w := NewWriter(&b)
	for i := range len(in) {
		if n, err := w.Write([]byte{in[i]}); n != 1 || err != nil {
			t.Fatalf("byte %d: %d, %v", i, n, err)
		}
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	if b.String() != Text(in) {
		t.Errorf("got %q, want %q", b.String(), Text(in))
	}
}

func TestWriterReportsErrors(t *testing.T) {
	if _, err := NewWriter(failing{}).Write([]byte("x")); err != errFull {
		t.Errorf("got %v", err)
	}
}

type failing struct{}

const errFull = fullError("full")

type fullError string

func (e fullError) Error() string { return string(e) }

func (failing) Write([]byte) (int, error) { return 0, errFull }

func FuzzText(f *testing.F) {
	f.Add("a\x1b[2J\u202e\x9b\n")
	f.Fuzz(func(t *testing.T, s string) {
		line := Line(s)
		if !Safe(line) || !utf8.ValidString(line) {
			t.Fatalf("Line(%q) is %q", s, line)
		}
		var b strings.Builder
		w := NewWriter(&b)
		half := len(s) / 2
		for _, part := range []string{s[:half], s[half:]} {
			if _, err := w.Write([]byte(part)); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Flush(); err != nil || b.String() != Text(s) {
			t.Fatalf("written in two parts %q is %q, want %q", s, b.String(), Text(s))
		}
	})
}
