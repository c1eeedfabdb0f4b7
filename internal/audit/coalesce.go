package audit

import (
	"errors"
	"sync"
	"time"
)

// Tally is how often one thing came within a second.
type Tally[K comparable] struct {
	Key         K    // the zero value where Others is set
	Others      bool // stands for all keys beyond the limit
	Count       int64
	First, Last time.Time
}

// Coalescer counts what a guest can bring about at will and what lets nothing
// happen, such as denials, and hands out one tally per key and second, so that
// a log does not grow with the guest's zeal. It is safe for use by several
// goroutines.
type Coalescer[K comparable] struct {
	emit func(Tally[K]) error
	most int

	emitting sync.Mutex // around calls of emit

	mu      sync.Mutex
	tallies []*Tally[K]
	index   map[K]*Tally[K]
	others  *Tally[K]
	timer   *time.Timer
	closed  bool
}

// NewCoalescer returns a coalescer that counts at most most keys apart in a
// second, and hands tallies to emit, in the order in which they began. What
// emit could not take is offered to it again with the next second's. The caller
// calls Close.
func NewCoalescer[K comparable](most int, emit func(Tally[K]) error) *Coalescer[K] {
	return &Coalescer[K]{emit: emit, most: most, index: map[K]*Tally[K]{}}
}

// Add counts one. It never waits for emit.
func (c *Coalescer[K]) Add(key K) {
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.add(Tally[K]{Key: key, Count: 1, First: now, Last: now})
	if c.timer == nil && !c.closed {
		c.timer = time.AfterFunc(time.Second, func() { c.Flush() })
	}
}

func (c *Coalescer[K]) add(t Tally[K]) {
	into := c.index[t.Key]
	switch {
	case t.Others || into == nil && len(c.index) >= c.most:
		if c.others == nil {
			c.others = &Tally[K]{Others: true, First: t.First}
			c.tallies = append(c.tallies, c.others)
		}
		into = c.others
	case into == nil:
		into = &Tally[K]{Key: t.Key, First: t.First}
		c.index[t.Key] = into
		c.tallies = append(c.tallies, into)
	}
	into.Count += t.Count
	if t.First.Before(into.First) {
		into.First = t.First
	}
	if t.Last.After(into.Last) {
		into.Last = t.Last
	}
}

// Flush hands out what was counted so far.
func (c *Coalescer[K]) Flush() error {
	c.emitting.Lock()
	defer c.emitting.Unlock()
	c.mu.Lock()
	tallies := c.tallies
	c.tallies, c.index, c.others = nil, map[K]*Tally[K]{}, nil
	if c.timer != nil {
		c.timer.Stop()
		c.timer = nil
	}
	c.mu.Unlock()

	var errs []error
	for _, t := range tallies {
		if err := c.emit(*t); err != nil {
			errs = append(errs, err)
			c.mu.Lock()
			c.add(*t)
			c.mu.Unlock()
		}
	}
	return errors.Join(errs...)
}

// Close hands out the rest; what comes later is not counted in time. The error
// says what could not be handed out.
func (c *Coalescer[K]) Close() error {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	return c.Flush()
}
