// Package sandbox is the vocabulary of Creel: the nouns that every other
// package takes or returns. [Spec] says what is wanted, [Status] what is, and
// [Process] is a command made ready to run. The package must not import
// anything of ours, and must not do anything: no files, no processes, no time.
package sandbox

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"strings"
	"time"
)

// ID names one sandbox: 32 lower-case hexadecimal digits, random.
type ID string

// NewID returns a fresh random ID.
func NewID() ID {
	var b [16]byte
	rand.Read(b[:]) // never fails: crypto/rand ends the process instead
	return ID(hex.EncodeToString(b[:]))
}

// Short is the first twelve digits, for people.
func (id ID) Short() string {
	if len(id) < 12 {
		return string(id)
	}
	return string(id[:12])
}

// ParseID accepts exactly the form that [NewID] makes.
func ParseID(s string) (ID, error) {
	if !looksLikeID(s) {
		return "", fmt.Errorf("sandbox id %q: want 32 hexadecimal digits", s)
	}
	return ID(s), nil
}

func looksLikeID(s string) bool { return len(s) == 32 && only(s, "0123456789abcdef") }

// only reports whether s is made of the characters in set alone. Patterns
// compiled at start would cost every process of Creel milliseconds.
func only(s, set string) bool { return strings.Trim(s, set) == "" }

// Confinement is how much the processes around a VM are locked in.
type Confinement string

const (
	// ConfinementFull: own namespaces and empty root for the VMM, seccomp,
	// no_new_privs, no capabilities. The zero value means this.
	ConfinementFull Confinement = "full"
	// ConfinementReduced: what is left where user namespaces cannot be had:
	// Landlock, seccomp and no_new_privs. Only on request.
	ConfinementReduced Confinement = "reduced"
)

// Accel is what executes guest code.
type Accel string

const (
	AccelAuto Accel = "auto" // KVM where a probe that runs guest code passes, else TCG
	AccelKVM  Accel = "kvm"
	AccelTCG  Accel = "tcg"
)

// Spec is a wish: everything that is wanted of one sandbox, complete and
// plain. Front doors make it, [Spec.Validate] checks it, the engine acts on it
// once.
type Spec struct {
	ID    ID     `json:"id"`
	Name  string `json:"name"`
	Image string `json:"image"` // reference as the user wrote it

	// Entrypoint replaces the image's where not nil; a non-nil empty slice
	// clears it. Command replaces the image's command where not empty.
	Entrypoint []string `json:"entrypoint"`
	Command    []string `json:"command,omitempty"`
	Env        []string `json:"env,omitempty"` // NAME=value, later wins
	Workdir    string   `json:"workdir,omitempty"`
	User       string   `json:"user,omitempty"` // name|uid[:group|gid]
	Hostname   string   `json:"hostname,omitempty"`

	Labels map[string]string `json:"labels,omitempty"`

	TTY         bool `json:"tty,omitempty"`
	Interactive bool `json:"interactive,omitempty"` // keep stdin open

	Resources Resources     `json:"resources"`
	Mounts    []Mount       `json:"mounts,omitempty"` // performed in this order
	Ports     []Port        `json:"ports,omitempty"`  // published on the host
	ReadOnly  bool          `json:"readOnly,omitempty"`
	Timeout   time.Duration `json:"timeout,omitempty"` // 0: none; the task is killed after it

	// Keep makes the record, logs and writable disk outlive the run, until they
	// are removed.
	Keep bool `json:"keep,omitempty"`
	// KeepDetached does so once the task's user has left it to itself.
	KeepDetached bool `json:"keepDetached,omitempty"`

	// Tier names the ceiling that the rest is held against. Policy is what the
	// task may reach, as its canonical text; "" allows nothing.
	Tier   string `json:"tier"`
	Policy string `json:"policy,omitempty"`
	// Canaries plants credentials that open nothing where attackers look.
	Canaries bool `json:"canaries,omitempty"`

	Confinement Confinement `json:"confinement"`
	Accel       Accel       `json:"accel"`
}

// Resources are limits on the task. Zero means the default of the field.
type Resources struct {
	CPUs        float64 `json:"cpus,omitempty"`        // 0.01 to 4; 0: one vCPU
	MemoryBytes int64   `json:"memoryBytes,omitempty"` // 16 MiB to 8 GiB; 0: all that a 512 MiB machine has
	PIDs        int64   `json:"pids,omitempty"`        // 0: no limit but the guest kernel's
	DiskBytes   int64   `json:"diskBytes,omitempty"`   // 64 MiB to 64 GiB; 0: 10 GiB
}

// MountKind says what is mounted.
type MountKind string

// MountTmpfs is a file system in the guest's memory.
const MountTmpfs MountKind = "tmpfs"

// Mount is one file system in the sandbox beside its root.
type Mount struct {
	Kind      MountKind `json:"kind"`
	Target    string    `json:"target"` // absolute, cleaned
	ReadOnly  bool      `json:"readOnly,omitempty"`
	SizeBytes int64     `json:"sizeBytes,omitempty"` // tmpfs: 0 is half the guest's memory
	Mode      uint32    `json:"mode,omitempty"`      // tmpfs: permission bits with sticky; 0 is 01777
	NoExec    bool      `json:"noExec,omitempty"`
}

// Port is a port of the sandbox that the host lets connections into.
type Port struct {
	HostIP    string `json:"hostIp"`   // an address; "127.0.0.1" where the user named none
	HostPort  uint16 `json:"hostPort"` // 0: one that is free
	GuestPort uint16 `json:"guestPort"`
	Proto     string `json:"proto"` // tcp or udp
}

func (p Port) String() string {
	return fmt.Sprintf("%s:%d->%d/%s", p.HostIP, p.HostPort, p.GuestPort, p.Proto)
}

// Denial is a destination that was denied to a task, for people.
type Denial struct {
	Target string `json:"target"`
	Reason string `json:"reason"`
	Hint   string `json:"hint,omitempty"` // what would allow it
	Count  int64  `json:"count"`
}

// Trouble is what was allowed to a task and did not work, for people.
type Trouble struct {
	Target string `json:"target"`
	Reason string `json:"reason"`
	Hint   string `json:"hint,omitempty"` // what to do
	Count  int64  `json:"count"`
}

// Process is a command ready to run in a guest: the Spec and the image's
// configuration have been merged, nothing is left to default.
type Process struct {
	Args        []string `json:"args"`
	Env         []string `json:"env,omitempty"`
	Dir         string   `json:"dir,omitempty"`  // "": /
	User        string   `json:"user,omitempty"` // "": root
	TTY         bool     `json:"tty,omitempty"`
	Interactive bool     `json:"interactive,omitempty"` // false: stdin is at its end from the start
	Rows        uint16   `json:"rows,omitempty"`
	Cols        uint16   `json:"cols,omitempty"`
}

// State is where a sandbox is in its life.
type State string

const (
	StateCreated State = "created" // a keeper is starting
	StateRunning State = "running"
	StateExited  State = "exited"
	StateLost    State = "lost" // its keeper died; found by reconcile
)

// Exit codes of Creel itself, as Docker has them.
const (
	ExitCreel         = 125 // Creel failed, the task did not run or its end is unknown
	ExitNotExecutable = 126
	ExitNotFound      = 127
	ExitSignalBase    = 128 // plus the signal's number
	ExitOOM           = 137 // 128 + SIGKILL
)

// Status is what is known of a sandbox.
type Status struct {
	ID       ID     `json:"id"`
	Name     string `json:"name"`
	State    State  `json:"state"`
	ExitCode int    `json:"exitCode"` // valid once State is exited
	Error    string `json:"error,omitempty"`

	Paused    bool `json:"paused,omitempty"`
	OOMKilled bool `json:"oomKilled,omitempty"`
	TimedOut  bool `json:"timedOut,omitempty"`

	DiskFault string `json:"diskFault,omitempty"` // what the host's disk refused, in words

	CreatedAt  time.Time `json:"createdAt"`
	StartedAt  time.Time `json:"startedAt,omitzero"`
	FinishedAt time.Time `json:"finishedAt,omitzero"`

	TemplateDigest string      `json:"templateDigest,omitempty"`
	Confinement    Confinement `json:"confinement,omitempty"` // the level achieved
	Accel          Accel       `json:"accel,omitempty"`       // the one in use
	KeeperPID      int         `json:"keeperPid,omitempty"`
	VMMPID         int         `json:"vmmPid,omitempty"`

	MemoryPeakBytes  int64 `json:"memoryPeakBytes,omitempty"`
	DiskWrittenBytes int64 `json:"diskWrittenBytes,omitempty"`

	Ports   []Port   `json:"ports,omitempty"`   // with the host's ports that they got
	Denied  int64    `json:"denied,omitempty"`  // names, connections and requests
	Denials []Denial `json:"denials,omitempty"` // by destination, in order, at most 256
	Alerts  int64    `json:"alerts,omitempty"`
	// Troubles are failures of destinations, and placeholders that were sent
	// where they are not swapped, in order, at most 64.
	Troubles []Trouble `json:"troubles,omitempty"`
	BytesOut int64     `json:"bytesOut,omitempty"` // of allowed connections
	BytesIn  int64     `json:"bytesIn,omitempty"`
}
