package boundary

import (
	"context"
	"fmt"
	"net"
	"sync"
	"time"

	"creel/internal/audit"
	"creel/internal/audit/event"
	"creel/internal/sandbox"
)

// Bounds of what visitors of published ports put on record. So many of a run
// have a record each, and so many more an hour. Beyond that one record lets in
// all of an address for a minute, and one all that are beyond maxVisitors.
const (
	visitsApart   = 128
	visitsPerHour = 128
	maxVisitors   = 16
	visitMinute   = time.Minute
)

// visitor is who comes from one address to one port; from is "" for all others.
type visitor struct {
	from  string
	port  uint16
	proto string
}

// visitors keeps what comes from outside on record, within bounds: anybody who
// reaches a published port can bring it about.
type visitors struct {
	record func(context.Context, audit.Kind, any) error
	missed func(count int, err error) // of visits whose number is not on record

	mu      sync.Mutex // around the records of minutes too, so that a visit is of the minute that lets it in
	left    float64    // records of single visits
	counted time.Time
	let     map[visitor]int64 // visits of this minute
	minute  *time.Timer
	closed  bool
}

func newVisitors(e *Edge) *visitors {
	return &visitors{record: e.record, left: visitsApart, counted: time.Now(), let: map[visitor]int64{}, missed: func(count int, err error) {
		e.unrecorded(err)
		e.cfg.Owed.Miss(event.KindVisits, count)
	}}
}

// enter returns once it is on record that somebody is about to be let in. Who
// gets an error must not be.
func (v *visitors) enter(ctx context.Context, from net.Addr, port uint16, proto string) error {
	v.mu.Lock()
	if v.apart() {
		v.mu.Unlock()
		return v.record(ctx, event.KindPublished, event.Published{From: from.String(), Port: port, Proto: proto})
	}
	defer v.mu.Unlock()
	host, _, err := net.SplitHostPort(from.String())
	if err != nil {
		return fmt.Errorf("address of a visitor: %w", err)
	}
	return v.enterMinute(ctx, visitor{host, port, proto})
}

// apart reports whether the next visit has a record of its own.
func (v *visitors) apart() bool {
	now := time.Now()
	v.left = min(v.left+now.Sub(v.counted).Hours()*visitsPerHour, visitsApart)
	v.counted = now
	if v.left < 1 {
		return false
	}
	v.left--
	return true
}

// enterMinute is enter for those that have a record together. It is called with
// mu held.
func (v *visitors) enterMinute(ctx context.Context, who visitor) error {
	if _, known := v.let[who]; !known && len(v.let) >= maxVisitors {
		who.from = ""
	}
	if _, known := v.let[who]; !known {
		data := event.Published{From: who.from, Port: who.port, Proto: who.proto, Minute: true}
		if err := v.record(ctx, event.KindPublished, data); err != nil {
			return err
		}
	}
	v.let[who]++
	if v.minute == nil && !v.closed {
		v.minute = time.AfterFunc(visitMinute, v.tell)
	}
	return nil
}

// tell puts on record how many came, and begins another minute.
func (v *visitors) tell() {
	v.mu.Lock()
	defer v.mu.Unlock()
	for who, count := range v.let {
		data := event.Visits{From: who.from, Port: who.port, Proto: who.proto, Count: count}
		if err := v.record(context.Background(), event.KindVisits, data); err != nil {
			v.missed(int(count), err)
		}
	}
	clear(v.let)
	if v.minute != nil {
		v.minute.Stop()
		v.minute = nil
	}
}

// close is tell for the last time.
func (v *visitors) close() {
	v.mu.Lock()
	v.closed = true
	v.mu.Unlock()
	v.tell()
}

// turnedAway tells people of a visitor who is not on record.
func (e *Edge) turnedAway(port uint16, proto string) {
	e.tell(sandbox.Denial{
		Target: fmt.Sprintf("published port %d/%s", port, proto), Reason: "a visitor could not be put on record, and was not let in",
		Hint: "`creel inspect` says whether the audit log is full",
	}, alike{})
}
