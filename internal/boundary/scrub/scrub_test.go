package scrub

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"html"
	"math/rand/v2"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func compile(t testing.TB, values ...string) *Set {
	t.Helper()
	named := make(map[string]string)
	for i, v := range values {
		named[fmt.Sprintf("v%d", i)] = v
	}
	s, err := Compile(named)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func stars(n int) string { return strings.Repeat("*", n) }

func TestText(t *testing.T) {
	const value = `sk-A/b+ c"d\e&f` + "\t?ü€😀"
	s := compile(t, value)
	quoted, _ := json.Marshal(value)
	escaped := strings.Trim(string(quoted), `"`)
	tests := []struct{ name, in string }{
		{"plain", value},
		{"query", url.QueryEscape(value)},
		{"path", url.PathEscape(value)},
		{"json", escaped},
		{"json with slashes", strings.ReplaceAll(escaped, "/", `\/`)},
		{"json in ASCII", `sk-A/b+ c\"d\\e\u0026f\t?\u00fc\u20AC\ud83D\uDe00`},
		{"every byte as json", escapeEach(value, `\u%04x`)},
		{"every byte percent, lower", escapeEach(value, "%%%02x")},
		{"every byte percent, upper", escapeEach(value, "%%%02X")},
		{"html", html.EscapeString(value)},
		{"html decimal", "&#115;&#107;-A/b+ c&#034;d\\e&#038;f\t?&#252;&#8364;&#128512;"},
		{"html hex", "&#x73;&#x6B;-A/b&#X2b; c&quot;d\\e&amp;f\t?&#xfc;&#x20AC;&#x1F600;"},
		{"html padded", "&#0000000115;&#X0000006b;&#45A&sol;b&plus;&#32;c&QUOT;d&bsol;e&ampf&Tab;&quest;&#00252;&#x20ac&#0128512;"},
		{"mixed", `%73k\u002DA\/b%2B+c&quot;d\\e&#38;f%09?%C3%bc` + "\xe2%82\xac" + `\ud83d\ude00`},
		{"hex", hex.EncodeToString([]byte(value))},
		{"HEX", strings.ToUpper(hex.EncodeToString([]byte(value)))},
		{"base64", strings.TrimRight(base64.StdEncoding.EncodeToString([]byte(value)), "=")},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, found := s.Text("<" + test.in + ">")
			got = strings.TrimSuffix(strings.TrimPrefix(got, "<"), ">")
			if test.name == "base64" {
				test.in, got = test.in[:len(test.in)-1], got[:len(got)-1] // shared with what might follow
			}
			if diff := cmp.Diff(stars(len(test.in)), got); diff != "" {
				t.Error(diff)
			}
			if diff := cmp.Diff([]string{"v0"}, found); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func escapeEach(value, format string) string {
	var b strings.Builder
	for i := range len(value) {
		fmt.Fprintf(&b, format, value[i])
	}
	return b.String()
}

func TestBase64(t *testing.T) {
	value := "\xfb\xef\xbe" + `secret?>>~\xff` + "\xff\xff"
	s := compile(t, value)
	for before := range 7 {
		for after := range 4 {
			plain := strings.Repeat("x", before) + value + strings.Repeat("y", after)
			for name, enc := range map[string]*base64.Encoding{"std": base64.StdEncoding, "url": base64.RawURLEncoding} {
				in := enc.EncodeToString([]byte(plain))
				got, _ := s.Text(in)
				// A character stays if any of its bits is not of the value.
				want := []byte(in)
				for i := range want {
					if 6*i >= 8*before && 6*i+6 <= 8*(before+len(value)) {
						want[i] = '*'
					}
				}
				if got != string(want) {
					t.Errorf("%s, %d before, %d after:\n%s\n%s\n%s", name, before, after, in, got, want)
				}
			}
		}
	}
	whole := base64.StdEncoding.EncodeToString([]byte(strings.Repeat("z", 50) + value + "tail"))
	for _, br := range []string{"\n", "\r\n", `\n`, `\r\n`} {
		for width := 1; width < len(whole); width++ {
			var lines []string
			for rest := whole; rest != ""; {
				n := min(width, len(rest))
				lines, rest = append(lines, rest[:n]), rest[n:]
			}
			if _, found := s.Text(strings.Join(lines, br)); len(found) != 1 {
				t.Errorf("not found in lines of %d ended by %q", width, br)
			}
		}
	}
	for _, old := range []string{"+", "/"} {
		if !strings.Contains(whole, old) {
			t.Fatalf("the test needs a %s in %s", old, whole)
		}
	}
	if _, found := s.Text(url.QueryEscape(whole)); len(found) != 1 {
		t.Error("not found percent-encoded")
	}
	if _, found := s.Text(strings.ReplaceAll(whole, "/", `\/`)); len(found) != 1 {
		t.Error("not found with escaped slashes")
	}
}

func TestUTF16(t *testing.T) {
	s := compile(t, "password1")
	for _, in := range []string{"p\x00a\x00s\x00s\x00w\x00o\x00r\x00d\x001\x00", "\x00p\x00a\x00s\x00s\x00w\x00o\x00r\x00d\x001"} {
		got, found := s.Text(in)
		if strings.Trim(got, "\x00") != stars(17) || len(found) != 1 {
			t.Errorf("%q: %q %v", in, got, found)
		}
	}
}

func TestUntouched(t *testing.T) {
	s := compile(t, "correct horse battery", "Tr0ub4dor&3")
	for _, in := range []string{
		"", "correct horse batter", "orrect horse battery", "correct horse batterz", "correct  horse battery", "Correct Horse Battery",
		"correct%2horse battery", `correct\u0020horse\u00battery`, "&#99;orrect horse batter&#12;", "Tr0ub4dor&am;3", "Tr0ub4dor%25263",
		hex.EncodeToString([]byte("correct horse batter")) + "7",
		base64.StdEncoding.EncodeToString([]byte("correct horse batterz")),
		"Y29ycmVjdC\n\nBob3JzZSBiYXR0ZXJ5", strings.Repeat("correct horse ", 100),
	} {
		if got, found := s.Text(in); got != in || found != nil {
			t.Errorf("%q became %q: %v", in, got, found)
		}
	}
}

func TestOverlaps(t *testing.T) {
	tests := []struct {
		name, in, want string
		values         []string
		found          []string
	}{
		{"prefix", "x abcdefgh x abcdefghijkl x", "x ******** x ************ x", []string{"abcdefgh", "abcdefghijkl"}, []string{"v0", "v1"}},
		{"prefix of what does not come", "abcdefghijkx", "********ijkx", []string{"abcdefgh", "abcdefghijkl"}, []string{"v0"}},
		{"inside", "01abcdefghij2 01abcdefghij", "************2 ************", []string{"abcdefgh", "01abcdefghij"}, []string{"v0", "v1"}},
		{"inside of what does not come", "01abcdefghix", "01********ix", []string{"abcdefgh", "01abcdefghij"}, []string{"v0"}},
		{"one into the other", "-abcdefgh01234567-", "-" + stars(16) + "-", []string{"abcdefgh01", "gh01234567"}, []string{"v0", "v1"}},
		{"into itself", "-abcabcabcabcab-", "-" + stars(13) + "b-", []string{"abcabcabca"}, []string{"v0"}},
		{"into itself, after a false start", "abcabcabcabcabd", stars(14) + "d", []string{"abcabcabcab"}, []string{"v0"}},
		{"one letter", "-aaaaaaaaaaaa-", "-************-", []string{"aaaaaaaa"}, []string{"v0"}},
		{"two of one value", "-abcdefgh-", "-********-", []string{"abcdefgh", "abcdefgh\n"}, []string{"v0", "v1"}},
		{"looks escaped", "x%41%41%41x %2541%2541%2541 AAA", "x*********x *************** AAA", []string{"%41%41%41"}, []string{"v0"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, found := compile(t, test.values...).Text(test.in)
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Error(diff)
			}
			if diff := cmp.Diff(test.found, found); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestCompile(t *testing.T) {
	for _, values := range []map[string]string{nil, {}} {
		s, err := Compile(values)
		if err != nil || !s.Empty() {
			t.Errorf("%v, %v", s, err)
		}
		st := s.Stream()
		if got := string(st.Flush(st.Release(st.Write([]byte("a"), []byte("bcdefghijk"))))); got != "abcdefghijk" {
			t.Error(got)
		}
	}
	_, err := Compile(map[string]string{"short": "1234567\r\n", "long": strings.Repeat("x", MaxValue+1), "right": "12345678"})
	if err == nil || !strings.Contains(err.Error(), `"short"`) || !strings.Contains(err.Error(), `"long"`) || strings.Contains(err.Error(), "123") {
		t.Error(err)
	}
	many := make(map[string]string)
	for i := range MaxTotal/MaxValue + 1 {
		many[fmt.Sprint(i)] = strings.Repeat("x", MaxValue)
	}
	if _, err := Compile(many); err == nil {
		t.Error("no bound on all values")
	}
}

// spelled is a random spelling of a value, of the package comment's list.
func spelled(r *rand.Rand, value string) string {
	switch r.IntN(8) {
	case 0:
		return value
	case 1:
		return mixCase(r, hex.EncodeToString([]byte(value)))
	case 2, 3:
		plain := strings.Repeat("\x5a", r.IntN(3)) + value + strings.Repeat("\xa5", r.IntN(3))
		enc := []*base64.Encoding{base64.StdEncoding, base64.RawStdEncoding, base64.URLEncoding, base64.RawURLEncoding}[r.IntN(4)]
		var b strings.Builder
		for i, c := range enc.EncodeToString([]byte(plain)) {
			if i > 0 && r.IntN(10) == 0 && c != '=' {
				b.WriteString([]string{"\n", "\r\n", `\n`, `\r\n`}[r.IntN(4)])
			}
			b.WriteRune(c)
		}
		return b.String()
	}
	var b strings.Builder
	for i := range len(value) {
		c := value[i]
		switch r.IntN(7) {
		case 0:
			b.WriteString("%" + mixCase(r, fmt.Sprintf("%02x", c)))
		case 1:
			b.WriteString(`\u00` + mixCase(r, fmt.Sprintf("%02x", c)))
		case 2:
			if short := map[byte]string{'"': `\"`, '\\': `\\`, '/': `\/`, '\n': `\n`, '\t': `\t`, ' ': "+"}[c]; short != "" {
				b.WriteString(short)
				continue
			}
			fallthrough
		case 3:
			if 0 < c && c < utf8.RuneSelf {
				if names := references()[string(c)]; len(names) > 0 && r.IntN(2) == 0 {
					b.WriteString("&" + names[r.IntN(len(names))])
					continue
				}
				zeros, end := strings.Repeat("0", r.IntN(9)), []string{";", ";", ""}[r.IntN(3)]
				fmt.Fprintf(&b, []string{"&#%s%d%s", "&#x%s%x%s", "&#X%s%X%s"}[r.IntN(3)], zeros, c, end)
				continue
			}
			fallthrough
		default:
			b.WriteByte(c)
		}
	}
	return b.String()
}

func mixCase(r *rand.Rand, s string) string {
	b := []byte(s)
	for i := range b {
		if r.IntN(2) == 0 {
			b[i] = bytes.ToUpper(b[i : i+1])[0]
		}
	}
	return string(b)
}

// expressions are the package comment's list again, as regular expressions over
// Latin-1, by other means than the package's own.
func expressions(value string) []*regexp.Regexp {
	var text, digits, wide strings.Builder
	for i := range len(value) {
		c := value[i]
		lit := fmt.Sprintf(`\x{%02x}`, c)
		short := map[byte]string{'"': `|\\"`, '\\': `|\\\\`, '/': `|\\/`, '\b': `|\\b`, '\f': `|\\f`, '\n': `|\\n`, '\r': `|\\r`,
			'\t': `|\\t`, ' ': `|\+`}[c]
		if c > 0 && c < utf8.RuneSelf {
			short += fmt.Sprintf(`|&#0{0,8}%d;?|&#[xX]0{0,8}(?i:%x);?`, c, c)
		}
		if names := references()[string(c)]; len(names) > 0 {
			short += "|&(?:" + strings.Join(names, "|") + ")"
		}
		fmt.Fprintf(&text, `(?:%s|%%(?i:%02x)|\\u00(?i:%02x)%s)`, lit, c, c, short)
		fmt.Fprintf(&digits, "(?i:%02x)", c)
		if i > 0 {
			wide.WriteString(`\x00`)
		}
		wide.WriteString(lit)
	}
	all := []string{text.String(), digits.String(), wide.String()}
	for before := range 3 {
		enc := base64.RawStdEncoding.EncodeToString([]byte(strings.Repeat("\x00", before) + value))
		enc = enc[[]int{0, 2, 3}[before] : 8*(before+len(value))/6]
		var b []string
		for _, c := range enc {
			switch c {
			case '+':
				b = append(b, `(?:[-+]|%2[bB]|\\u002[bB])`)
			case '/':
				b = append(b, `(?:[_/]|%2[fF]|\\u002[fF]|\\/)`)
			default:
				b = append(b, string(c))
			}
		}
		all = append(all, strings.Join(b, `(?:\r?\n|(?:\\r)?\\n)?`))
	}
	var out []*regexp.Regexp
	for _, s := range all {
		out = append(out, regexp.MustCompile("(?s)"+s))
	}
	return out
}

// references are HTML's names for characters in ASCII, as package html knows
// them.
var references = sync.OnceValue(func() map[string][]string {
	all := map[string][]string{}
	for _, name := range strings.Fields(`
		Tab NewLine excl quot QUOT num dollar percnt amp AMP apos lpar rpar ast midast plus comma period sol colon semi lt LT equals gt GT
		quest commat lsqb lbrack bsol rsqb rbrack Hat lowbar UnderBar grave DiacriticalGrave lcub lbrace verbar vert VerticalLine rcub rbrace`) {
		for _, end := range []string{"", ";"} {
			if c := html.UnescapeString("&" + name + end); len(c) == 1 {
				all[c] = append(all[c], name+end)
			}
		}
	}
	return all
})

func latin1(s string) string {
	r := make([]rune, len(s))
	for i := range len(s) {
		r[i] = rune(s[i])
	}
	return string(r)
}

// check scrubs in whole and in random pieces and holds the outcome against the
// regular expressions.
func check(t *testing.T, r *rand.Rand, values []string, in string) {
	t.Helper()
	s := compile(t, values...)
	st := s.Stream()
	whole := st.Flush(st.Write(nil, []byte(in)))
	if len(whole) != len(in) {
		t.Fatalf("%d bytes became %d", len(in), len(whole))
	}
	for i := range whole {
		if whole[i] != in[i] && whole[i] != '*' {
			t.Fatalf("%q became %q", in, whole)
		}
	}
	found := false
	for _, value := range values {
		for _, e := range expressions(value) {
			found = found || e.MatchString(latin1(in))
			if at := e.FindStringIndex(latin1(string(whole))); at != nil {
				t.Fatalf("%q: %q has %q", in, whole, value)
			}
		}
	}
	if found != (st.Found() > 0) || found != (string(whole) != in) {
		t.Fatalf("found %d in %q, want any: %v", st.Found(), in, found)
	}

	if text, names := s.Text(in); text != string(whole) || !cmp.Equal(names, st.Names(), cmpopts.EquateEmpty()) {
		t.Fatalf("%q as a text became %q with %q, as a stream %q with %q", in, text, names, whole, st.Names())
	}

	pieces, max := s.Stream(), 1+r.IntN(40)
	var got []byte
	for rest := in; rest != ""; {
		n := min(r.IntN(max+1), len(rest))
		if piece := []byte(rest[:n]); pieces.Pending() == 0 && r.IntN(2) == 0 {
			got = append(got, pieces.Filter(piece)...)
		} else {
			got = pieces.Write(got, piece)
		}
		rest = rest[n:]
		if len(got)+pieces.Pending()+len(rest) != len(in) {
			t.Fatal("bytes were lost")
		}
	}
	if got = pieces.Flush(got); !bytes.Equal(got, whole) || pieces.Found() != st.Found() || !cmp.Equal(pieces.Names(), st.Names()) {
		t.Fatalf("%q in pieces became %q, %d found, and in whole %q, %d found", in, got, pieces.Found(), whole, st.Found())
	}
}

// somewhere is text with random spellings of the values and parts of them in it.
func somewhere(r *rand.Rand, values []string) string {
	var b strings.Builder
	for range 1 + r.IntN(6) {
		v := spelled(r, values[r.IntN(len(values))])
		switch r.IntN(5) {
		case 0:
			b.WriteString(v[:r.IntN(len(v)+1)])
		case 1:
			b.WriteString(v[r.IntN(len(v)+1):])
		case 2:
			b.WriteString([]string{"%", `\`, "&", "\n", "some text", `\u00`, "&#", "%4"}[r.IntN(8)])
			b.WriteString(v)
		default:
			b.WriteString(v)
		}
	}
	return b.String()
}

func randomValues(r *rand.Rand) []string {
	alphabet := []string{"ab", "abc%41\\u0", "ABCDEFabcdef0123456789", "aZ09-_+/=\"\\ &<>'\n\t", "\x00\xff\xfe\xc3\xa4a"}[r.IntN(5)]
	var values []string
	for range 1 + r.IntN(4) {
		v := make([]byte, 8+r.IntN(9))
		for i := range v {
			v[i] = alphabet[r.IntN(len(alphabet))]
		}
		v[len(v)-1] = alphabet[0] // a line break at the end would be cut off
		if len(values) > 0 && r.IntN(3) == 0 {
			v = append([]byte(values[0][r.IntN(4):]), v...)
		}
		values = append(values, string(v))
	}
	return values
}

func TestRandom(t *testing.T) {
	for seed := range uint64(600) {
		r := rand.New(rand.NewPCG(seed, 1))
		values := randomValues(r)
		check(t, r, values, somewhere(r, values))
		if t.Failed() {
			t.Fatal("seed", seed)
		}
	}
}

// skip stops at the latest where three bytes may begin a match, and no earlier
// than where two may.
func TestSkip(t *testing.T) {
	s := compile(t, "abcdefgh", "%41 b\\u0041")
	for seed := range uint64(4000) {
		r := rand.New(rand.NewPCG(seed, 3))
		p := make([]byte, 1+r.IntN(60))
		for i := range p {
			p[i] = "abcd%6YW \x00\x00\x00"[r.IntN(12)]
		}
		for i := range p {
			got := s.skip(p, i)
			for j := i; j < got; j++ {
				if s.mayBegin(p[j:min(j+3, len(p))]) {
					t.Fatalf("%q from %d: %d is left out for %d", p, i, j, got)
				}
			}
			if got < i || got > len(p)-1 || got < len(p)-1 && !s.mayBegin(p[got:got+2]) {
				t.Fatalf("%q from %d: %d", p, i, got)
			}
		}
	}
}

// mayBegin reports whether a match can go on from there.
func (s *Set) mayBegin(p []byte) bool {
	var at []thread
	var m mover
	for i, b := range p {
		m.step(s, at, b, int64(i))
		at = at[:0]
		for _, t := range m.next {
			if t.start == 0 {
				at = append(at, t)
			}
		}
	}
	return len(at) > 0
}

func FuzzStream(f *testing.F) {
	f.Add(uint64(1), "abcdefgh", "abcdefghijkl", []byte("abcdefgh %61bcdefgh\\u0069jkl YWJjZGVmZ2g= 6162636465666768"))
	f.Add(uint64(2), "aaaaaaaa", "%41%41%41%41", []byte("aaaaaaaaaaa%41%41%2541%4141%%41%41%41%41"))
	f.Fuzz(func(t *testing.T, seed uint64, a, b string, in []byte) {
		for _, v := range []string{a, b} {
			if len(v) < MinValue || len(v) > 64 || strings.TrimRight(v, "\r\n") != v || strings.Contains(v, "*") {
				t.Skip()
			}
			for _, r := range v {
				if r >= utf8.RuneSelf && r != utf8.RuneError {
					t.Skip() // expressions does not know them
				}
			}
		}
		r := rand.New(rand.NewPCG(seed, 2))
		check(t, r, []string{a, b}, string(in))
		check(t, r, []string{a, b}, string(in)+somewhere(r, []string{a, b}))
	})
}

func TestDrip(t *testing.T) {
	const value = "0123456789abcdefghij" // of which 7 bytes may come out
	s := compile(t, value)
	tests := []struct {
		name, in string
		most     int // bytes of in that may come out
	}{
		{"plain", value, 7},
		{"percent", escapeEach(value, "%%%02x"), 21},
		{"json", escapeEach(value, `\u%04x`), 42},
		{"html", escapeEach(value, "&#%d;"), 35},
		{"hex", hex.EncodeToString([]byte(value)), 14},
		{"base64", base64.RawStdEncoding.EncodeToString([]byte(value + "x")), 9},
		{"base64, one before", base64.RawStdEncoding.EncodeToString([]byte("x" + value + "yy"))[2:], 8},
		{"base64, two before", base64.RawStdEncoding.EncodeToString([]byte("xx" + value))[3:], 9},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			for every := 1; every < len(test.in); every++ {
				st := s.Stream()
				var out []byte
				for i := range len(test.in) {
					out = st.Write(out, []byte{test.in[i]})
					if i%every == 0 {
						out = st.Release(out)
					}
				}
				out = st.Flush(out)
				clear := strings.IndexByte(string(out), '*')
				if len(out) != len(test.in) || clear < 0 || clear > test.most || strings.Trim(string(out[clear:]), "*") != "" && test.name[:3] != "bas" {
					t.Fatalf("released every %d: %q", every, out)
				}
				if every == 1 && clear != test.most {
					t.Errorf("%d bytes were released, want %d: %q", clear, test.most, out)
				}
			}
		})
	}
}

func TestReleaseLetsGoOfTheHarmless(t *testing.T) {
	s := compile(t, "0123456789abcdef", `\%&"'<>0`)
	for _, in := range []string{"data: 0", "50%", `\`, "&", "%3", "x 012"} {
		st := s.Stream()
		out := st.Write(nil, []byte(in))
		if len(out) == len(in) {
			t.Errorf("%q: nothing was held back", in)
		}
		if out = st.Release(out); string(out) != in || st.Pending() != 0 {
			t.Errorf("%q: %q came out, %d held back", in, out, st.Pending())
		}
	}
}

// TestReleaseForgets has a beginning that came to nothing before another.
func TestReleaseForgets(t *testing.T) {
	st := compile(t, "abcabcabcabc").Stream()
	var out []byte
	for _, in := range []string{"abc", "zz", "abc", "a"} {
		out = st.Write(out, []byte(in))
	}
	if out = st.Release(out); string(out) != "abczzabca" {
		t.Errorf("%q came out, %d held back", out, st.Pending())
	}
}

func TestHoldsOnlyWhatMayMatch(t *testing.T) {
	s := compile(t, "0123456789abcdef")
	st := s.Stream()
	for in, held := range map[string]int{"text 0123": 4, "text": 0, "ends in a newline\n": 0, "x%301": 4, "01290": 1} {
		st.Flush(st.Write(nil, []byte(in[:3])))
		out := st.Write(nil, []byte(in))
		if st.Pending() != held || string(out) != in[:len(in)-held] {
			t.Errorf("%q: %q came out and %d held back, want %d", in, out, st.Pending(), held)
		}
		st.Flush(nil)
	}
}

func TestDetector(t *testing.T) {
	s := compile(t, "0123456789abcdef", "89abcdefghijklm")
	for size := 1; size < 40; size++ {
		st := s.Detector()
		var out []byte
		for rest := "before 01234 0123456789abcdefghijklm after 0123456789abcdef"; rest != ""; {
			n := min(size, len(rest))
			out, rest = st.Write(out, []byte(rest[:n])), rest[n:]
		}
		if out = st.Flush(st.Release(out)); string(out) != "before 01234 " || st.Found() != 1 {
			t.Errorf("in pieces of %d: %q, %d", size, out, st.Found())
		}
		if diff := cmp.Diff([]string{"v0"}, st.Names()); diff != "" {
			t.Error(diff)
		}
	}
}

// TestCacheIsBounded makes more states than the cache holds, from several
// streams at once.
func TestCacheIsBounded(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 7))
	value := make([]byte, 1<<10)
	for i := range value {
		value[i] = byte('!' + r.IntN(90))
	}
	s := compile(t, string(value))
	var all sync.WaitGroup
	for range 3 {
		in := "<" + escapeEach(string(value), "&#%d;")[:2000] + ">" + escapeEach(string(value), `\u%04x`) + "<"
		size := 100 + r.IntN(500)
		all.Go(func() {
			st := s.Stream()
			var out []byte
			for rest := in; rest != ""; {
				n := min(size, len(rest))
				out, rest = st.Write(out, []byte(rest[:n])), rest[n:]
			}
			out = st.Flush(out)
			if got := string(out[2001:]); got != ">"+stars(6*len(value))+"<" || st.Found() != 1 {
				t.Errorf("%d found, %q ...", st.Found(), got[:20])
			}
		})
	}
	all.Wait()
	if s.cache.used > cacheSize || len(s.cache.states)*stateSize > cacheSize {
		t.Errorf("%d bytes and %d states are in the cache", s.cache.used, len(s.cache.states))
	}
	reached := map[*state]bool{s.cache.root: true}
	for todo := []*state{s.cache.root}; len(todo) > 0; todo = todo[1:] {
		for b := range todo[0].next {
			if next := todo[0].next[b].Load(); next != nil && !reached[next] {
				reached[next], todo = true, append(todo, next)
			}
		}
	}
	if len(reached) > len(s.cache.states) {
		t.Errorf("%d states are kept, and only %d are in the cache", len(reached), len(s.cache.states))
	}
	if len(s.cache.states) > 6*len(value) {
		t.Errorf("the cache has %d states and was not put to the test", len(s.cache.states))
	}
}
