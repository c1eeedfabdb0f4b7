// Package event has the data of the records that engine and keeper write about
// one run, so that who reads them agrees with who writes them;
// docs/format/audit.md has them in prose. The package must not write or read a
// record, and must not hold the value of a secret.
package event

import (
	"time"

	"creel/internal/audit"
)

// The kinds of a life cycle that package audit does not name.
const (
	KindConfined audit.Kind = "confined" // the processes around the VM are locked in
	KindStep     audit.Kind = "step"     // a step of the start, or of a pause, is about to be done
	KindCopied   audit.Kind = "copied"   // files have gone in or out
	KindLost     audit.Kind = "lost"     // a sandbox that nobody looks after any more was found

	KindDiskFault audit.Kind = "disk-fault" // the host's disk refused an access; the first of a run
)

// Admitted is what was asked for and let in; of a refused Spec, what was asked
// for, and why it was not. A new policy for a sandbox that runs is admitted as
// well, under the same ID.
type Admitted struct {
	Name   string `json:"name"`
	Image  string `json:"image"` // as the user wrote it
	Tier   string `json:"tier"`
	Policy string `json:"policy"` // digest of the canonical text
	Rules  int    `json:"rules"`
	// Budget has the limits of the task, by their keys in the policy.
	Budget map[string]int64 `json:"budget,omitempty"`
	// Faults are each without the value of anything that looks like a secret.
	Faults []string `json:"faults,omitempty"`
}

// NoPolicy is the digest of the policy that allows nothing. It may be in force
// without having been admitted: to take everything away needs no record first.
const NoPolicy = "sha256:09bfcc6a14b83e2192b8673677725c84883ee9cd0c70e45c9ec09daa8f2b2847"

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

// Late is in records of acts that do not wait for their record, and of what has
// happened already.
type Late struct {
	// When is the time of the act, where the record came later.
	When time.Time `json:"at,omitzero"`
}

// Step is about to be done.
type Step struct {
	Step string `json:"step"`
	Late
}

// At implements [audit.Dated].
func (s Step) At(t time.Time) any { s.When = t; return s }

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
	Late
}

// At implements [audit.Dated].
func (s Signal) At(t time.Time) any { s.When = t; return s }

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
	// Unrecorded counts, by kind, what happened and could not be put on record.
	Unrecorded map[audit.Kind]int `json:"unrecorded,omitempty"`
}

// Cleanup is what was found when a run was over: in the log, that the keeper
// has undone all that it did; on the ledger, what the engine then looked for.
type Cleanup struct {
	Complete bool     `json:"complete"`
	Checked  []string `json:"checked,omitempty"`
	Left     []string `json:"left,omitempty"`
	Kept     []string `json:"kept,omitempty"` // left on purpose, until the sandbox is removed
}

// DiskFault is an access to a sandbox's disk that the host's disk refused.
type DiskFault struct {
	Disk  string `json:"disk"` // its role
	Write bool   `json:"write,omitempty"`
	Full  bool   `json:"full,omitempty"` // the host's disk is full
	Late
}

// At implements [audit.Dated].
func (d DiskFault) At(t time.Time) any { d.When = t; return d }

// Lost is why a sandbox is about to be removed that nobody had released.
type Lost struct {
	Reason string `json:"reason"`
}

// The kinds of what crosses the network's edge. Data about a destination names
// it host, and what was decided decision, so that queries find it.
const (
	KindName         audit.Kind = "name"         // names were asked for, counted; nothing left the host for them
	KindDenied       audit.Kind = "denied"       // connections, datagrams or requests were refused, counted
	KindLookup       audit.Kind = "lookup"       // the host is about to look a name up
	KindConnection   audit.Kind = "connection"   // an address is about to be dialled
	KindFailed       audit.Kind = "failed"       // what is allowed could not be connected to, counted: no connection was begun
	KindDisconnected audit.Kind = "disconnected" // a connection has ended
	KindRequest      audit.Kind = "request"      // an HTTP request is about to be sent upstream
	KindResponse     audit.Kind = "response"     // it was answered, or failed
	KindSecret       audit.Kind = "secret"       // a secret is about to be used
	KindPolicy       audit.Kind = "policy"       // a policy is about to be in force
	KindSecrets      audit.Kind = "secrets"      // values of secrets are about to be replaced
	KindBudget       audit.Kind = "budget"       // a limit was used up
	KindAlert        audit.Kind = "alert"        // what no honest task does was stopped
	KindDropped      audit.Kind = "dropped"      // frames of the card that were let go, counted; at its end
	KindPublished    audit.Kind = "published"    // a connection from outside is about to be let in
)

// Decisions.
const (
	Allow = "allow"
	Deny  = "deny"
)

// Destination is what a guest asked for, as policy saw it.
type Destination struct {
	Host     string `json:"host"` // a name, or an address that was asked for without one
	Port     uint16 `json:"port,omitempty"`
	Protocol string `json:"protocol,omitempty"` // tls, http, tcp or udp
	Decision string `json:"decision"`
	Rule     string `json:"rule,omitempty"`
	Reason   string `json:"reason,omitempty"`
}

// Tally is a Destination that came several times within a second, or one rule's
// destinations within a minute.
type Tally struct {
	Destination
	Count int64 `json:"count"`
	// Names is how many destinations were gathered in this one, by what was
	// decided and the rule; Host is then empty.
	Names int64 `json:"names,omitempty"`
	// Others stands for rules beyond the number that is told apart in a minute;
	// Host is then empty.
	Others bool `json:"others,omitempty"`
}

// Connection is about to be dialled.
type Connection struct {
	Destination
	ID      int64  `json:"id"`      // of this connection in this log
	Address string `json:"address"` // ADDRESS:PORT that was decided on
	Via     string `json:"via,omitempty"`
}

// Disconnected is how a connection ended. Bytes are payload.
type Disconnected struct {
	ID         int64  `json:"id"`
	Host       string `json:"host"`
	Port       uint16 `json:"port"`
	BytesOut   int64  `json:"bytesOut"`
	BytesIn    int64  `json:"bytesIn"`
	DurationMS int64  `json:"durationMs"`
	Error      string `json:"error,omitempty"`
}

// Request is about to be sent upstream. Path has no query: its values may be
// secret.
type Request struct {
	Destination
	ID      int64    `json:"id"` // of this request in this log
	Method  string   `json:"method"`
	Path    string   `json:"path"`
	Queries []string `json:"queries,omitempty"` // names of the query's parameters
}

// Response is how a request was answered.
type Response struct {
	ID         int64  `json:"id"`
	Host       string `json:"host"`
	Status     int    `json:"status,omitempty"` // 0: none came
	BytesOut   int64  `json:"bytesOut"`
	BytesIn    int64  `json:"bytesIn"`
	DurationMS int64  `json:"durationMs"`
	Scrubbed   int64  `json:"scrubbed,omitempty"` // how often a secret was taken out
	Error      string `json:"error,omitempty"`
}

// Secret is about to be used in a request.
type Secret struct {
	Destination
	Name    string `json:"name"`
	As      string `json:"as"`      // header, bearer, basic, query or stand-in
	Request int64  `json:"request"` // ID of the request
}

// Policy is about to be in force.
type Policy struct {
	Generation int    `json:"generation"` // 1 is the run's first
	Policy     string `json:"policy"`     // digest of the canonical text
	Rules      int    `json:"rules"`
	Late
}

// At implements [audit.Dated].
func (p Policy) At(t time.Time) any { p.When = t; return p }

// Secrets are about to be replaced.
type Secrets struct {
	Names []string `json:"names"`
}

// Budget is a limit that was used up.
type Budget struct {
	Limit string `json:"limit"` // key in the policy
	Rule  string `json:"rule,omitempty"`
	Host  string `json:"host,omitempty"`
	Late
}

// At implements [audit.Dated].
func (b Budget) At(t time.Time) any { b.When = t; return b }

// AlertNames is the alert of names that are asked for by the dozen.
const AlertNames = "names"

// Alert is what was stopped.
type Alert struct {
	Destination
	// Alert is stand-in: a secret's placeholder was sent elsewhere; canary: a
	// planted credential was used; or [AlertNames]: many different names below
	// one domain were asked for.
	Alert string `json:"alert"`
	Name  string `json:"name"`  // of the secret or canary, or the domain
	Where string `json:"where"` // name, header, path, query, body or stream
	Late
}

// At implements [audit.Dated].
func (a Alert) At(t time.Time) any { a.When = t; return a }

// Dropped are frames of the sandbox's card that no policy was asked about, by
// why: malformed, ipv6, fragment and so on.
type Dropped struct {
	Frames map[string]uint64 `json:"frames"`
	Late
}

// At implements [audit.Dated].
func (d Dropped) At(t time.Time) any { d.When = t; return d }

// Published is a connection from outside into the sandbox.
type Published struct {
	From  string `json:"from"`
	Port  uint16 `json:"port"` // in the sandbox
	Proto string `json:"proto"`
}
