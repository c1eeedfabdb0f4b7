// Package vm says what a machine is: [Config] as plain data, a [Driver] that
// starts one from it, the [Machine] that runs, and optional abilities such as
// [Snapshotter]. vm/qemu is the driver in use; vm/vmtest holds the conformance
// suite that every driver passes and a driver in memory for tests of others.
//
// The package must not know images, policy or tasks, and must not do anything.
package vm

import (
	"context"
	"net"
	"os"
	"time"

	"creel/internal/sandbox"
)

// Shape is a size of machine. Templates exist for the rungs of [Ladder].
type Shape struct {
	MemoryMiB int `json:"memoryMiB"`
	VCPUs     int `json:"vcpus"`
}

// Disk is one virtio-blk device. All machines have the same disks in the same
// order with the same kinds; a device without a file is a placeholder, so that
// a template's device set equals its clones'.
type Disk struct {
	Serial           string   // role, at most 20 bytes
	ReadOnly         bool     // negotiated with the guest: never differs between template and clone
	File             *os.File // nil: placeholder
	PlaceholderBytes int64    // size without a file; a guest that was frozen with it is told of another
}

// Config is a machine as data. The driver owns nothing of it: files stay the
// caller's, who may close them once Start has returned.
type Config struct {
	Shape Shape
	Accel sandbox.Accel // kvm or tcg, never auto
	CPU   string        // model that the guest sees, the same in template and clone; "": the driver's default
	Disks []Disk

	// Memory backs the guest's RAM; its size is Shape.MemoryMiB. Where Restore
	// is nil it is mapped shared (the template writes it), else privately.
	Memory *os.File

	// Boot: all three set, Restore nil.
	Kernel  *os.File // PVH ELF
	Initrd  *os.File
	Cmdline string

	// Restore is the device state that [Snapshotter] wrote.
	Restore *os.File

	Confinement Confinement
}

// Confinement is how the VMM is locked in.
type Confinement struct {
	Level sandbox.Confinement
	// UID and GID are what the VMM becomes where the caller is root; ignored
	// otherwise. Never 0 where the caller is root.
	UID, GID int
	// Dir is an empty directory that the VMM's private mount namespace may be
	// built on. Nothing is left in it.
	Dir string
}

// Driver starts machines.
type Driver interface {
	// Start returns once the machine runs: booting, or restored and going on
	// from where its template was frozen. On error nothing is left of it. The
	// machine outlives ctx; it ends by Close, by itself, or when the calling
	// process dies, however that happens.
	Start(ctx context.Context, c Config) (Machine, error)
}

// Machine is one running VM. Its connections are open from the start, and what
// the guest writes to them is not lost; each is for one user.
type Machine interface {
	Control() net.Conn // virtio-serial port "ctl"
	Share() net.Conn   // virtio-serial port "fs"
	Network() net.Conn // Ethernet frames, each behind its length as 4 bytes big-endian
	PID() int          // the VMM's process in the caller's namespace, 0 if it has none

	// Done is closed when the machine has ended; Err then says how: nil after
	// Close or a power-off by the guest, a [*GuestEnded] where the guest has ended
	// it otherwise, else how the VMM ended, with its last words.
	Done() <-chan struct{}
	Err() error
	// Close ends the machine at once and waits until nothing is left of it.
	// Closing twice is allowed.
	Close() error
}

// GuestEnded is the end of a machine that its guest has ended, but for a
// power-off.
type GuestEnded struct {
	How      string // a sentence without a full stop; what the guest said is quoted in it
	Panicked bool   // its kernel gave up; else it rebooted
}

func (e *GuestEnded) Error() string { return e.How }

// Snapshotter is a [Machine] that can be frozen.
type Snapshotter interface {
	// Snapshot writes the device state to an empty file. The guest's RAM is in
	// Config.Memory when it has returned. The machine does not go on; Close it.
	Snapshot(ctx context.Context, state *os.File) error
}

// Prober is a [Machine] whose VMM can be asked about it.
type Prober interface {
	// Probe waits for the VMM's answer, for which a busy host may keep it waiting.
	Probe(ctx context.Context) (Vitals, error)
}

// Vitals are what is known of a machine without its guest.
type Vitals struct {
	Running bool          // its virtual CPUs are meant to run
	CPU     time.Duration // that it has used so far; 0 where that is not known
}

// Faulter is a [Machine] that tells of the host's disk errors, which its guest
// gets as errors of its own disks.
type Faulter interface {
	// Faults has the first fault that nobody has heard of yet; it is never closed.
	Faults() <-chan Fault
}

// Fault is an access to a disk that the host refused.
type Fault struct {
	Disk    string // its serial
	Write   bool
	NoSpace bool // the host's disk is full
}

// Pauser is a [Machine] whose virtual CPUs can be stopped and resumed.
type Pauser interface {
	Pause(ctx context.Context) error
	Resume(ctx context.Context) error
}
