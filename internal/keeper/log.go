package keeper

import (
	"fmt"
	"io"
	"sync"
	"time"
)

// Bounds of what a keeper says about itself: a guest and its upstreams can
// provoke it.
const (
	logBurst   = 256 << 10 // bytes at once
	logPerHour = 64 << 10  // bytes that may follow
	logMost    = 4 << 20   // bytes in all
	logNote    = 100       // bytes of a line that says what was dropped
)

// Log writes lines to w, but no more than its size and rate allow. It says how
// much it has dropped.
type Log struct {
	w   io.Writer
	now func() time.Time

	mu             sync.Mutex
	left           float64 // bytes that may be written now
	at             time.Time
	written        int64
	dropped, bytes int64 // lines, since the last that was written
}

// NewLog returns a log of lines, each in one Write. The caller closes it.
func NewLog(w io.Writer) *Log { return newLog(w, time.Now) }

func newLog(w io.Writer, now func() time.Time) *Log {
	return &Log{w: w, now: now, left: logBurst, at: now()}
}

// Write writes a line, or drops it. It has no error: nobody could be told.
func (l *Log) Write(line []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	l.left = min(l.left+now.Sub(l.at).Hours()*logPerHour, logBurst)
	l.at = now
	if need := int64(len(line)) + logNote; l.left < float64(need) || l.written+need > logMost {
		l.dropped++
		l.bytes += int64(len(line))
		return len(line), nil
	}
	l.note()
	l.put(line)
	return len(line), nil
}

// Close says what was dropped at the end.
func (l *Log) Close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.note()
}

func (l *Log) note() {
	if l.dropped > 0 {
		l.put(fmt.Appendf(nil, "dropped %d lines, %d bytes: too many at once, or in all\n", l.dropped, l.bytes))
		l.dropped, l.bytes = 0, 0
	}
}

func (l *Log) put(line []byte) {
	l.w.Write(line)
	l.left -= float64(len(line))
	l.written += int64(len(line))
}
