package scrub

import (
	"cmp"
	"encoding/binary"
	"slices"
	"sync"
	"sync/atomic"
)

// place is where a match has got to: a form, a letter of it, and a node of that
// letter's spellings.
type place uint64

func makePlace(form, letter, node int) place {
	return place(form)<<32 | place(letter)<<12 | place(node)
}

func (p place) form() int   { return int(p >> 32) }
func (p place) letter() int { return int(p >> 12 & 0xFFFFF) }
func (p place) node() int   { return int(p & 0xFFF) }

func (p place) after(e edge) place {
	if e.skip > 0 {
		return makePlace(p.form(), p.letter()+int(e.skip), 0)
	}
	return makePlace(p.form(), p.letter(), int(e.to))
}

// edges are the ways on from a place that is not the end of its form.
func (s *Set) edges(p place) []edge {
	return s.letters[s.forms[p.form()].letters[p.letter()]].nodes[p.node()]
}

// whole says that the place is the end of its form.
func (s *Set) whole(p place) bool { return p.letter() == len(s.forms[p.form()].letters) }

// back bounds how many bytes may lie between a match's start and the place.
func (s *Set) back(p place) int {
	return (p.letter() + 1) * s.forms[p.form()].longest
}

func (s *Set) farthest(threads []thread) int {
	back := 0
	for _, t := range threads {
		back = max(back, s.back(t.place))
	}
	return back
}

// free says that so little of the value is known at the place that it may go out.
func (s *Set) free(p place) bool {
	f := &s.forms[p.form()]
	letters := p.letter()
	if p.node() != 0 {
		letters++
	}
	return f.lead+letters*f.bits <= f.free
}

// thread is a match that has begun. Offsets count from the stream's start.
type thread struct {
	place
	start int64
	limit int64 // up to where Release may go
}

// mover moves threads over a byte, in buffers of its own.
type mover struct {
	next []thread // sorted by place, each place once, with its earliest start
	done []thread // matches that the byte completed
	only []uint64 // bit set of the forms to start; nil: all
}

// choose makes step start only the forms of these threads.
func (m *mover) choose(forms int, threads ...[]thread) {
	if m.only == nil {
		m.only = make([]uint64, (forms+63)/64)
	}
	clear(m.only)
	for _, some := range threads {
		for _, t := range some {
			m.only[t.form()>>6] |= 1 << (t.form() & 63)
		}
	}
}

// step moves all live threads over the byte at an offset, and starts new ones.
func (m *mover) step(s *Set, live []thread, b byte, at int64) {
	m.next, m.done = m.next[:0], m.done[:0]
	for _, t := range live {
		for _, e := range s.edges(t.place) {
			if e.on == b {
				m.put(s, t, t.after(e), at+1)
			}
		}
	}
	for _, p := range s.first[b] {
		if f := p.form(); m.only != nil && m.only[f>>6]>>(f&63)&1 == 0 {
			continue
		}
		m.put(s, thread{start: at}, p, at+1)
	}
	if len(m.next) < 2 {
		return
	}
	slices.SortFunc(m.next, func(a, b thread) int { return cmp.Compare(a.place, b.place) })
	m.next = compact(m.next)
}

func (m *mover) put(s *Set, t thread, to place, at int64) {
	t.place = to
	if s.whole(to) {
		m.done = append(m.done, t)
		return
	}
	if s.free(to) {
		t.limit = at
	}
	m.next = append(m.next, t)
}

func compact(sorted []thread) []thread {
	n := 0
	for _, t := range sorted[1:] {
		last := &sorted[n]
		if t.place == last.place {
			last.start, last.limit = min(last.start, t.start), min(last.limit, t.limit)
			continue
		}
		n++
		sorted[n] = t
	}
	return sorted[:n+1]
}

// state is a set of places that threads are at, and what follows on each byte.
// The starts of its threads mean nothing.
type state struct {
	next    [256]atomic.Pointer[state] // nil: ask the cache
	live    []thread
	back    int  // no thread in it began longer ago, in bytes
	evicted bool // guarded by cache.mu
}

const (
	cacheSize = 8 << 20       // bytes
	partsSize = 4 * cacheSize // of a set that looks for parts: it has that many more
	stateSize = 256*8 + 128
)

// cache holds the states that streams came to, and forgets all when it is full:
// a hostile stream can make it slow, not large.
type cache struct {
	root *state // no thread; it is never forgotten

	mu     sync.Mutex
	states map[string]*state // by the places
	used   int               // bytes
	size   int               // most of them
	mover  mover
	key    []byte
}

func (c *cache) reset() {
	c.root = &state{}
	c.states = map[string]*state{"": c.root}
}

// in reports whether there is a match in p.
func (s *Set) in(p []byte) bool {
	for i, state := 0, s.cache.root; i < len(p); {
		if state == s.cache.root {
			i = s.skip(p, i)
		}
		next := state.next[p[i]].Load()
		if next == nil {
			var done []thread
			if next, done = s.follow(state, p[i], nil); len(done) > 0 {
				return true
			}
		}
		state, i = next, i+1
	}
	return false
}

// follow is the state after a byte, for when the state itself does not know.
// Matches that end at that byte are appended to done, without their starts; such
// a step is never kept, so that every stream comes here for it.
func (s *Set) follow(from *state, b byte, done []thread) (*state, []thread) {
	c := &s.cache
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mover.step(s, from.live, b, 0)
	to := c.intern(s, c.mover.next)
	if len(c.mover.done) == 0 && !from.evicted {
		from.next[b].Store(to)
	}
	return to, append(done, c.mover.done...)
}

// intern finds or makes the state of these threads.
func (c *cache) intern(s *Set, live []thread) *state {
	c.key = c.key[:0]
	for _, t := range live {
		c.key = binary.LittleEndian.AppendUint64(c.key, uint64(t.place))
	}
	if st := c.states[string(c.key)]; st != nil {
		return st
	}
	size := stateSize + len(c.key) + 24*len(live)
	if c.used+size > c.size {
		c.forget()
	}
	c.used += size
	st := &state{live: slices.Clone(live), back: s.farthest(live)}
	c.states[string(c.key)] = st
	return st
}

// forget empties the cache. A stream may still be in a forgotten state, which
// then leads to no other and is freed when the stream moves on.
func (c *cache) forget() {
	for _, st := range c.states {
		st.evicted = st != c.root
		for b := range st.next {
			st.next[b].Store(nil)
		}
	}
	clear(c.states)
	c.states[""] = c.root
	c.used = 0
}
