package scrub

import (
	"encoding/binary"
	"slices"
)

// Stream looks for the values of its set in what is written to it, and holds
// back what may still become a match: at most eighteen times the longest value,
// if each of its characters is spelled as long as can be. It is for one
// goroutine at a time. The zero Stream is one of no values. When its set is
// succeeded by another, the stream looks for what that one has, and for what had
// begun before.
//
// The bytes that come out do not depend on how the stream was cut into writes,
// if Release is not called.
type Stream struct {
	set   *Set
	state *state   // what live says, without the starts
	live  []thread // matches that have begun, at the end of what was written
	mover mover
	done  []thread // buffer of scan
	at    int64    // of the end of what was written
	held  []byte

	found   int64
	names   []string
	matched map[int]int64 // value → end of its last match
	stop    bool          // at the first match
	stopped bool

	// older is the same stream with the set that was succeeded, before this one,
	// as long as a match is under way in it.
	older *Stream
}

// follow goes on with the set that has succeeded the stream's.
func (st *Stream) follow() {
	if st.set != nil && st.set.next.Load() != nil {
		older := *st
		*st = *older.set.Stream()
		st.stop, st.stopped, st.older = older.stop, older.stopped, &older
	}
	st.settle()
}

// settle lets the older stream go once nothing is under way in it.
func (st *Stream) settle() {
	old := st.older
	if old == nil {
		return
	}
	if old.settle(); len(old.live) > 0 || old.older != nil {
		return
	}
	st.found += old.found
	for _, name := range old.names {
		st.name(name)
	}
	st.older = nil
}

// Write appends to dst what can go out once p has arrived, and returns it. dst
// and p must not overlap.
func (st *Stream) Write(dst, p []byte) []byte {
	st.follow()
	return st.write(dst, p)
}

func (st *Stream) write(dst, p []byte) []byte {
	if st.older != nil {
		p = st.older.write(nil, p)
	}
	return st.own(dst, p)
}

// own is write of what has gone through the older stream.
func (st *Stream) own(dst, p []byte) []byte {
	mark := len(dst)
	dst = append(append(dst, st.held...), p...)
	return dst[:mark+st.pass(p, dst[mark:])]
}

// Filter is Write for a stream that holds nothing back: what it returns is a
// beginning of p, changed in place.
func (st *Stream) Filter(p []byte) []byte {
	st.follow()
	return st.filter(p)
}

func (st *Stream) filter(p []byte) []byte {
	if st.older != nil {
		p = st.older.filter(p)
	}
	return p[:st.pass(p, p)]
}

// pass looks at p, and in out, which is what was held and p, replaces matches.
// It says how much of out may go, and holds the rest. Where nothing was held, out
// may be p itself: nothing is read again that was replaced.
func (st *Stream) pass(p, out []byte) int {
	switch {
	case st.stopped:
		return 0
	case st.set == nil:
		return len(out)
	}
	end := st.scan(p, out, st.at-int64(len(st.held)))
	st.at += int64(len(p))
	st.held = append(st.held[:0], out[end:]...)
	if st.stopped {
		st.held = nil
	}
	return end
}

// scan goes over p, the end of out, replaces matches in out, which begins at
// offset origin, and says how much of out no match can need any more.
//
// The shared states cost one look-up a byte, and say where matches end and how
// long ago what still lives can have begun. Where a match ends, and at the end
// of p, the threads catch up, which know their starts: only those of forms that
// live or end there, and over no byte twice.
func (st *Stream) scan(p, out []byte, origin int64) int {
	root, state := st.set.cache.root, st.state
	from := 0  // no thread that lives began between p's start and here
	exact := 0 // st.live is right at this index of p
	for i := 0; i < len(p); {
		if state == root {
			i = st.set.skip(p, i)
			from = i
		}
		next := state.next[p[i]].Load()
		i++
		if next != nil {
			state = next
			continue
		}
		var done []thread
		if state, done = st.set.follow(state, p[i-1], st.done[:0]); len(done) > 0 {
			st.done = done
			back := max(state.back, st.set.farthest(done))
			st.mover.choose(len(st.set.forms), state.live, done)
			exact = st.track(p, exact, max(from, i-back), i)
			if cut := st.mask(out, origin, st.at+int64(i)); st.stopped {
				return cut
			}
		}
	}
	st.state = state
	if state == root {
		st.live = st.live[:0]
		return len(out)
	}
	st.mover.choose(len(st.set.forms), state.live)
	st.track(p, exact, max(from, len(p)-state.back), len(p))
	return st.earliest(out, origin)
}

// skip is the next index from i on at which a match may begin, or the last one
// of p. Of eight bytes it looks at every other pair: a match that begins between
// two of them has its second and third byte in the latter.
func (s *Set) skip(p []byte, i int) int {
	pairs := &s.pairs
	next := i // where a match may begin, for all that is known
	for ; i+8 <= len(p); i += 8 {
		w := binary.LittleEndian.Uint64(p[i:])
		if pairs[uint16(w)]|pairs[uint16(w>>16)]|pairs[uint16(w>>32)]|pairs[uint16(w>>48)] != 0 {
			if at := s.beginning(p, next, i+7); at < i+7 {
				return at
			}
		}
		next = i + 7
	}
	return s.beginning(p, next, len(p)-1)
}

// beginning is the first index before end at which two bytes may begin a match,
// or end.
func (s *Set) beginning(p []byte, i, end int) int {
	for i < end && s.pairs[uint16(p[i])|uint16(p[i+1])<<8]&begins == 0 {
		i++
	}
	return i
}

// track moves the threads from index exact to index to. No thread that the
// mover was told to start, and that lives there, began in p before index from.
func (st *Stream) track(p []byte, exact, from, to int) int {
	if from > exact {
		st.live, exact = st.live[:0], from
	}
	for ; exact < to; exact++ {
		st.mover.step(st.set, st.live, p[exact], st.at+int64(exact))
		st.live, st.mover.next = st.mover.next, st.live
	}
	return exact
}

// mask replaces the matches that have just been completed, at offset end. For
// a detector it says where the output must end.
func (st *Stream) mask(out []byte, origin, end int64) (cut int) {
	cut = st.earliest(out, origin)
	for _, t := range st.mover.done {
		start := max(t.start-origin, 0) // what Release let out is gone
		cut = min(cut, int(start))
		for j := start; j < end-origin; j++ {
			out[j] = '*'
		}
		st.count(st.set.forms[t.form()].value, t.start, end)
	}
	st.stopped = st.stop
	return cut
}

// count counts a match, unless it is one with the value's match before it, which
// it overlaps: a part of it, or it in another reading.
func (st *Stream) count(value int, start, end int64) {
	if st.matched == nil {
		st.matched = make(map[int]int64)
	}
	before, any := st.matched[value]
	st.matched[value] = max(before, end)
	if any && start < before {
		return
	}
	st.found++
	st.name(st.set.names[value])
}

func (st *Stream) name(name string) {
	if i, known := slices.BinarySearch(st.names, name); !known {
		st.names = slices.Insert(st.names, i, name)
	}
}

// earliest is the index in out at which the first match begins that is not
// complete, or the length of out.
func (st *Stream) earliest(out []byte, origin int64) int {
	start := origin + int64(len(out))
	for _, t := range st.live {
		start = min(start, t.start)
	}
	return int(max(start-origin, 0))
}

// Pending is how many bytes are held back.
func (st *Stream) Pending() int {
	if st.older != nil {
		return st.older.Pending() + len(st.held)
	}
	return len(st.held)
}

// Release appends to dst what is held back and harmless, for a stream that is
// idle. Of a value's beginning it lets out at most seven bytes, or half of the
// value if that is less, in whatever encoding; the rest is still replaced when
// it comes. So an upstream that sends a value byte by byte gets that much through.
func (st *Stream) Release(dst []byte) []byte {
	if st.older != nil {
		dst = st.own(dst, st.older.Release(nil))
	}
	if len(st.held) == 0 {
		return dst
	}
	limit := st.at
	for _, t := range st.live {
		limit = min(limit, t.limit)
	}
	n := max(int(limit-st.at)+len(st.held), 0)
	dst = append(dst, st.held[:n]...)
	st.held = append(st.held[:0], st.held[n:]...)
	return dst
}

// Flush appends to dst all that is held back: at the end of the stream it is
// no match. What is written after it begins anew.
func (st *Stream) Flush(dst []byte) []byte {
	if st.older != nil {
		dst = st.own(dst, st.older.Flush(nil))
		st.settle()
	}
	dst = append(dst, st.held...)
	st.held, st.live = st.held[:0], st.live[:0]
	if st.set != nil {
		st.state = st.set.cache.root
	}
	return dst
}

// Found is how many matches there were. Of a value, matches that overlap are
// one.
func (st *Stream) Found() int64 {
	if st.older != nil {
		return st.older.Found() + st.found
	}
	return st.found
}

// Names are the names of the values that were found, sorted.
func (st *Stream) Names() []string {
	names := slices.Clone(st.names)
	if st.older != nil {
		names = append(names, st.older.Names()...)
		slices.Sort(names)
		names = slices.Compact(names)
	}
	return names
}
