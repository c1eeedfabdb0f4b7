// Package audit is the record of what happened: one ledger per installation,
// which many processes append to, and one log per sandbox, which its keeper
// alone writes. Both are JSON lines under a Merkle tree with signed
// checkpoints. [Recorder] is what the rest of Creel sees; [Ledger] and [Log]
// implement it, [Verify] checks both offline, and [Query] reads them.
//
// The package must not know who calls it, imports nothing of ours, and never
// lets an act happen whose record is not on disk.
package audit

import (
	"context"
	"encoding/json"
	"fmt"

	"creel/internal/audit/batch"
	"creel/internal/audit/chain"
)

// Kind says what an event is about. Later parts of Creel add kinds; a reader
// keeps an event of a kind that it does not know.
type Kind = chain.Kind

// Version is of the format of ledger and logs; docs/format/audit.md has it.
const Version = chain.Version

// Record is an event as it stands on disk.
type Record = chain.Record

// Head is a ledger or log at one length: what a checkpoint signs.
type Head = chain.Head

// The kinds of a life cycle.
const (
	KindAdmitted Kind = "admitted" // the Spec passed policy
	KindRefused  Kind = "refused"  // the Spec did not pass; no sandbox came of it
	KindTemplate Kind = "template" // the template that the run is cloned from
	KindStarted  Kind = "started"  // the task's first process is about to run
	KindExec     Kind = "exec"     // another process is about to run
	KindSignal   Kind = "signal"   // a signal is about to be sent to the task
	KindCopy     Kind = "copy"     // files are about to go in or out
	KindExit     Kind = "exit"     // the task, or an exec, ended
	KindCleanup  Kind = "cleanup"  // what was removed, and the proof that nothing is left
)

// The kinds that this package writes itself.
const (
	KindKey       Kind = "key"       // ledger: the installation's key from here on
	KindOpened    Kind = "opened"    // ledger: a sandbox's log begins, with its public key; log: its first record
	KindClosed    Kind = "closed"    // ledger: a sandbox's log has ended, with its root; log: its keeper ended in order
	KindPruned    Kind = "pruned"    // ledger: a log that was closed is about to be removed
	KindRecovered Kind = "recovered" // what a crash had left half-written was set aside
	KindHead      Kind = "head"      // ledger: the note of how far it had come was missing, and is made anew
)

// keyData is the data of [KindKey].
type keyData struct {
	Key     string `json:"key"`               // public
	Retires string `json:"retires,omitempty"` // the public key that it takes the place of
}

// headData is the data of [KindHead].
type headData struct {
	Lines int64 `json:"lines"` // that the ledger was found with
}

// Opened is the data of the ledger's [KindOpened].
type Opened struct {
	Log string `json:"log"` // the log's origin
	Key string `json:"key"` // its public key
	Dir string `json:"dir"` // where it is until it is closed
}

// logOpened is the data of [KindOpened] in the log itself.
type logOpened struct {
	Log    string `json:"log"`
	Ledger string `json:"ledger"` // the ledger's checkpoint over the log's opening
}

// Closed is the data of the ledger's [KindClosed].
type Closed struct {
	Log   string   `json:"log"`
	Head  *Head    `json:"head,omitempty"` // of what is sound of it; nil: nothing is
	Ended bool     `json:"ended"`          // its keeper closed it; false: it was killed
	Torn  *tornEnd `json:"torn,omitempty"` // cut off at its end
	Fault string   `json:"fault,omitempty"`
}

func decodeData[T any](r Record) (T, error) {
	var v T
	if err := json.Unmarshal(r.Data, &v); err != nil {
		return v, fmt.Errorf("decode data of %s record: %w", r.Kind, err)
	}
	return v, nil
}

// Event is one thing that is about to happen, or that has just ended.
type Event struct {
	Kind    Kind
	Sandbox string // its ID; "" where no sandbox is concerned
	Data    any    // a small struct that encodes to a JSON object; nil for none
}

// Recorder takes events.
type Recorder interface {
	// Append returns nil only when the records of all events are durable, in one
	// commit. An error means that none is, or, where ctx has ended, may be; the
	// acts they announce must not happen.
	Append(ctx context.Context, events ...Event) error
	// Note is Append for what has happened already, and does not wait: the
	// records are durable with the next Append or Close, or after 10 ms and a
	// sync. Where they are not, failed is told, at any time until Close has
	// returned; it must not call the Recorder.
	Note(failed func(error), events ...Event)
}

func (e Event) encode() (chain.Entry, error) { return chain.Encode(e.Kind, e.Sandbox, e.Data) }

// recorder implements [Recorder] for what is made of commits.
type recorder struct{ batch *batch.Writer }

// Append implements [Recorder].
func (r recorder) Append(ctx context.Context, events ...Event) error {
	entries, err := encodeAll(events)
	if err == nil {
		_, err = r.batch.Append(ctx, entries...)
	}
	return err
}

// Note implements [Recorder].
func (r recorder) Note(failed func(error), events ...Event) {
	entries, err := encodeAll(events)
	if err != nil {
		failed(err)
		return
	}
	r.batch.Note(failed, entries...)
}

func encodeAll(events []Event) ([]chain.Entry, error) {
	entries := make([]chain.Entry, len(events))
	for i, e := range events {
		var err error
		if entries[i], err = e.encode(); err != nil {
			return nil, err
		}
	}
	return entries, nil
}
