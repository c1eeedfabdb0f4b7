// Package launch is what passes from a launcher to a keeper: the [Config] of
// the run, which says all that the keeper does, and the descriptors that come
// with it, in one order for every way of starting a keeper. [Order.Give] is the
// launcher's side, [Read] the keeper's. The package must not start a process and
// must not know what a run does.
package launch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"creel/internal/audit"
	"creel/internal/keeper/socket"
	"creel/internal/sandbox"
	"creel/internal/secret"
	"creel/internal/vm"
)

// Names in a sandbox's directory that both sides know; docs/format/state.md has
// them all.
const (
	LockName = "keeper.lock" // held by who looks after the sandbox
	LogName  = "keeper.log"
	DiskName = "scratch.img"
)

// Config is what a launcher decides before the keeper starts.
type Config struct {
	Spec       sandbox.Spec    `json:"spec"`
	Process    sandbox.Process `json:"process"`
	StopSignal int             `json:"stopSignal"` // 1 to 64
	Template   string          `json:"template"`   // digest
	Shape      vm.Shape        `json:"shape"`
	Accel      sandbox.Accel   `json:"accel"`

	// Helper makes this a run without a task, for the files of a sandbox that
	// has ended; its status stays what it was.
	Helper bool `json:"helper,omitempty"`
}

// Launch is all that a launcher writes to a keeper process, by pipe.
type Launch struct {
	Version    int              `json:"version"`
	StateDir   string           `json:"stateDir"`
	SandboxDir string           `json:"sandboxDir"` // what is opened before the keeper locks itself in
	Dir        string           `json:"dir"`        // the keeper's own directory
	UID        int              `json:"uid"`        // to become once everything is open; 0: stay
	OwnerUID   int              `json:"ownerUid"`   // who may connect, beside root
	AuditDir   string           `json:"auditDir"`   // of this run's log, in SandboxDir
	AuditKey   audit.SandboxKey `json:"auditKey"`
	Ports      []sandbox.Port   `json:"ports,omitempty"` // whose sockets are handed over, in order
	Config     Config           `json:"config"`

	// Environ is the keeper's environment. It comes by pipe, so that it is not
	// in /proc, and since a keeper may have been there before its launcher.
	Environ []string `json:"environ,omitempty"`
}

// Order is a Launch with what cannot be written. Its files stay the caller's.
type Order struct {
	Launch Launch
	Grants []secret.Grant
	Conn   *os.File   // the keeper's end of its launcher's connection
	Lock   *os.File   // says that the sandbox is looked after, while it is open
	Ports  []*os.File // the sockets of Launch.Ports
}

// Places of what a launcher hands over, in order. The lock is only kept open:
// the kernel gives it back when the keeper ends. Secrets come by a pipe of
// their own; sockets of published ports follow.
const (
	placeConfig = iota
	placeConn
	placeLock
	placeSecrets
	placePorts
)

// Give hands over an order. Start gives the files to a keeper, in that order; it
// may leave copies of them to it. A keeper that does not read is not waited for
// beyond ctx; one that dies breaks the pipe, and does not block it.
func (o Order) Give(ctx context.Context, start func(files []*os.File) error) error {
	o.Launch.Version = socket.Version
	text, err := json.Marshal(o.Launch)
	if err != nil {
		return fmt.Errorf("encode keeper configuration: %w", err)
	}
	config, configIn, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("make pipe: %w", err)
	}
	defer configIn.Close()
	secrets, secretsIn, err := os.Pipe()
	if err != nil {
		config.Close()
		return fmt.Errorf("make pipe: %w", err)
	}
	defer secretsIn.Close()
	err = start(append([]*os.File{config, o.Conn, o.Lock, secrets}, o.Ports...))
	config.Close()
	secrets.Close()
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() {
		configIn.SetWriteDeadline(time.Unix(1, 0))
		secretsIn.SetWriteDeadline(time.Unix(1, 0))
	})()
	_, err = configIn.Write(text)
	configIn.Close()
	if err == nil {
		err = secret.WriteGrants(secretsIn, o.Grants)
	}
	if err != nil {
		return fmt.Errorf("configure keeper: %w", errors.Join(context.Cause(ctx), err))
	}
	return nil
}

// Handed gives a keeper what its launcher has for it, by its place.
type Handed func(place int) *os.File

// Inherited is [Handed] of a process that its launcher has started.
func Inherited(place int) *os.File {
	const first = 3
	unix.CloseOnExec(first + place) // none is for the VMM or the holder
	return os.NewFile(uintptr(first+place), fmt.Sprintf("launch %d", place))
}

// Files is [Handed] of a process that was there before its launcher.
func Files(files []*os.File) Handed {
	return func(place int) *os.File {
		if place >= len(files) {
			return nil // closed, for all who use it
		}
		return files[place]
	}
}

const maxLaunchBytes = 4 << 20

// Received is what a keeper begins with.
type Received struct {
	Launch
	Grants []secret.Grant
	Conn   net.Conn   // to the launcher
	Lock   *os.File   // given back by the kernel when the keeper ends
	Files  []*os.File // the sockets of Ports
}

// Read takes what the launcher handed over.
func Read(handed Handed) (Received, error) {
	r := Received{Lock: handed(placeLock)}
	config, conn, secrets := handed(placeConfig), handed(placeConn), handed(placeSecrets)
	defer config.Close()
	defer conn.Close()
	defer secrets.Close()
	dec := json.NewDecoder(io.LimitReader(config, maxLaunchBytes))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&r.Launch); err != nil {
		return r, fmt.Errorf("read keeper configuration: %w; a keeper is started by creel itself", err)
	}
	if r.Version != socket.Version {
		return r, fmt.Errorf("keeper configuration has version %d, this creel knows %d", r.Version, socket.Version)
	}
	var err error
	if r.Grants, err = secret.ReadGrants(secrets); err != nil {
		return r, err
	}
	for i := range r.Ports {
		r.Files = append(r.Files, handed(placePorts+i))
	}
	if r.Conn, err = net.FileConn(conn); err != nil {
		return r, fmt.Errorf("use the launcher's connection: %w", err)
	}
	return r, nil
}
