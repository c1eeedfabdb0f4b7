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

// begin, after and ended match segment by segment: what stands between them is
// where in the pattern one may be, all places at once.
func (p pathPattern) begin() []bool {
	at := make([]bool, len(p)+1)
	at[0] = true
	p.skip(at)
	return at
}

func (p pathPattern) after(at []bool, seg string) []bool {
	next := make([]bool, len(p)+1)
	for i, part := range p {
		switch {
		case !at[i]:
		case part == "**":
			next[i] = true
		case matchSegment(part, seg):
			next[i+1] = true
		}
	}
	p.skip(next)
	return next
}

// skip goes on behind each **, which may be no segment.
func (p pathPattern) skip(at []bool) {
	for i, part := range p {
		if at[i] && part == "**" {
			at[i+1] = true
		}
	}
}

func (p pathPattern) ended(at []bool) bool { return at[len(p)] }

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
