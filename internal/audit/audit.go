// Package audit is the record of what happened: one ledger per installation,
// which many processes append to, and one log per sandbox, which its keeper
// alone writes. Both are JSON lines under a Merkle tree with signed
// checkpoints. [Recorder] is what the rest of Creel sees; [Ledger] and [Log]
// implement it, [Verifier] checks both offline, and [Query] reads them.
//
// The package must not know who calls it, imports nothing of ours, and never
// lets an act happen whose record is not on disk.
package audit

import "context"

// Kind says what an event is about. Later parts of Creel add kinds; a reader
// keeps an event of a kind that it does not know.
type Kind string

// The kinds of a life cycle. Those that this package itself writes into the
// ledger are named in ledger.go.
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

// Event is one thing that is about to happen, or that has just ended.
type Event struct {
	Kind    Kind
	Sandbox string // its ID; "" where no sandbox is concerned
	Data    any    // a small struct that encodes to a JSON object; nil for none
}

// Recorder takes events.
type Recorder interface {
	// Append returns nil only when the record is durable. An error means that it
	// is not, and that the act it announces must not happen.
	Append(ctx context.Context, e Event) error
}
