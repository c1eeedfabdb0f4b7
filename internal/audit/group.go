package audit

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"

	"creel/internal/audit/chain"
)

// group gathers the events of many goroutines into one commit each time that
// the disk is free: one sync serves all that waited for it.
type group struct {
	// write makes the entries durable and returns the checkpoint over them. It
	// is called by one goroutine at a time.
	write func([]chain.Entry) (string, error)

	mu      sync.Mutex
	pending []*waiter
	running bool
	closed  bool
	wg      sync.WaitGroup
}

type waiter struct {
	entries    []chain.Entry
	done       chan struct{} // closed once what follows is set
	checkpoint string
	err        error
}

func (w *waiter) size() (bytes int) {
	for i := range w.entries {
		bytes += w.entries[i].Size()
	}
	return bytes
}

var errClosed = errors.New("audit: closed")

// append returns when the events are durable, with the checkpoint over them.
func (g *group) append(ctx context.Context, events ...Event) (string, error) {
	w := &waiter{entries: make([]chain.Entry, len(events)), done: make(chan struct{})}
	for i, e := range events {
		var err error
		if w.entries[i], err = e.encode(); err != nil {
			return "", err
		}
	}
	if size := w.size(); len(events) > 1 && size > chain.MaxBatch {
		return "", fmt.Errorf("%d events of %d bytes, at most %d in one commit", len(events), size, chain.MaxBatch)
	}
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

func (g *group) queue(w *waiter) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return errClosed
	}
	g.pending = append(g.pending, w)
	if !g.running {
		g.running = true
		g.wg.Go(g.run)
	}
	return nil
}

// run writes batches until nobody waits.
func (g *group) run() {
	for batch := g.next(); len(batch) > 0; batch = g.next() {
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
			close(w.done)
		}
	}
}

func (g *group) next() []*waiter {
	runtime.Gosched() // who is about to append comes along
	g.mu.Lock()
	defer g.mu.Unlock()
	n, bytes := 0, 0
	for n < len(g.pending) && (n == 0 || bytes+g.pending[n].size() <= chain.MaxBatch) {
		bytes += g.pending[n].size()
		n++
	}
	batch := slices.Clone(g.pending[:n])
	g.pending = slices.Delete(g.pending, 0, n)
	g.running = n > 0
	return batch
}

// close refuses further events and waits until the earlier ones are written.
func (g *group) close() {
	g.mu.Lock()
	g.closed = true
	g.mu.Unlock()
	g.wg.Wait()
}
