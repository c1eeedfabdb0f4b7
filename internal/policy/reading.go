package policy

import (
	"bytes"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

// target is one HTTP request; its path is read when a rule asks for it.
type target struct {
	method, path string
	reading      *reading
}

func (t *target) read() *reading {
	if t.reading == nil {
		t.reading = readPath(t.path)
	}
	return t.reading
}

// reading holds every way in which servers may understand a path. They differ
// in the steps that they take ([steps]) and in their order, and a request may
// pass several of them. So an allow must hold in all ways, and a deny holds in
// any.
type reading struct {
	odd    string     // why the path is refused where paths matter; "": it is not
	ways   [][]string // segments; the first is the path as written
	folded [][]string // the ways as a deny compares them, made on demand
}

const (
	maxPath    = 16 << 10
	maxApart   = 2 * maxPath // of a path whose characters are taken apart
	maxWays    = 128
	maxReading = 64 << 10 // the cost of all ways
	maxDots    = 32       // in the last name
)

// What was written as an escape and has a meaning without it stands in a
// reading as one of these, until a step decodes it. No path has such bytes
// itself: control characters are refused.
const (
	escapedSlash = "\x01"
	escapedDot   = "\x02" // only where a segment might be . or ..
	escapedSemi  = "\x03"
	escapedQuery = "\x04" // ? or #
	separators   = "/;" + escapedSlash + escapedSemi + escapedQuery
)

// readPath reads the path of a request target, whose query it leaves out.
func readPath(raw string) *reading {
	raw, _, _ = strings.Cut(raw, "?")
	switch {
	case !strings.HasPrefix(raw, "/"):
		return &reading{odd: "does not begin with a slash"}
	case len(raw) > maxPath:
		return &reading{odd: fmt.Sprintf("is longer than %d bytes", maxPath)}
	}
	path, odd := decode(raw)
	if odd == "" {
		odd = oddText(path)
	}
	if odd != "" {
		return &reading{odd: odd}
	}
	ways, ok := waysOf(path)
	if !ok {
		return &reading{odd: "can be read in too many ways, or is too long to be"}
	}
	r := &reading{}
	for _, way := range ways {
		r.ways = append(r.ways, strings.Split(way, "/")[1:])
	}
	return r
}

// decode undoes percent-encoding, but for what has a meaning of its own when it
// is decoded.
func decode(raw string) (path, odd string) {
	var b strings.Builder
	for i := 0; i < len(raw); i++ {
		c, escaped := raw[i], raw[i] == '%'
		if escaped {
			if i+2 >= len(raw) || !isHex(raw[i+1]) || !isHex(raw[i+2]) {
				return "", "has a broken escape"
			}
			c = unhex(raw[i+1])<<4 | unhex(raw[i+2])
			i += 2
		}
		switch {
		case c < ' ' || c == 0x7f:
			return "", "has a control character"
		case c == '\\':
			return "", "has a backslash, which some servers read as a slash"
		case escaped && c == '%':
			return "", "has an escaped percent sign, which some servers decode twice"
		case !escaped && c == '#':
			return "", "has a fragment"
		case escaped && c == '/':
			b.WriteString(escapedSlash)
		case escaped && c == '.':
			b.WriteString(escapedDot)
		case escaped && c == ';':
			b.WriteString(escapedSemi)
		case escaped && (c == '?' || c == '#'):
			b.WriteString(escapedQuery)
		default:
			b.WriteByte(c)
		}
	}
	return plainDots(b.String()), ""
}

// plainDots decodes dots in names, where they mean nothing.
func plainDots(path string) string {
	if !strings.Contains(path, escapedDot) {
		return path
	}
	var b strings.Builder
	for name, separator := range tokens(path) {
		if strings.Trim(name, "."+escapedDot) != "" {
			name = strings.ReplaceAll(name, escapedDot, ".")
		}
		b.WriteString(name)
		b.WriteString(separator)
	}
	return b.String()
}

// tokens are the names in a path, each with the separator behind it.
func tokens(path string) func(yield func(name, separator string) bool) {
	return func(yield func(name, separator string) bool) {
		for path != "" {
			end := strings.IndexAny(path, separators)
			if end < 0 {
				yield(path, "")
				return
			}
			if !yield(path[:end], path[end:end+1]) {
				return
			}
			path = path[end+1:]
		}
	}
}

// cookieless is what ASP.NET takes out of a path wherever it stands: a session,
// a ticket or the like, as in /(S(x))/.
var cookieless = regexp.MustCompile(`\([A-Za-z]\(`)

// oddText says what of a decoded path some servers read as something else, in
// ways that are not worth following: no honest client needs them.
func oddText(path string) string {
	if !utf8.ValidString(path) {
		return "is not UTF-8"
	}
	if grows(path) > maxApart-len(path) {
		return fmt.Sprintf("is longer than %d bytes when its characters are taken apart", maxApart)
	}
	if strings.Contains(path, ":$") {
		return "names a stream of a file, as Windows has them"
	}
	if cookieless.MatchString(path) {
		return "has a session in it, as ASP.NET has them, which such servers take out"
	}
	if strings.Count(path[strings.LastIndexByte(strings.TrimRight(path, "/"), '/')+1:], ".") > maxDots {
		return fmt.Sprintf("has a name with more than %d dots", maxDots)
	}
	if c := lookalike(path); c != 0 {
		return fmt.Sprintf("has the character %U, which some servers read as a separator", c)
	}
	for name := range tokens(path) {
		dotted := name == "." || name == ".."
		if bare := strings.ReplaceAll(name, escapedDot, "."); name != "" && !dotted && bare != "." && bare != ".." && blank(bare) {
			if c := beyondASCII(bare); c != 0 {
				return fmt.Sprintf("has the character %U in a segment of dots, blanks and what cannot be seen, which some servers read as ..", c)
			}
			return "has a segment of dots and blanks, which some servers read as .."
		}
	}
	return ""
}

// bestFit are characters that Windows turns into a slash or a backslash where
// it leaves Unicode, and that have no such decomposition.
const bestFit = "\u2044\u2215\u2216\u29f5\u29f8\u00a5\u20a9"

// lookalike finds a character that some servers turn into one that structures
// a path; 0: there is none.
func lookalike(path string) rune {
	for i, c := range path {
		if c < utf8.RuneSelf {
			continue
		}
		if strings.ContainsRune(bestFit, c) || bytes.ContainsAny(norm.NFKD.PropertiesString(path[i:]).Decomposition(), `/\;%?#`) {
			return c
		}
	}
	return 0
}

// blank reports whether nothing is left of a name without dots, blanks and what
// cannot be seen.
func blank(name string) bool {
	if beyondASCII(name) != 0 {
		name = letters(name)
	}
	return strings.TrimFunc(name, func(c rune) bool { return c == '.' || unicode.IsSpace(c) }) == ""
}

// beyondASCII is the first character that is not ASCII; 0: there is none.
func beyondASCII(s string) rune {
	for _, c := range s {
		if c >= utf8.RuneSelf {
			return c
		}
	}
	return 0
}

// letters takes the characters of a text apart and leaves out what some servers
// do not look at: accents, and what cannot be seen.
func letters(s string) string {
	return strings.Map(func(c rune) rune {
		if unicode.In(c, unicode.Mn, unicode.Cf, unicode.Other_Default_Ignorable_Code_Point, unicode.Variation_Selector) {
			return -1
		}
		return c
	}, norm.NFKD.String(s))
}

// steps are what servers do to a path before they look for what it names.
var steps = []func(string) string{
	func(s string) string { return strings.ReplaceAll(s, escapedSlash, "/") },
	func(s string) string { return strings.ReplaceAll(s, escapedDot, ".") },
	func(s string) string { return strings.ReplaceAll(s, escapedSemi, ";") },
	func(s string) string { s, _, _ = strings.Cut(s, escapedQuery); return s },
	func(s string) string { s, _, _ = strings.Cut(s, ";"); return s },
	withoutParameters,
	withoutAuthority,
	squeeze,
	withoutDots,
}

// waysOf are all results of any steps in any order; not ok are too many, or too
// costly ones. The first is the path as written.
func waysOf(path string) (ways []string, ok bool) {
	// What a rule does with a way takes time by its bytes, with characters taken
	// apart, and by its segments.
	more := grows(path)
	cost := func(way string) int { return len(way) + more + 16*strings.Count(way, "/") }
	ways = []string{path}
	total := cost(path)
	if total > maxReading {
		return nil, false
	}
	if !strings.ContainsAny(path, separators[1:]+escapedDot) && !strings.Contains(path, "//") && !strings.Contains(path, "/.") {
		return ways, true // as nearly all paths are
	}
	seen := map[string]bool{path: true}
	for i := 0; i < len(ways); i++ {
		for _, step := range steps {
			if way := step(ways[i]); !seen[way] {
				seen[way] = true
				ways = append(ways, way)
				total += cost(way)
			}
			if len(ways) > maxWays || total > maxReading {
				return nil, false
			}
		}
	}
	return ways, true
}

// grows is by how much a text grows when its characters are taken apart, Hangul
// apart, which never grows more than threefold.
func grows(s string) (n int) {
	for i, c := range s {
		if c >= utf8.RuneSelf {
			n += max(0, len(norm.NFKD.PropertiesString(s[i:]).Decomposition())-utf8.RuneLen(c))
		}
	}
	return n
}

// withoutParameters takes ;NAME=VALUE from each segment, as servlets do.
func withoutParameters(s string) string {
	if !strings.Contains(s, ";") {
		return s
	}
	segs := strings.Split(s, "/")
	for i := range segs {
		segs[i], _, _ = strings.Cut(segs[i], ";")
	}
	return strings.Join(segs, "/")
}

// withoutAuthority takes the path from //HOST/PATH, which is how URL parsers
// read two slashes at the beginning.
func withoutAuthority(s string) string {
	rest, ok := strings.CutPrefix(s, "//")
	if !ok {
		return s
	}
	_, path, _ := strings.Cut(rest, "/")
	return "/" + path
}

// squeeze makes one slash of several.
func squeeze(s string) string {
	for strings.Contains(s, "//") {
		s = strings.ReplaceAll(s, "//", "/")
	}
	return s
}

// withoutDots removes dot segments as RFC 3986 5.2.4 does.
func withoutDots(s string) string {
	if !strings.Contains(s, "/.") {
		return s
	}
	segs := strings.Split(s, "/")[1:]
	out := make([]string, 0, len(segs))
	for i, seg := range segs {
		switch {
		case seg == ".." && len(out) > 0:
			out = out[:len(out)-1]
		case seg == "..", seg == ".":
		default:
			out = append(out, seg)
			continue
		}
		if i == len(segs)-1 {
			out = append(out, "")
		}
	}
	return "/" + strings.Join(out, "/")
}

func isHex(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F'
}

func unhex(c byte) byte {
	if c <= '9' {
		return c - '0'
	}
	return c&^0x20 - 'A' + 10
}

// surelyMatches reports whether some pattern matches, whichever way the path is
// read.
func (r *reading) surelyMatches(patterns []pathPattern) bool {
	for _, way := range r.ways {
		if !slices.ContainsFunc(patterns, func(p pathPattern) bool { return p.match(way) }) {
			return false
		}
	}
	return r.odd == ""
}

// mayMatch reports whether some pattern, folded, matches the path in some way
// of reading it, where some servers do not see case, accents, the form of a
// character, what cannot be seen, blanks at the ends of a segment, dots at its
// end, a slash at the end of the path, or a format behind its last name.
func (r *reading) mayMatch(folded []pathPattern) bool {
	if r.odd != "" {
		return true
	}
	if r.folded == nil {
		for _, way := range r.ways {
			r.folded = append(r.folded, foldAll(way))
		}
	}
	for _, way := range r.folded {
		if slices.ContainsFunc(folded, func(p pathPattern) bool { return p.matchEquivalents(way) }) {
			return true
		}
	}
	return false
}

// matchEquivalents matches a path with and without a slash at its end, and with
// and without each format that its last name may have. What is before the last
// name is looked at once.
func (p pathPattern) matchEquivalents(segs []string) bool {
	n := len(segs)
	if n > 1 && segs[n-1] == "" {
		n--
	}
	before := p.begin()
	for _, seg := range segs[:n-1] {
		before = p.after(before, seg)
	}
	last := segs[n-1]
	for end := len(last); end > 0 || end == len(last); end = strings.LastIndexByte(last[:end], '.') {
		at := p.after(before, last[:end])
		if p.ended(at) || p.ended(p.after(at, "")) {
			return true
		}
	}
	return false
}

func foldAll(segs []string) []string {
	out := make([]string, len(segs))
	for i, s := range segs {
		out[i] = fold(s)
	}
	return out
}

// unlike are letters that databases which do not see accents take for others,
// and that have no decomposition.
var unlike = strings.NewReplacer("\u00f8", "o", "\u0111", "d", "\u0142", "l", "\u0127", "h", "\u0167", "t", "\u2c65", "a", "\u0180", "b", "\u023c", "c",
	"\u0247", "e", "\u01e5", "g", "\u0268", "i", "\u0249", "j", "\u1d7d", "p", "\u024d", "r", "\u2c66", "t", "\u024f", "y", "\u01b6", "z",
	"\u00e6", "ae", "\u0153", "oe", "\u00df", "ss")

// fold makes one of the segments that some servers do not tell apart.
func fold(s string) string {
	if s == "." || s == ".." {
		return s
	}
	if beyondASCII(s) == 0 {
		s = strings.ToLower(s)
	} else {
		s = unlike.Replace(strings.ToLower(strings.ToUpper(letters(s))))
	}
	return strings.TrimRightFunc(strings.TrimLeftFunc(s, unicode.IsSpace), func(c rune) bool { return c == '.' || unicode.IsSpace(c) })
}
