package policy

// What the tests look into.
var (
	PatternMatches = patternMatches
	RequestOf      = requestOf
)

func (r *Rule) CoversPort(port uint16, udp bool) bool { return r.coversPort(port, udp) }

// Readings are the ways in which servers may read a path, and what is odd
// about it.
func Readings(path string) (ways [][]string, odd string) {
	r := readPath(path)
	return r.ways, r.odd
}

// MatchPath is whether a path pattern matches segments, and MatchPlaces the same
// as a deny finds it, which keeps all places in the pattern.
func MatchPath(pattern string, segs []string) bool { return compilePath(pattern).match(segs) }

func MatchPlaces(pattern string, segs []string) bool {
	p := compilePath(pattern)
	at := p.begin()
	for _, seg := range segs {
		at = p.after(at, seg)
	}
	return p.ended(at)
}
