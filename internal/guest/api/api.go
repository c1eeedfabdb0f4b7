// Package api is what the host and the guest agent say to each other: the
// operations and their messages, as JSON bodies on the streams of package
// wire. docs/format/guest-protocol.md is the same in prose.
//
// Only the host opens streams. Each operation is one stream: its name and
// request in the opening frame, then messages and data, then the end. Both
// sides decode strictly, and neither trusts the other: the agent runs beside
// hostile code, and the host's first message makes a clone what it is.
//
// The package holds data only and must not import anything of ours but
// sandbox.
package api

import (
	"errors"
	"fmt"

	"creel/internal/sandbox"
)

// Version of this protocol. A host and an agent of different versions do not
// talk: the agent is part of the template, and the template is rebuilt.
const Version = 2

// Operations, each the op of a stream that the host opens.
const (
	OpHello    = "hello"    // HelloRequest → HelloReply
	OpPing     = "ping"     // Empty → Reply; a sign of life, or what keeps the agent from its work
	OpFreeze   = "freeze"   // FreezeRequest → Reply; the agent is ready to be frozen when it has answered
	OpPrepare  = "prepare"  // Identity → Reply; of nobody: all that an identity needs is done once, and can be done again; before it, or never
	OpIdentity = "identity" // Identity → Reply; makes a clone fresh; once, before anything else in a clone
	OpExec     = "exec"     // sandbox.Process → ExecReply, streams, ExecControl, ExecExit
	OpClock    = "clock"    // ClockRequest → Reply
	OpCopyIn   = "copy-in"  // CopyRequest, tar on ChannelIn → Reply
	OpCopyOut  = "copy-out" // CopyRequest → Reply, then tar on ChannelOut
	OpStat     = "stat"     // CopyRequest → StatReply
	OpUsage    = "usage"    // Empty → UsageReply
	OpTop      = "top"      // Empty → TopReply
	OpShutdown = "shutdown" // Empty → Reply: every file system synced, task processes gone
)

// Data channels of a stream.
const (
	ChannelIn  = 0 // host to guest: stdin, or a tar
	ChannelOut = 1 // guest to host: stdout (all of it with a TTY), or a tar
	ChannelErr = 2 // guest to host: stderr
)

// Disk roles, the virtio-blk serials of the machine's disks in device order.
const (
	DiskRoot      = "root"      // read-only image
	DiskScratch   = "scratch"   // ext4, read-write
	DiskWorkspace = "workspace" // read-only
	DiskSpareRO   = "spare-ro"
	DiskSpareRW   = "spare-rw"
)

// Port names of the machine's virtio-serial ports.
const (
	PortControl = "ctl"
	PortShare   = "fs"
)

// Empty is a request or event without content.
type Empty struct{}

// Code classes an [Error] so that a caller can act on it.
type Code string

const (
	CodeInternal      Code = "internal"
	CodeInvalid       Code = "invalid"
	CodeNotFound      Code = "not-found"      // exec: 127
	CodeNotExecutable Code = "not-executable" // exec: 126
	CodeNotReady      Code = "not-ready"      // an operation before identity, or identity twice
	CodeNoSpace       Code = "no-space"
)

// Error is a refusal by the agent.
type Error struct {
	Code    Code   `json:"code"`
	Step    string `json:"step,omitempty"` // of identity: which step failed
	Message string `json:"message"`
}

func (e *Error) Error() string {
	if e.Step != "" {
		return fmt.Sprintf("%s: %s", e.Step, e.Message)
	}
	return e.Message
}

// ErrorCode is the class of the [Error] in err's chain, or CodeInternal.
func ErrorCode(err error) Code {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Code
	}
	return CodeInternal
}

// Reply ends operations that return nothing but success or an error.
type Reply struct {
	Error *Error `json:"error,omitempty"`
}

// HelloRequest is the host's first word to an agent that has just booted.
type HelloRequest struct {
	Version int `json:"version"`
}

// HelloReply is the sign of life.
type HelloReply struct {
	Error   *Error `json:"error,omitempty"`
	Version int    `json:"version"`
	Kernel  string `json:"kernel"` // uname -r
}

// FreezeRequest mounts what a template has mounted and settles the guest.
type FreezeRequest struct {
	// Clock waits, for a few seconds at most, until the kernel has chosen its
	// clock for good, which it does a second after its boot: else each clone
	// would do so, and tick until then.
	Clock bool `json:"clock,omitempty"`
}

// Identity makes a clone fresh, before the first instruction of task code.
// The agent performs the steps in the order of [IdentitySteps] and stops at
// the first that fails.
type Identity struct {
	Version   int    `json:"version"`
	Seed      []byte `json:"seed"`     // 64 bytes, credited and reseeded
	UnixNano  int64  `json:"unixNano"` // host's clock
	Hostname  string `json:"hostname"`
	MachineID string `json:"machineId"` // 32 hexadecimal digits
	Hosts     string `json:"hosts"`     // /etc/hosts, whole
	Resolv    string `json:"resolv"`    // /etc/resolv.conf, whole

	CACertificate string   `json:"caCertificate,omitempty"` // PEM; added to the trust stores found
	Env           []string `json:"env,omitempty"`           // under every process's own environment

	Files []File `json:"files,omitempty"` // made before the mounts

	ReadOnlyRoot bool              `json:"readOnlyRoot,omitempty"`
	Mounts       []sandbox.Mount   `json:"mounts,omitempty"`
	Limits       sandbox.Resources `json:"limits"`

	// FailStep makes the agent fail that step: tests of "fails closed".
	FailStep string `json:"failStep,omitempty"`
}

// File is one that a clone is given. It is readable by every user of the
// sandbox, and belongs to root.
type File struct {
	Path string `json:"path"` // absolute, cleaned
	Text string `json:"text"`
}

// IdentitySteps are the steps of [Identity] in order, as Error.Step names them.
var IdentitySteps = []string{"random", "clock", "root", "hostname", "machine-id", "files", "trust", "mounts", "limits"}

// ExecReply answers OpExec once the process runs, or says why not.
type ExecReply struct {
	Error *Error `json:"error,omitempty"`
	PID   int    `json:"pid"` // in the guest
}

// ExecControl is sent by the host on an exec's stream. Exactly one is set.
type ExecControl struct {
	Signal int     `json:"signal,omitempty"` // 1 to 64
	Resize *Resize `json:"resize,omitempty"`
	// Detach is for a keeper alone, from its client: the process goes on with
	// its streams open when the client has gone.
	Detach bool `json:"detach,omitempty"`
}

// Resize is a terminal's new size in character cells.
type Resize struct {
	Rows uint16 `json:"rows"`
	Cols uint16 `json:"cols"`
}

// ExecExit is the last message on an exec's stream, after both output
// channels have ended.
type ExecExit struct {
	Error     *Error `json:"error,omitempty"`  // how it ended is not known, and this is why
	Code      int    `json:"code"`             // 0 to 255; 128+n where a signal ended it
	Signal    int    `json:"signal,omitempty"` // the one that ended it
	OOMKilled bool   `json:"oomKilled,omitempty"`
}

// ClockRequest sets the guest's clock.
type ClockRequest struct {
	UnixNano int64 `json:"unixNano"`
}

// CopyRequest names a path in the sandbox, resolved inside its root.
type CopyRequest struct {
	Path string `json:"path"`
	// NoOverwriteDirNonDir refuses to replace a directory by a file or a file
	// by a directory, as the Docker Engine API has it.
	NoOverwriteDirNonDir bool `json:"noOverwriteDirNonDir,omitempty"`
}

// StatReply describes one path without following its last symlink.
type StatReply struct {
	Error      *Error `json:"error,omitempty"`
	Name       string `json:"name"`
	Size       int64  `json:"size"`
	Mode       uint32 `json:"mode"`  // Go fs.FileMode bits
	MTime      int64  `json:"mtime"` // Unix seconds
	LinkTarget string `json:"linkTarget,omitempty"`
}

// UsageReply is what the task has used so far.
type UsageReply struct {
	Error            *Error `json:"error,omitempty"`
	MemoryPeakBytes  int64  `json:"memoryPeakBytes"`
	MemoryBytes      int64  `json:"memoryBytes"`
	CPUMicroseconds  int64  `json:"cpuMicroseconds"`
	PIDs             int64  `json:"pids"`
	DiskWrittenBytes int64  `json:"diskWrittenBytes"` // of the writable layer
	OOMKills         int64  `json:"oomKills"`
}

// MaxProcesses are told of at most.
const MaxProcesses = 1024

// TopReply has the processes of the sandbox, in the order of their numbers,
// without the kernel's and the agent's own.
type TopReply struct {
	Error     *Error    `json:"error,omitempty"`
	Processes []Process `json:"processes,omitempty"`
	// More is how many there are beyond [MaxProcesses].
	More int `json:"more,omitempty"`
}

// Process is one process in the sandbox, as the guest's kernel tells it.
type Process struct {
	PID     int    `json:"pid"`
	Parent  int    `json:"parent"`
	UID     int64  `json:"uid"`
	User    string `json:"user,omitempty"` // "": the image has no name for it
	State   string `json:"state"`          // a letter, as ps has it
	TTY     string `json:"tty,omitempty"`  // such as pts/0
	Threads int    `json:"threads"`

	CPUMilliseconds int64 `json:"cpuMs"`
	AgeMilliseconds int64 `json:"ageMs"`
	RSSBytes        int64 `json:"rssBytes"`
	VirtualBytes    int64 `json:"virtualBytes"`

	Name string   `json:"name"`
	Args []string `json:"args,omitempty"`
}
