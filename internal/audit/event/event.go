// Package event has the data of the records that engine and keeper write about
// one run, so that who reads them agrees with who writes them;
// docs/format/audit.md has them in prose. The package must not write or read a
// record, and must not hold the value of a secret.
package event

import "creel/internal/audit"

// The kinds of a life cycle that package audit does not name.
const (
	KindConfined audit.Kind = "confined" // the processes around the VM are locked in
	KindStep     audit.Kind = "step"     // a step of the start, or of a pause, is about to be done
	KindCopied   audit.Kind = "copied"   // files have gone in or out
	KindLost     audit.Kind = "lost"     // a sandbox that nobody looks after any more was found
)

// Admitted is what was asked for and let in; of a refused Spec, what was asked
// for, and why it was not.
type Admitted struct {
	Name   string `json:"name"`
	Image  string `json:"image"` // as the user wrote it
	Tier   string `json:"tier"`
	Policy string `json:"policy"` // digest of the canonical text
	Rules  int    `json:"rules"`
	// Faults are each without the value of anything that looks like a secret.
	Faults []string `json:"faults,omitempty"`
}

// Template is what the run is cloned from.
type Template struct {
	Image    string `json:"image"`    // digest
	Template string `json:"template"` // digest
	Accel    string `json:"accel"`
}

// Confined is what was achieved.
type Confined struct {
	VMM    string `json:"vmm"`    // the level
	Keeper string `json:"keeper"` // what the kernel has of it
}

// Step is about to be done.
type Step struct {
	Step string `json:"step"`
}

// Process is a command that is about to run, with arguments that look like
// secrets hidden. Its environment is not on record.
type Process struct {
	Args []string `json:"args"`
	User string   `json:"user,omitempty"`
}

// Signal is about to be sent.
type Signal struct {
	Signal int    `json:"signal"`
	PID    int    `json:"pid,omitempty"` // in the sandbox
	Target string `json:"target,omitempty"`
}

// Directions of a copy.
const (
	In  = "in"
	Out = "out"
)

// Copy is about to be done.
type Copy struct {
	Direction string `json:"direction"`
	Path      string `json:"path"` // in the sandbox
}

// Copied is a copy that was done: one tar archive.
type Copied struct {
	Copy
	Digest string `json:"digest"` // of the archive
	Bytes  int64  `json:"bytes"`
}

// Exit is how a run ended.
type Exit struct {
	ExitCode  int    `json:"exitCode"`
	Error     string `json:"error,omitempty"`
	OOMKilled bool   `json:"oomKilled,omitempty"`
	TimedOut  bool   `json:"timedOut,omitempty"`
}

// Cleanup is what was found when a run was over: in the log, that the keeper
// has undone all that it did; on the ledger, what the engine then looked for.
type Cleanup struct {
	Complete bool     `json:"complete"`
	Checked  []string `json:"checked,omitempty"`
	Left     []string `json:"left,omitempty"`
	Kept     []string `json:"kept,omitempty"` // left on purpose, until the sandbox is removed
}

// Lost is why a sandbox is about to be removed that nobody had released.
type Lost struct {
	Reason string `json:"reason"`
}
