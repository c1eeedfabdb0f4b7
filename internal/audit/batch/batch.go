// Package batch gathers the records of many goroutines into one commit each time
// that the disk is free: one sync serves all that waited for it. The package must
// not know files or what a record says, and must not tell anyone that a record
// is durable before its commit is.
package batch

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"time"

	"creel/internal/audit/chain"
)

const (
	// pace is how often there is a commit while a crowd waits for one: a sync
	// costs as much as several requests through the network's edge.
	pace  = time.Millisecond
	crowd = 8
	// lateness is how long a note waits for a commit that somebody else needs.
	lateness = 10 * time.Millisecond
)

// Writer is safe for use by several goroutines.
type Writer struct {
	write func([]chain.Entry) (string, error)

	mu      sync.Mutex
	pending []*waiter
	running bool
	due     bool // notes have waited long enough
	timed   bool // flush will be called
	closed  bool
	wg      sync.WaitGroup
}

// New returns a writer that hands commits to write, one at a time, which makes
// their entries durable and returns the checkpoint over them. The caller calls
// Close.
func New(write func([]chain.Entry) (string, error)) *Writer { return &Writer{write: write} }

// waiter is what came of one call: somebody waits, or failed is to be told.
type waiter struct {
	entries    []chain.Entry
	failed     func(error)   // of a note
	done       chan struct{} // closed once what follows is set
	checkpoint string
	err        error
}

// ErrClosed is of what comes after Close.
var ErrClosed = errors.New("audit: closed")

// Append returns when the entries are durable, with the checkpoint over them. With
// an error they are not, or, where ctx has ended, may not be. They are in one
// commit, and have at most [chain.MaxBatch] bytes where there are several.
func (g *Writer) Append(ctx context.Context, entries ...chain.Entry) (checkpoint string, err error) {
	w := &waiter{entries: entries, done: make(chan struct{})}
	if err := g.queue(w); err != nil {
		return "", err
	}
	select {
	case <-w.done:
		return w.checkpoint, w.err
	case <-ctx.Done():
		// It may be on its way to the disk. The caller must not act, and a
		// record without its act is the harmless way round.
		g.mu.Lock()
		g.pending = slices.DeleteFunc(g.pending, func(p *waiter) bool { return p == w })
		g.mu.Unlock()
		return "", ctx.Err()
	}
}

// Note is Append for whom does not wait. The entries are durable with the next
// Append or Close, or after 10 ms and a commit; failed is told where they are not.
func (g *Writer) Note(failed func(error), entries ...chain.Entry) {
	if err := g.queue(&waiter{entries: entries, failed: failed}); err != nil {
		failed(err)
	}
}

func (g *Writer) queue(w *waiter) error {
	if size := w.size(); len(w.entries) > 1 && size > chain.MaxBatch {
		return fmt.Errorf("%d records of %d bytes, at most %d in one commit", len(w.entries), size, chain.MaxBatch)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return ErrClosed
	}
	g.pending = append(g.pending, w)
	if w.failed == nil {
		g.start()
	} else {
		g.flushLater()
	}
	return nil
}

// flushLater is called with mu held.
func (g *Writer) flushLater() {
	if !g.timed {
		g.timed = true
		time.AfterFunc(lateness, g.flush)
	}
}

// start is called with mu held.
func (g *Writer) start() {
	if !g.running && len(g.pending) > 0 {
		g.running = true
		g.wg.Go(g.run)
	}
}

// flush writes notes that nobody waits for.
func (g *Writer) flush() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.timed, g.due = false, len(g.pending) > 0
	g.start()
}

// run writes batches until nobody waits.
func (g *Writer) run() {
	for batch := g.next(); len(batch) > 0; batch = g.next() {
		began := time.Now()
		if g.commit(batch) >= crowd {
			time.Sleep(pace - time.Since(began))
		}
	}
}

// commit writes a batch and tells everyone; it returns how many waited.
func (g *Writer) commit(batch []*waiter) (waited int) {
	var entries []chain.Entry
	for _, w := range batch {
		entries = append(entries, w.entries...)
	}
	checkpoint, err := g.write(entries)
	for _, w := range batch {
		w.checkpoint, w.err = checkpoint, err
		if err != nil && len(batch) > 1 {
			// What there is no room for together may fit alone, and one must
			// not fail for another.
			w.checkpoint, w.err = g.write(w.entries)
		}
		switch {
		case w.failed == nil:
			close(w.done)
			waited++
		case w.err != nil:
			w.failed(w.err)
		}
	}
	return waited
}

// next takes what goes into the next commit, or nothing where nobody waits.
func (g *Writer) next() []*waiter {
	runtime.Gosched() // others go on while the disk is waited for, and who is about to append comes along
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.due && !g.closed && !slices.ContainsFunc(g.pending, func(w *waiter) bool { return w.failed == nil }) {
		g.running = false
		return nil
	}
	n, bytes := 0, 0
	for n < len(g.pending) && (n == 0 || bytes+g.pending[n].size() <= chain.MaxBatch) {
		bytes += g.pending[n].size()
		n++
	}
	batch := slices.Clone(g.pending[:n])
	g.pending = slices.Delete(g.pending, 0, n)
	g.running = n > 0
	g.due = g.due && len(g.pending) > 0
	return batch
}

func (w *waiter) size() (bytes int) {
	for i := range w.entries {
		bytes += w.entries[i].Size()
	}
	return bytes
}

// Close refuses further entries and waits until the earlier ones are written.
func (g *Writer) Close() {
	g.mu.Lock()
	g.closed = true
	g.start()
	g.mu.Unlock()
	g.wg.Wait()
}
