package audit

import (
	"context"
	"sync"
	"time"
)

const (
	maxOwed      = 256         // records that wait at once
	owedPatience = time.Second // how long a record may hold up its act
	owedRetry    = time.Second
)

// Owed takes the records of acts that do not wait for them: what ends a run and
// what takes rights away happens also where the disk is full or the quota is
// used up. A record that cannot be written waits here, and is written as soon
// as it can be. It is safe for use by several goroutines.
type Owed struct {
	to      Recorder
	waiting func(Kind, error)

	mu     sync.Mutex // around every write too: the order is that of the acts
	events []Event
	missed map[Kind]int
	retry  *time.Timer
	closed bool
}

// Dated is data that can say when its act was, for a record that comes later.
type Dated interface{ At(time.Time) any }

// NewOwed returns an Owed for the records of to. Waiting is told of each record
// that has to wait, and why. The caller calls Close.
func NewOwed(to Recorder, waiting func(Kind, error)) *Owed {
	return &Owed{to: to, waiting: waiting, missed: map[Kind]int{}}
}

// Tell puts the event on record, now or as soon as it can be. It returns after
// a second at the latest.
func (o *Owed) Tell(e Event) {
	o.mu.Lock()
	defer o.mu.Unlock()
	err := o.write()
	if err == nil {
		if err = o.append(e); err == nil {
			return
		}
	}
	o.waiting(e.Kind, err)
	if len(o.events) >= maxOwed || o.closed {
		o.missed[e.Kind]++
		return
	}
	if d, ok := e.Data.(Dated); ok {
		e.Data = d.At(time.Now().UTC())
	}
	o.events = append(o.events, e)
	o.again()
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
	o.write() // what fails is counted
	for _, e := range o.events {
		o.missed[e.Kind]++
	}
	o.events = nil
	return o.missed
}

// write writes what waits, oldest first, until one fails.
func (o *Owed) write() error {
	for len(o.events) > 0 {
		if err := o.append(o.events[0]); err != nil {
			return err
		}
		o.events = o.events[1:]
	}
	return nil
}

func (o *Owed) append(e Event) error {
	ctx, cancel := context.WithTimeout(context.Background(), owedPatience)
	defer cancel()
	return o.to.Append(ctx, e)
}

// again tries once more after a while. It is called with mu held.
func (o *Owed) again() {
	if o.retry != nil {
		return
	}
	o.retry = time.AfterFunc(owedRetry, func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.retry = nil
		if !o.closed && o.write() != nil {
			o.again()
		}
	})
}
