package audit

import (
	"context"
	"errors"
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
	entry      chain.Entry
	done       chan struct{} // closed once what follows is set
	checkpoint string
	err        error
}

var errClosed = errors.New("audit: closed")

// append returns when the event is durable, with the checkpoint over it.
func (g *group) append(ctx context.Context, e Event) (string, error) {
	encoded, err := e.encode()
	if err != nil {
		return "", err
	}
	w := &waiter{entry: encoded, done: make(chan struct{})}
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
		entries := make([]chain.Entry, len(batch))
		for i, w := range batch {
			entries[i] = w.entry
		}
		checkpoint, err := g.write(entries)
		for i, w := range batch {
			w.checkpoint, w.err = checkpoint, err
			if err != nil && len(batch) > 1 {
				// What there is no room for together may fit alone, and one must
				// not fail for another.
				w.checkpoint, w.err = g.write(entries[i : i+1])
			}
			close(w.done)
		}
	}
}

func (g *group) next() []*waiter {
	g.mu.Lock()
	defer g.mu.Unlock()
	n, bytes := 0, 0
	for n < len(g.pending) && (n == 0 || bytes+g.pending[n].entry.Size() <= chain.MaxBatch) {
		bytes += g.pending[n].entry.Size()
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
