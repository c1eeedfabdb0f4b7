package framing

import (
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// requests is one case of the corpus: what a client sends, and why it is
// refused, "" where it passes.
type requests struct{ name, reason, bytes string }

var repeated = regexp.MustCompile(`\{(.)\*(\d+)\}`)

func corpus(t testing.TB, file string) (all []requests) {
	t.Helper()
	text, err := os.ReadFile("testdata/" + file)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSuffix(line, "\n")
		mark, rest, _ := strings.Cut(line, " ")
		switch {
		case mark == "" || mark == "#":
			continue
		case mark == "=":
			all = append(all, requests{name: rest})
			continue
		case mark == "!":
			all[len(all)-1].reason = rest
			continue
		}
		times := 1
		if mark != "|" {
			if times, err = strconv.Atoi(strings.TrimSuffix(mark, "*")); err != nil {
				t.Fatalf("%s: line %q: %v", file, line, err)
			}
		}
		rest = repeated.ReplaceAllStringFunc(rest, func(s string) string {
			m := repeated.FindStringSubmatch(s)
			n, _ := strconv.Atoi(m[2])
			return strings.Repeat(m[1], n)
		})
		sent, err := strconv.Unquote(`"` + rest + `"`)
		if err != nil {
			t.Fatalf("%s: line %q: %v", file, line, err)
		}
		all[len(all)-1].bytes += strings.Repeat(sent, times)
	}
	return all
}

// scanned is what the scanner says of bytes that come in parts of size n.
func scanned(sent string, n int) (passed string, reason string) {
	s := newScanner()
	var b strings.Builder
	for i := 0; i < len(sent); i += n {
		part := []byte(sent[i:min(i+n, len(sent))])
		good, fault := s.scan(part)
		b.Write(part[:good])
		if fault != nil {
			return b.String(), fault.Reason
		}
	}
	return b.String(), ""
}

func TestRefused(t *testing.T) {
	for _, c := range corpus(t, "refused.txt") {
		t.Run(c.name, func(t *testing.T) {
			for _, n := range []int{1, 2, 3, 7, 100, 4096, 1 << 20} {
				passed, reason := scanned(c.bytes, n)
				if reason != c.reason || c.reason == "" {
					t.Errorf("in parts of %d: refused because of %q, want %q", n, reason, c.reason)
				}
				if !strings.HasPrefix(c.bytes, passed) {
					t.Errorf("in parts of %d: what passed is not what came", n)
				}
			}
		})
	}
}

func TestPassed(t *testing.T) {
	for _, c := range corpus(t, "passed.txt") {
		t.Run(c.name, func(t *testing.T) {
			for _, n := range []int{1, 2, 3, 7, 100, 4096} {
				passed, reason := scanned(c.bytes, n)
				if reason != "" || passed != c.bytes {
					t.Errorf("in parts of %d: refused because of %q after %q", n, reason, passed)
				}
			}
		})
	}
}
