package audit

import (
	"hash/maphash"
	"slices"
	"sync"
	"time"
)

// Bounds of what a [Coalescer] hands out: 1,024 tallies of single keys and then
// 256 an hour, and 17 of gathered keys a minute.
const (
	singles        = 1024
	singlesPerHour = 256
	maxGathered    = 16
	gatherFor      = time.Minute
	maxDistinct    = 1 << 14 // keys that are counted as different, of all that are gathered at once
)

// Tally is how often one thing came within a second; or, of things that were
// gathered, within a minute.
type Tally[K comparable] struct {
	Key         K     // the zero value where Others is set
	Distinct    int64 // how many keys were gathered under Key, up to 16,384; 0: Key came itself
	Others      bool  // stands for all gathered keys beyond the limit
	Count       int64
	First, Last time.Time
}

// Coalescer counts what a guest can bring about at will and what lets nothing
// happen, such as denials. It hands out one tally per key and second, and where
// a guest is zealous, one per gathered key and minute, so that a log grows by a
// bounded number of records an hour. It is safe for use by several goroutines.
type Coalescer[K comparable] struct {
	gather func(K) K
	emit   func([]Tally[K]) error
	most   int
	seed   maphash.Seed

	emitting sync.Mutex // around calls of emit

	mu       sync.Mutex
	tallies  []*Tally[K] // of single keys, in the order in which they began
	index    map[K]*Tally[K]
	gathered map[K]*gathered[K]
	others   *gathered[K]
	distinct int
	left     float64   // tallies of single keys that may be handed out
	counted  time.Time // when left was right
	second   *time.Timer
	minute   *time.Timer
	closed   bool
}

// gathered is a tally of many keys.
type gathered[K comparable] struct {
	Tally[K]
	seen map[uint64]struct{} // hashes of the keys
}

// NewCoalescer returns a coalescer that counts at most most keys apart in a
// second. Those beyond it, and those of a guest that has used up its records,
// are counted under what gather makes of them. Tallies go to emit, which may
// refuse all that it is handed: they are then offered again. The caller calls
// Close.
func NewCoalescer[K comparable](most int, gather func(K) K, emit func([]Tally[K]) error) *Coalescer[K] {
	return &Coalescer[K]{
		gather: gather, emit: emit, most: most, seed: maphash.MakeSeed(),
		index: map[K]*Tally[K]{}, gathered: map[K]*gathered[K]{}, left: singles, counted: time.Now(),
	}
}

// Add counts one. It never waits for emit.
func (c *Coalescer[K]) Add(key K) {
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	if t := c.single(key, now); t != nil {
		t.Count++
		t.Last = now
		if c.second == nil && !c.closed {
			c.second = time.AfterFunc(time.Second, func() { c.hand(false) })
		}
		return
	}
	c.addGathered(Tally[K]{Key: key, Count: 1, First: now, Last: now})
}

// single is the key's own tally; nil: there is no room for one.
func (c *Coalescer[K]) single(key K, now time.Time) *Tally[K] {
	if t := c.index[key]; t != nil {
		return t
	}
	c.left = min(c.left+now.Sub(c.counted).Hours()*singlesPerHour, singles)
	c.counted = now
	if c.left < 1 || len(c.index) >= c.most {
		return nil
	}
	c.left--
	t := &Tally[K]{Key: key, First: now}
	c.index[key] = t
	c.tallies = append(c.tallies, t)
	return t
}

// addGathered counts a tally of a single key with others like it.
func (c *Coalescer[K]) addGathered(t Tally[K]) {
	into := c.group(c.gather(t.Key))
	into.count(t)
	c.see(into, maphash.Comparable(c.seed, t.Key))
}

// group is the tally that counts for a gathered key.
func (c *Coalescer[K]) group(key K) *gathered[K] {
	c.startMinute()
	if g := c.gathered[key]; g != nil {
		return g
	}
	if len(c.gathered) < maxGathered {
		g := &gathered[K]{Tally[K]{Key: key}, map[uint64]struct{}{}}
		c.gathered[key] = g
		return g
	}
	return c.rest()
}

func (c *Coalescer[K]) startMinute() {
	if c.minute == nil && !c.closed {
		c.minute = time.AfterFunc(gatherFor, func() { c.hand(true) })
	}
}

// rest is the tally that counts for all gathered keys beyond the limit.
func (c *Coalescer[K]) rest() *gathered[K] {
	if c.others == nil {
		c.others = &gathered[K]{Tally[K]{Others: true}, map[uint64]struct{}{}}
	}
	return c.others
}

// like is the tally that goes on with one that was handed out in vain.
func (c *Coalescer[K]) like(g *gathered[K]) *gathered[K] {
	if !g.Others {
		return c.group(g.Key)
	}
	c.startMinute()
	return c.rest()
}

// see notes that a key is among those of a gathered tally.
func (c *Coalescer[K]) see(g *gathered[K], hash uint64) {
	if _, seen := g.seen[hash]; !seen && c.distinct < maxDistinct {
		g.seen[hash] = struct{}{}
		c.distinct++
	}
}

func (t *Tally[K]) count(more Tally[K]) {
	t.Count += more.Count
	if t.First.IsZero() || more.First.Before(t.First) {
		t.First = more.First
	}
	if more.Last.After(t.Last) {
		t.Last = more.Last
	}
}

// Flush hands out all that was counted so far.
func (c *Coalescer[K]) Flush() error { return c.hand(true) }

// hand hands out what was counted of single keys, and with all of gathered ones.
func (c *Coalescer[K]) hand(all bool) error {
	c.emitting.Lock()
	defer c.emitting.Unlock()
	single, many := c.take(all)
	var out []Tally[K]
	for _, t := range single {
		out = append(out, *t)
	}
	for _, g := range many {
		g.Distinct = int64(len(g.seen))
		out = append(out, g.Tally)
	}
	if len(out) == 0 {
		return nil
	}
	err := c.emit(out)
	if err != nil {
		c.putBack(single, many)
	}
	return err
}

func (c *Coalescer[K]) take(all bool) (single []*Tally[K], many []*gathered[K]) {
	c.mu.Lock()
	defer c.mu.Unlock()
	single = c.tallies
	c.tallies, c.index = nil, map[K]*Tally[K]{}
	if c.second != nil {
		c.second.Stop()
		c.second = nil
	}
	if !all {
		return single, nil
	}
	for _, g := range c.gathered {
		many = append(many, g)
	}
	slices.SortFunc(many, func(a, b *gathered[K]) int { return a.First.Compare(b.First) })
	if c.others != nil {
		many = append(many, c.others)
	}
	c.gathered, c.others, c.distinct = map[K]*gathered[K]{}, nil, 0
	if c.minute != nil {
		c.minute.Stop()
		c.minute = nil
	}
	return single, many
}

// putBack gathers what could not be handed out, so that it does not grow.
func (c *Coalescer[K]) putBack(single []*Tally[K], many []*gathered[K]) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, t := range single {
		c.addGathered(*t)
	}
	for _, g := range many {
		into := c.like(g)
		into.count(g.Tally)
		for hash := range g.seen {
			c.see(into, hash)
		}
	}
}

// Close hands out the rest; what comes later is not counted in time. The error
// says that it could not be handed out, and lost how much that is.
func (c *Coalescer[K]) Close() (lost int64, err error) {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	if err = c.Flush(); err == nil {
		return 0, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, g := range c.gathered {
		lost += g.Count
	}
	if c.others != nil {
		lost += c.others.Count
	}
	return lost, err
}
