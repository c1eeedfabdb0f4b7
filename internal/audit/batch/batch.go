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

// New returns a writer that hands commits to write, one at a time; it makes
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

var errClosed = errors.New("audit: closed")

// Append returns when the entries are durable, with the checkpoint over them. With
// an error they are not, or, where ctx has ended, may not be. They are in one
// commit, and have at most [chain.MaxBatch] bytes where there are several.
func (b *Writer) Append(ctx context.Context, entries ...chain.Entry) (checkpoint string, err error) {
	w := &waiter{entries: entries, done: make(chan struct{})}
	if err := b.queue(w); err != nil {
		return "", err
	}
	select {
	case <-w.done:
		return w.checkpoint, w.err
	case <-ctx.Done():
		// It may be on its way to the disk. The caller must not act, and a
		// record without its act is the harmless way round.
		b.mu.Lock()
		b.pending = slices.DeleteFunc(b.pending, func(p *waiter) bool { return p == w })
		b.mu.Unlock()
		return "", ctx.Err()
	}
}

// Note is Append for whom does not wait. The entries are durable with the next
// Append or Close, or after 10 ms and a commit; failed is told where they are not.
func (b *Writer) Note(failed func(error), entries ...chain.Entry) {
	if err := b.queue(&waiter{entries: entries, failed: failed}); err != nil {
		failed(err)
	}
}

func (b *Writer) queue(w *waiter) error {
	if size := w.size(); len(w.entries) > 1 && size > chain.MaxBatch {
		return fmt.Errorf("%d records of %d bytes, at most %d in one commit", len(w.entries), size, chain.MaxBatch)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return errClosed
	}
	b.pending = append(b.pending, w)
	switch {
	case w.failed == nil:
		b.start()
	case !b.timed:
		b.timed = true
		time.AfterFunc(lateness, b.flush)
	}
	return nil
}

// start is called with mu held.
func (b *Writer) start() {
	if !b.running && len(b.pending) > 0 {
		b.running = true
		b.wg.Go(b.run)
	}
}

// flush writes notes that nobody waits for.
func (b *Writer) flush() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.timed, b.due = false, len(b.pending) > 0
	b.start()
}

// run writes batches until nobody waits.
func (b *Writer) run() {
	for batch := b.next(); len(batch) > 0; batch = b.next() {
		began := time.Now()
		if b.commit(batch) >= crowd {
			time.Sleep(pace - time.Since(began))
		}
	}
}

// commit writes a batch and tells everyone; it returns how many waited.
func (b *Writer) commit(batch []*waiter) (waited int) {
	var entries []chain.Entry
	for _, w := range batch {
		entries = append(entries, w.entries...)
	}
	checkpoint, err := b.write(entries)
	for _, w := range batch {
		w.checkpoint, w.err = checkpoint, err
		if err != nil && len(batch) > 1 {
			// What there is no room for together may fit alone, and one must
			// not fail for another.
			w.checkpoint, w.err = b.write(w.entries)
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
func (b *Writer) next() []*waiter {
	runtime.Gosched() // others go on while the disk is waited for, and who is about to append comes along
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.due && !b.closed && !slices.ContainsFunc(b.pending, func(w *waiter) bool { return w.failed == nil }) {
		b.running = false
		return nil
	}
	n, bytes := 0, 0
	for n < len(b.pending) && (n == 0 || bytes+b.pending[n].size() <= chain.MaxBatch) {
		bytes += b.pending[n].size()
		n++
	}
	batch := slices.Clone(b.pending[:n])
	b.pending = slices.Delete(b.pending, 0, n)
	b.running = n > 0
	b.due = b.due && len(b.pending) > 0
	return batch
}

func (w *waiter) size() (bytes int) {
	for i := range w.entries {
		bytes += w.entries[i].Size()
	}
	return bytes
}

// Close refuses further entries and waits until the earlier ones are written.
func (b *Writer) Close() {
	b.mu.Lock()
	b.closed = true
	b.start()
	b.mu.Unlock()
	b.wg.Wait()
}
