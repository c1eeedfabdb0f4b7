package keeper

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"
)

// What a guest provokes makes the keeper's log no larger than it may be, and
// the log says what is not in it.
func TestLogIsBounded(t *testing.T) {
	var out bytes.Buffer
	now := time.Unix(0, 0)
	l := newLog(&out, func() time.Time { return now })
	log := slog.New(slog.NewTextHandler(l, nil))
	lines, hours := 0, 0
	flood := func(d time.Duration) {
		for end := now.Add(d); now.Before(end); now = now.Add(time.Second) {
			log.Warn("provoked", "n", lines, "path", strings.Repeat("x", 200))
			lines++
		}
		hours += int(d.Hours())
	}
	flood(5 * time.Hour)
	if most := logBurst + hours*logPerHour; out.Len() > most || out.Len() < most/2 {
		t.Errorf("%d bytes after %d hours, at most %d", out.Len(), hours, most)
	}
	flood(100 * time.Hour)
	if out.Len() > logMost {
		t.Errorf("%d bytes, at most %d", out.Len(), logMost)
	}
	l.Close()
	l.Close()
	if out.Len() > logMost {
		t.Errorf("%d bytes with the last note, at most %d", out.Len(), logMost)
	}
	kept, dropped := 0, 0
	for line := range strings.Lines(out.String()) {
		var n, size int
		if k, _ := fmt.Sscanf(line, "dropped %d lines, %d bytes", &n, &size); k == 2 {
			dropped += n
		} else {
			kept++
		}
	}
	if dropped == 0 || kept+dropped != lines {
		t.Errorf("%d lines kept and %d dropped of %d", kept, dropped, lines)
	}
}

func TestLogOfFewLinesIsWhole(t *testing.T) {
	var out bytes.Buffer
	l := NewLog(&out)
	log := slog.New(slog.NewTextHandler(l, nil))
	for n := range 100 {
		log.Warn("once", "n", n)
	}
	l.Close()
	if n := strings.Count(out.String(), "once"); n != 100 || strings.Contains(out.String(), "dropped") {
		t.Errorf("%d lines:\n%s", n, out.String())
	}
}
