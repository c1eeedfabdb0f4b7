package scrub

// A part of a value is found by windows into it: values of MinValue bytes that
// begin every few bytes, so that a long enough part holds one, wherever it is cut.
const (
	maxLoose = 11      // see [Loose]
	maxParts = 4 << 10 // bytes of a value whose parts are found
	maxStep  = maxLoose - MinValue + 2

	// partFree is how much of a window Release may let out: no more than it has
	// in common with the window before it, or what goes on would leak.
	partFree = MinValue - maxStep
)

// Loose is how many characters of a value of n characters may stand together,
// without others of it, and not be found by [CompileParts]: seven, and of longer
// values nearly half, but no more than eleven.
func Loose(n int) int { return min(maxLoose, max(MinValue-1, n/2-1)) }

// CompileParts makes a Set that also finds each part of a value that is longer
// than [Loose], in text and in base64, and replaces it but for at most four
// characters at either end. The first public[name] bytes of a value are no
// secret: a part of them alone is not looked for.
func CompileParts(values map[string]string, public map[string]int) (*Set, error) {
	return compileSet(values, func(s *Set, name, value string) {
		s.cache.size = partsSize
		hidden := value[min(public[name], len(value)):]
		hidden = hidden[:min(len(hidden), maxParts)]
		step := Loose(len(hidden)) - MinValue + 2
		for at := 0; at+MinValue <= len(hidden); at += step {
			part := hidden[at : at+MinValue]
			s.addForm(s.text(part), 8, 0, partFree)
			for before := range 3 {
				letters, lead := s.base64(part, before)
				s.addForm(letters, 6, lead, partFree)
			}
		}
	})
}
