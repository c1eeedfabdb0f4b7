package scrub

import (
	"encoding/base64"
	"fmt"
	"html"
	"math/rand/v2"
	"net/url"
	"strings"
	"testing"
)

func compileParts(t testing.TB, value string, public int) *Set {
	t.Helper()
	s, err := CompileParts(map[string]string{"v": value}, map[string]int{"v": public})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// key is a value of n random characters, no two pieces of which are alike.
func key(r *rand.Rand, n int) string {
	const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	b := make([]byte, n)
	for i := range b {
		b[i] = letters[r.IntN(len(letters))]
	}
	return string(b)
}

// common is the length of the longest part of value in text.
func common(value, text string) (n int) {
	for i := range value {
		for i+n < len(value) && strings.Contains(text, value[i:i+n+1]) {
			n++
		}
	}
	return n
}

// lengths are those on either side of where [Loose] changes, and longer ones.
var lengths = []int{8, 9, 16, 17, 18, 23, 24, 26, 41, 57}

// Whatever part of a value is there, wherever it is cut, no more than Loose of
// it stays.
func TestParts(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	spellings := map[string]func(string) string{
		"plain": func(s string) string { return s },
		"query": url.QueryEscape,
		"json":  func(s string) string { return escapeEach(s, `\u%04x`) },
		"html":  func(s string) string { return html.EscapeString(escapeEach(s, "%%%02x")) },
	}
	unspell := func(s string) string {
		s, _ = url.QueryUnescape(s)
		for i := range 256 {
			s = strings.ReplaceAll(s, fmt.Sprintf(`\u%04x`, i), string(rune(i)))
		}
		return s
	}
	for _, n := range lengths {
		value := key(r, n)
		s := compileParts(t, value, 0)
		for from := range n {
			for to := from + 1; to <= n; to++ {
				for name, spell := range spellings {
					if name != "plain" && (from+to)%5 > 0 {
						continue
					}
					in := "<" + spell(value[from:to]) + ">"
					clean, found := s.Text(in)
					left := common(value, unspell(clean))
					if len(clean) != len(in) || left > Loose(n) || to-from > Loose(n) && (len(found) != 1 || left > 4) {
						t.Fatalf("%s: of %q, in %q, %d characters stay in %q", name, value, in, left, clean)
					}
				}
			}
		}
	}
}

// In base64, as of basic credentials, as many characters stay, and of those
// beside them some bits.
func TestPartsInBase64(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for _, n := range lengths[:8] {
		value := key(r, n)
		s := compileParts(t, value, 0)
		for before := range 5 {
			whole := base64.StdEncoding.EncodeToString([]byte(strings.Repeat("u", before) + ":" + value))
			for from := range whole {
				for to := from + 1; to <= len(whole); to += 1 + r.IntN(3) {
					clean, _ := s.Text(whole[from:to])
					if most := (8*(Loose(n)+2) + 5) / 6; common(whole[8*(before+1)/6:], clean) > most {
						t.Fatalf("of %q, in %q, more than %d characters stay in %q", value, whole[from:to], most, clean)
					}
				}
			}
		}
	}
}

// An upstream that sends a part byte by byte gets no more through.
func TestPartsDrip(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	for _, n := range lengths {
		value := key(r, n)
		s := compileParts(t, value, 0)
		for from := range n {
			st := s.Stream()
			var got []byte
			for _, b := range []byte(value[from:]) {
				got = st.Release(st.Write(got, []byte{b}))
			}
			got = st.Flush(got)
			if left := len(got) - strings.Count(string(got), "*"); len(got) != n-from || left > Loose(n) {
				t.Errorf("of %q, in %q, %d characters stay in %q", value, value[from:], left, got)
			}
		}
	}
}

func TestPublicPartsAreLeft(t *testing.T) {
	const value = "sk-ant-api03-qW3eR5tY7uI9oP1a"
	s := compileParts(t, value, len("sk-ant-api03-"))
	for _, in := range []string{"sk-ant-api03-", "keys begin with sk-ant-api03-...", "sk-ant-api03-qW3eR5t", "I9oP1a"} {
		if got, found := s.Text(in); got != in || found != nil {
			t.Errorf("%q became %q", in, got)
		}
	}
	if got, _ := s.Text("sk-ant-api03-qW3eR5tY"); got != "sk-ant-api03-********" {
		t.Errorf("%q", got)
	}
	st := s.Stream()
	if got := string(st.Flush(st.Write(nil, []byte(value+" "+value+value)))); strings.Trim(got, "* ") != "" || st.Found() != 3 {
		t.Errorf("%q, %d found", got, st.Found())
	}
}

// However it is cut, the same comes out.
func FuzzParts(f *testing.F) {
	f.Add([]byte("<qW3eR5tY7uI9oP1aS2dF4gH> qW3eR5tY7uI9oP1 tY7uI9oP1aS2d"), uint64(1))
	f.Add([]byte("cVczZVI1dFk3dUk5b1AxYVMyZEY0Z0g= cVczZVI1dFk3dUk5b1"), uint64(2))
	s := compileParts(f, "qW3eR5tY7uI9oP1aS2dF4gH", 0)
	f.Fuzz(func(t *testing.T, in []byte, seed uint64) {
		r := rand.New(rand.NewPCG(seed, 0))
		whole, pieces := s.Stream(), s.Stream()
		want := whole.Flush(whole.Write(nil, in))
		var got []byte
		for rest := in; len(rest) > 0; {
			n := min(1+r.IntN(9), len(rest))
			if piece := append([]byte(nil), rest[:n]...); pieces.Pending() == 0 && r.IntN(2) == 0 {
				got = append(got, pieces.Filter(piece)...)
			} else {
				got = pieces.Write(got, piece)
			}
			rest = rest[n:]
		}
		if got = pieces.Flush(got); string(got) != string(want) || whole.Found() != pieces.Found() || len(want) != len(in) {
			t.Errorf("%q became %q in whole and %q in pieces; found %d and %d", in, want, got, whole.Found(), pieces.Found())
		}
	})
}
