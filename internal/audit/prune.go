package audit

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"creel/internal/durable"
)

// PruneOptions say which closed logs are not needed any more.
type PruneOptions struct {
	Before time.Time // those that were closed before
	Keep   int       // but for this many, the newest
	DryRun bool      // says which they are, and changes nothing
}

// PrunedLog is one log that was removed, or would be.
type PrunedLog struct {
	Sandbox string    `json:"sandbox"`
	Log     string    `json:"log"` // origin
	Closed  time.Time `json:"closed"`
	Bytes   int64     `json:"bytes"`
}

// PruneResult is what became of a [Ledger.Prune].
type PruneResult struct {
	// Logs are those that were removed, also where there is an error, and those
	// that a prune that was killed had left; of a dry run, those that would be.
	Logs []PrunedLog
	// Damaged are logs that are not as the ledger has them. They stay: to prune
	// one would take away what shows it.
	Damaged []Fault
}

// Pruned is the data of [KindPruned]: a log is about to be removed that was as
// the ledger has it.
type Pruned struct {
	Log  string `json:"log"`  // origin
	Head Head   `json:"head"` // of its last checkpoint, as its closing has it
}

// closedLog is what the ledger says of a log that was closed.
type closedLog struct {
	sandbox string
	at      time.Time
	opened  Opened
	closed  Closed
	pruned  bool
}

// pruneAtOnce is how many records go into one commit.
const pruneAtOnce = 256

// Prune removes closed logs. The ledger keeps how each of them ended, and that
// it was removed, which is on record before: a verifier tells it from a log that
// is missing. What a prune that was killed has left is removed as well.
func (l *Ledger) Prune(ctx context.Context, o PruneOptions) (out PruneResult, err error) {
	if err := l.Check(); err != nil { // nothing is held against a ledger that is not what it was
		return out, err
	}
	err = l.closing(func() error {
		logs, err := l.closedLogs(ctx)
		if err != nil {
			return err
		}
		var chosen []closedLog
		for i, c := range logs {
			if !c.pruned && i < len(logs)-o.Keep && c.at.Before(o.Before) {
				chosen = append(chosen, c)
			}
		}
		if chosen, err = l.soundOf(ctx, chosen, &out); err != nil || o.DryRun {
			return err
		}
		out.Logs = nil // until they are removed
		for len(chosen) > 0 && err == nil {
			n := min(len(chosen), pruneAtOnce)
			err = l.recordPruned(ctx, chosen[:n])
			chosen = chosen[n:]
		}
		return errors.Join(err, l.removePruned(ctx, &out)) // what is on record may make room
	})
	return out, err
}

// soundOf are those of the logs that are as the ledger has them.
func (l *Ledger) soundOf(ctx context.Context, logs []closedLog, out *PruneResult) (sound []closedLog, err error) {
	for _, c := range logs {
		path := ArchivePath(l.dir, c.opened.Log)
		f, err := os.Open(path)
		if errors.Is(err, fs.ErrNotExist) {
			out.Damaged = append(out.Damaged, Fault{filepath.Join(logsName, filepath.Base(path)), "is missing"})
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("prune logs: %w", err)
		}
		st, err := readLog(ctx, f, c.opened, nil)
		fault, size := "", int64(0)
		if err == nil {
			fault, size, err = c.closed.compare(f, st)
		}
		f.Close()
		switch {
		case err != nil:
			return nil, fmt.Errorf("prune logs: %w", err)
		case fault != "":
			out.Damaged = append(out.Damaged, Fault{filepath.Join(logsName, filepath.Base(path)), fault})
		default:
			sound = append(sound, c)
			out.Logs = append(out.Logs, PrunedLog{c.sandbox, c.opened.Log, c.at, size})
		}
	}
	return sound, nil
}

func (l *Ledger) recordPruned(ctx context.Context, logs []closedLog) error {
	var events []Event
	for _, c := range logs {
		events = append(events, Event{Kind: KindPruned, Sandbox: c.sandbox, Data: Pruned{c.opened.Log, *c.closed.Head}})
	}
	return l.Append(ctx, events...)
}

// removePruned removes what the ledger says is about to be.
func (l *Ledger) removePruned(ctx context.Context, out *PruneResult) error {
	logs, err := l.closedLogs(ctx)
	if err != nil {
		return err
	}
	for _, c := range logs {
		if !c.pruned {
			continue
		}
		path := ArchivePath(l.dir, c.opened.Log)
		info, err := os.Lstat(path)
		if err == nil {
			err = os.Remove(path)
		}
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("remove log: %w; it is on record as pruned, and the next `creel audit prune` tries again", err)
		}
		out.Logs = append(out.Logs, PrunedLog{c.sandbox, c.opened.Log, c.at, info.Size()})
	}
	return durable.Sync(filepath.Join(l.dir, logsName))
}

// closedLogs are the logs that were closed and sound then, in that order.
func (l *Ledger) closedLogs(ctx context.Context) (out []closedLog, err error) {
	paths, err := Segments(l.dir)
	if err != nil {
		return nil, err
	}
	opened, at := map[string]Opened{}, map[string]int{}
	for _, p := range paths {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		err := eachOpening(p, nil, func(r Record, o *Opened, c *Closed) {
			switch {
			case o != nil:
				opened[o.Log] = *o
			case c != nil && c.Fault == "" && c.Head != nil:
				at[c.Log] = len(out)
				out = append(out, closedLog{sandbox: r.Sandbox, at: r.Time, opened: opened[c.Log], closed: *c})
				delete(opened, c.Log)
			}
		})
		if err == nil {
			err = eachPruned(p, func(p Pruned) {
				if i, ok := at[p.Log]; ok {
					out[i].pruned = true
				}
			})
		}
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

// compare says what of a log is not as it was when it was closed; "": nothing.
func (c *Closed) compare(f *os.File, st logState) (fault string, size int64, err error) {
	info, err := f.Stat()
	if err != nil {
		return "", 0, err
	}
	switch {
	case c.Fault != "":
		if st.head != *c.Head { // it cannot be said what else of it is as it was
			fault = "what is sound of it is not what was when it was closed"
		}
	case st.fault != "":
		fault = st.fault
	case info.Size() > st.end: // torn, or zeros
		fault = fmt.Sprintf("has %d bytes at its end that no checkpoint covers", info.Size()-st.end)
	case st.head.Size < c.Head.Size:
		fault = fmt.Sprintf("has %d lines under its last checkpoint, but was closed with %d: its end was cut off, or the closing claims too much", st.head.Size, c.Head.Size)
	case st.head != *c.Head || st.ended != c.Ended:
		fault = "is not the log that was closed"
	}
	return fault, info.Size(), nil
}
