package audit

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"
)

const (
	maxOwed      = 256         // records that wait at once
	owedPatience = time.Second // how long a record may hold up its act
	owedRetry    = time.Second
)

var errOwed = errors.New("the record is slow; it is written as soon as it can be")

// Owed takes the records of acts that do not wait for them: what ends a run and
// what takes rights away happens also where the disk is full or the quota is
// used up. A record that cannot be written waits here, and is written as soon
// as it can be; for one that has no room of its class, others do not wait. It is safe for use by several goroutines.
type Owed struct {
	to      Recorder
	waiting func(Kind, error)

	mu      sync.Mutex // never held while something is written
	queue   []*owing   // in the order of the acts
	now     *owing     // the one that is being written
	late    int        // of the queue, those whose acts have not waited
	missed  map[Kind]int
	writing bool
	idle    *sync.Cond // writing has ended
	retry   *time.Timer
	closed  bool
}

// owing is one record that is to be written.
type owing struct {
	event Event
	late  bool
	done  chan struct{} // closed when its act need not wait any more
}

// Dated is data that can say when its act was, for a record that comes later.
type Dated interface{ At(time.Time) any }

// NewOwed returns an Owed for the records of to. Waiting is told of each record
// that has to wait, and why; it must not call the Owed. The caller calls Close.
func NewOwed(to Recorder, waiting func(Kind, error)) *Owed {
	o := &Owed{to: to, waiting: waiting, missed: map[Kind]int{}}
	o.idle = sync.NewCond(&o.mu)
	return o
}

// Tell puts the event on record, now or as soon as it can be. It returns after
// a second at the latest, however many tell at once.
func (o *Owed) Tell(e Event) {
	w := &owing{event: e, done: make(chan struct{})}
	o.mu.Lock()
	o.queue = append(o.queue, w)
	o.start()
	o.mu.Unlock()
	patience := time.NewTimer(owedPatience)
	defer patience.Stop()
	select {
	case <-w.done:
	case <-patience.C:
		o.mu.Lock()
		defer o.mu.Unlock()
		o.giveUp(w, errOwed)
	}
}

// Miss notes n records that were given up.
func (o *Owed) Miss(kind Kind, n int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.missed[kind] += n
}

// Close writes what can be written now, and returns how many records of each
// kind there are not.
func (o *Owed) Close() map[Kind]int {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = true
	if o.retry != nil {
		o.retry.Stop()
	}
	o.start()
	for o.writing {
		o.idle.Wait()
	}
	for _, w := range o.queue { // none is being written
		o.missed[w.event.Kind]++
	}
	o.queue, o.late = nil, 0
	return o.missed
}

// start has the queue written. It is called with mu held, as are those below.
func (o *Owed) start() {
	if !o.writing && len(o.queue) > 0 {
		o.writing = true
		go o.write()
	}
}

// write writes what waits, oldest first. One for whose class there is no room
// holds up no other; any other failure is the log's.
func (o *Owed) write() {
	o.mu.Lock()
	defer o.mu.Unlock()
	defer o.idle.Broadcast()
	defer func() { o.writing = false }()
	noRoom := 0 // of those at the head of the queue
	for noRoom < len(o.queue) {
		w := o.queue[noRoom]
		err := o.writeOne(w)
		switch {
		case err == nil:
			o.queue = slices.Delete(o.queue, noRoom, noRoom+1)
			if w.late {
				o.late--
			} else {
				close(w.done)
			}
		case errors.Is(err, ErrQuota):
			if o.giveUp(w, err); w.late && slices.Contains(o.queue, w) {
				noRoom++
			}
		default:
			for _, w := range slices.Clone(o.queue) {
				o.giveUp(w, err)
			}
			o.again()
			return
		}
	}
	if noRoom > 0 {
		o.again()
	}
}

// writeOne writes without mu; what is before w in the queue stays there.
func (o *Owed) writeOne(w *owing) error {
	o.now = w
	defer func() { o.now = nil }()
	e := w.event
	o.mu.Unlock()
	defer o.mu.Lock()
	return o.append(e)
}

// giveUp lets an act happen before its record, which then says when it was. Of
// more than maxOwed that wait, it is counted only.
func (o *Owed) giveUp(w *owing, err error) {
	if at := slices.Index(o.queue, w); w.late || at < 0 {
		return
	} else if o.late >= maxOwed && w != o.now {
		o.queue = slices.Delete(o.queue, at, at+1)
		o.missed[w.event.Kind]++
	} else {
		o.late++
	}
	w.late = true
	if d, ok := w.event.Data.(Dated); ok {
		w.event.Data = d.At(time.Now().UTC())
	}
	close(w.done)
	o.waiting(w.event.Kind, err)
}

func (o *Owed) append(e Event) error {
	ctx, cancel := context.WithTimeout(context.Background(), owedPatience)
	defer cancel()
	return o.to.Append(ctx, e)
}

// again tries once more after a while.
func (o *Owed) again() {
	if o.retry != nil || o.closed {
		return
	}
	o.retry = time.AfterFunc(owedRetry, func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.retry = nil
		if !o.closed {
			o.start()
		}
	})
}
