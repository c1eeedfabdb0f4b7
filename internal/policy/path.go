package policy

import (
	"fmt"
	"strings"
)

// pathPattern is a path pattern in segments: * stands for any run of
// characters in one segment, ** for any number of segments.
type pathPattern []string

// CheckPath says what is wrong with a path pattern.
func CheckPath(s string) error {
	switch {
	case !strings.HasPrefix(s, "/"):
		return fmt.Errorf("path %.200q: begin it with /", s)
	case len(s) > 512:
		return fmt.Errorf("path %.40q...: %d characters, at most 512", s, len(s))
	case strings.ContainsAny(s, "?#%\\;"):
		return fmt.Errorf("path %.200q: write it decoded, without query; ? # %% \\ ; cannot be matched", s)
	}
	for _, c := range s {
		if c < ' ' || c == 0x7f || c == 0xfffd {
			return fmt.Errorf("path %.200q: it holds a character that cannot be in one", s)
		}
	}
	for _, seg := range strings.Split(s, "/") {
		if seg != "**" && strings.Contains(seg, "**") || seg == "." || seg == ".." {
			return fmt.Errorf("path %.200q: ** stands alone between slashes, and . and .. mean nothing here", s)
		}
	}
	return nil
}

func compilePath(s string) pathPattern { return strings.Split(s, "/")[1:] }

func (p pathPattern) match(segs []string) bool {
	pi, si, star, mark := 0, 0, -1, 0
	for si < len(segs) {
		switch {
		case pi < len(p) && p[pi] == "**":
			star, mark = pi, si
			pi++
		case pi < len(p) && matchSegment(p[pi], segs[si]):
			pi++
			si++
		case star >= 0:
			mark++
			pi, si = star+1, mark
		default:
			return false
		}
	}
	for pi < len(p) && p[pi] == "**" {
		pi++
	}
	return pi == len(p)
}

func matchSegment(pattern, s string) bool {
	if pattern == "*" {
		return s != ""
	}
	pi, si, star, mark := 0, 0, -1, 0
	for si < len(s) {
		switch {
		case pi < len(pattern) && pattern[pi] == '*':
			star, mark = pi, si
			pi++
		case pi < len(pattern) && pattern[pi] == s[si]:
			pi++
			si++
		case star >= 0:
			mark++
			pi, si = star+1, mark
		default:
			return false
		}
	}
	return strings.Trim(pattern[pi:], "*") == ""
}

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

// reading holds the ways in which a server may understand a path. Servers
// differ on %2F and on empty segments, so that an allow must hold in all
// readings and a deny in any.
type reading struct {
	readings  [2][]string // with %2F as a character; with it as a slash and no empty segments
	ambiguous bool        // servers differ too much: no allow with a path holds, every deny does
}

func readPath(raw string) *reading {
	if i := strings.IndexAny(raw, "?#"); i >= 0 {
		raw = raw[:i]
	}
	if !strings.HasPrefix(raw, "/") || len(raw) > 16<<10 {
		return &reading{ambiguous: true}
	}
	decoded, ok := decode(raw)
	if !ok {
		return &reading{ambiguous: true}
	}
	whole := strings.ReplaceAll(decoded, "%2F", "/")
	return &reading{readings: [2][]string{
		dots(strings.Split(decoded, "/")[1:], false),
		dots(strings.Split(whole, "/")[1:], true),
	}}
}

// decode undoes percent encoding but for slashes, which it leaves as %2F. It
// is not ok on what servers read differently: broken or double encoding,
// backslashes, control characters, parameters behind dots.
func decode(raw string) (string, bool) {
	var b strings.Builder
	for i := 0; i < len(raw); i++ {
		c := raw[i]
		if c == '%' {
			if i+2 >= len(raw) || !isHex(raw[i+1]) || !isHex(raw[i+2]) {
				return "", false
			}
			c = unhex(raw[i+1])<<4 | unhex(raw[i+2])
			i += 2
			if c == '/' {
				b.WriteString("%2F")
				continue
			}
			if c == '%' {
				return "", false
			}
		}
		if c < ' ' || c == 0x7f || c == '\\' {
			return "", false
		}
		b.WriteByte(c)
	}
	s := b.String()
	return s, !strings.Contains(s, ".;")
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

// dots removes dot segments as RFC 3986 5.2.4 does, and empty ones but the
// last where squeeze is set.
func dots(segs []string, squeeze bool) []string {
	out := make([]string, 0, len(segs))
	for i, s := range segs {
		last := i == len(segs)-1
		switch {
		case s == ".." && len(out) > 0:
			out = out[:len(out)-1]
		case s == "..", s == ".":
		case s == "" && squeeze:
		default:
			out = append(out, s)
			continue
		}
		if last {
			out = append(out, "")
		}
	}
	return out
}

func (r *reading) surelyMatches(p pathPattern) bool {
	return !r.ambiguous && p.match(r.readings[0]) && p.match(r.readings[1])
}

// mayMatch ignores case and a slash at the end, as some servers do.
func (r *reading) mayMatch(p pathPattern) bool {
	fold := func(segs []string) []string {
		out := make([]string, len(segs))
		for i, s := range segs {
			out[i] = strings.ToLower(s)
		}
		return out
	}
	p = fold(p)
	for _, segs := range r.readings {
		segs = fold(segs)
		if p.match(segs) || p.match(append(segs[:len(segs):len(segs)], "")) {
			return true
		}
		if n := len(segs); n > 0 && segs[n-1] == "" && p.match(segs[:n-1]) {
			return true
		}
	}
	return r.ambiguous
}
