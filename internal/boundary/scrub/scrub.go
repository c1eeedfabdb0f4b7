// Package scrub finds the values of secrets, stand-ins and canaries in streams
// of bytes. [Compile] makes a [Set] of values; a [Stream] of the set replaces
// each match by as many asterisks, so that no length that a protocol has named
// becomes wrong, or, from [Set.Detector], ends at the first match. A match may
// lie across any number of writes. The package must not know where the bytes
// come from (HTTP, WebSocket, raw streams), must not keep a clock, and must
// never put a value into an error.
//
// What is found of a value:
//
//   - text: each byte, independent of the others, as itself; as %HH, or '+' for
//     a space; as \u00HH or JSON's short escape (\" \\ \/ \b \f \n \r \t); as a
//     character reference of HTML, &#N or &#xHH, with up to eight zeros before
//     its digits, with or without a semicolon, or by any of HTML's names for it
//     (&quot; &lowbar; ...). A character beyond ASCII also as \uHHHH, as a pair of
//     surrogates, and as &#N or &#xH. All may be mixed within one match;
//   - hex: two digits a byte, without separators;
//   - base64: the standard or the URL alphabet, even mixed; any padding or none;
//     the value alone or inside of a larger encoded text, in each of the three
//     alignments; CR LF or LF, plain or as \r\n and \n, between any two
//     characters; '+' and '/' also as %2B, %2F, \u002B, \u002F and \/. Replaced is
//     each character that the value determines alone: at most four bits at either
//     end of the value stay in characters that it shares with its neighbours;
//   - UTF-16, either byte order, of a value that is ASCII, without escapes.
//
// Of a set from [CompileParts], parts of a value are found too.
//
// Hex digits of every kind may be of either case. A line break at the end of a
// value is not a part of it. Not found are values that are encoded twice, save
// what is named here, compressed, encrypted, split, reversed or in another case;
// and a value that has asterisks in it may be spelled by the replacement itself.
package scrub

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
)

// Bounds of what Compile takes, in bytes.
const (
	MinValue = 8 // a shorter value would be found where it is not
	MaxValue = 16 << 10
	MaxTotal = 256 << 10 // of all values together
)

// Set is a number of values, ready to be looked for. It is safe for use by
// several goroutines and does not change, but for a cache of at most 8 MiB, or 32
// MiB where it looks for parts, that all of its streams share, and for the set that succeeds it. A nil Set is one
// of no values.
type Set struct {
	next atomic.Pointer[Set] // has taken its place

	names   []string
	forms   []form
	letters []letter
	keys    map[string]uint32 // of letters, while the set is made
	first   [256][]place      // where a match is after its first byte
	pairs   [1 << 16]uint8    // what two bytes, little-endian, may be: begins, second
	cache   cache
}

// Compile makes a Set of values by name. The error names each value that is too
// short or too long.
func Compile(values map[string]string) (*Set, error) {
	return compileSet(values, func(*Set, string, string) {})
}

// compileSet makes a set with more forms of each value than that of the whole.
func compileSet(values map[string]string, more func(s *Set, name, value string)) (*Set, error) {
	s := &Set{keys: make(map[string]uint32)}
	s.cache.size = cacheSize
	total := 0
	var faults []error
	for _, name := range slices.Sorted(maps.Keys(values)) {
		value := strings.TrimRight(values[name], "\r\n")
		total += len(value)
		switch {
		case len(value) < MinValue:
			faults = append(faults, fmt.Errorf("compile %q: it has %d bytes and must have at least %d: use a longer value", name, len(value), MinValue))
		case len(value) > MaxValue:
			faults = append(faults, fmt.Errorf("compile %q: it has %d bytes and may have at most %d: use a shorter value", name, len(value), MaxValue))
		case total > MaxTotal:
			faults = append(faults, fmt.Errorf("compile %q: the values have more than %d bytes together: use fewer or shorter ones", name, MaxTotal))
			return nil, errors.Join(faults...)
		default:
			s.add(name, value)
			more(s, name, value)
		}
	}
	if len(faults) > 0 {
		return nil, errors.Join(faults...)
	}
	s.keys = nil
	s.index()
	s.cache.reset()
	return s, nil
}

// What is known of two bytes that stand side by side.
const (
	begins = 1 << iota // a match may begin with them
	second             // they may be the second and third byte of a match
)

// index notes with which bytes a match begins. No match has fewer than three.
func (s *Set) index() {
	for f := range s.forms {
		start := makePlace(f, 0, 0)
		for _, e1 := range s.edges(start) {
			next := start.after(e1)
			s.first[e1.on] = append(s.first[e1.on], next)
			for _, e2 := range s.edges(next) {
				s.pairs[uint16(e1.on)|uint16(e2.on)<<8] |= begins
				for _, e3 := range s.edges(next.after(e2)) {
					s.pairs[uint16(e2.on)|uint16(e3.on)<<8] |= second
				}
			}
		}
	}
}

// Succeed puts another set, which has every value of this one and more, in its
// place: also in streams that are open, unless this set is empty.
func (s *Set) Succeed(next *Set) { s.next.Store(next) }

// latest is what has taken the set's place, or the set.
func (s *Set) latest() *Set {
	for s != nil {
		next := s.next.Load()
		if next == nil {
			break
		}
		s = next
	}
	return s
}

// Empty says that there is nothing to look for.
func (s *Set) Empty() bool {
	s = s.latest()
	return s == nil || len(s.names) == 0
}

// Text replaces every match in a short text, and names the values found, sorted.
func (s *Set) Text(text string) (clean string, found []string) {
	p := []byte(text)
	s = s.latest()
	if s.Empty() || !s.in(p) {
		return text, nil
	}
	st := s.Stream()
	out := st.Flush(st.Write(make([]byte, 0, len(p)), p))
	return string(out), st.Names()
}

// Stream is for one direction of one stream, whose matches it replaces.
func (s *Set) Stream() *Stream {
	s = s.latest()
	if s.Empty() {
		return &Stream{}
	}
	return &Stream{set: s, state: s.cache.root}
}

// Detector makes a Stream that ends with the first match: nothing of it, nor
// of what follows, comes out, save for what [Stream.Release] says.
func (s *Set) Detector() *Stream {
	st := s.Stream()
	st.stop = true
	return st
}
