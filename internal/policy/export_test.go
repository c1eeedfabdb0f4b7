package policy

// What the tests look into.
var (
	PatternMatches = patternMatches
	RequestOf      = requestOf
)

func (r *Rule) CoversPort(port uint16, udp bool) bool { return r.coversPort(port, udp) }

// ReadSqueezed is the reading of a path that decodes most.
func ReadSqueezed(path string) []string { return readPath(path).readings[1] }
