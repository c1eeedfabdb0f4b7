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
