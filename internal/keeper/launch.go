package keeper

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"creel/internal/audit"
	"creel/internal/boundary"
	"creel/internal/keeper/socket"
	"creel/internal/sandbox"
	"creel/internal/secret"

	"golang.org/x/sys/unix"
)

// Launch is all that a launcher hands to a keeper process, by pipe.
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

	Lock      *os.File        `json:"-"` // says that the sandbox is looked after, while it is open
	Published []boundary.Port `json:"-"`
	Grants    []secret.Grant  `json:"-"`
}

// Handed gives a keeper what its launcher has for it, by its place.
type Handed func(place int) *os.File

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

// Inherited is [Handed] of a process that its launcher has started.
func Inherited(place int) *os.File {
	const first = 3
	unix.CloseOnExec(first + place) // none is for the VMM or the holder
	return os.NewFile(uintptr(first+place), fmt.Sprintf("launch %d", place))
}

const maxLaunchBytes = 4 << 20

// ReadLaunch reads what the launcher handed over, and returns its connection.
func ReadLaunch(handed Handed) (Launch, net.Conn, error) {
	l := Launch{Lock: handed(placeLock)}
	config, conn, secrets := handed(placeConfig), handed(placeConn), handed(placeSecrets)
	defer config.Close()
	defer conn.Close()
	defer secrets.Close()
	dec := json.NewDecoder(io.LimitReader(config, maxLaunchBytes))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&l); err != nil {
		return l, nil, fmt.Errorf("read keeper configuration: %w; a keeper is started by creel itself", err)
	}
	if l.Version != socket.Version {
		return l, nil, fmt.Errorf("keeper configuration has version %d, this creel knows %d", l.Version, socket.Version)
	}
	var err error
	if l.Grants, err = secret.ReadGrants(secrets); err != nil {
		return l, nil, err
	}
	for i, p := range l.Ports {
		port, err := inherit(handed(placePorts+i), p)
		if err != nil {
			return l, nil, err
		}
		l.Published = append(l.Published, port)
	}
	launcher, err := net.FileConn(conn)
	if err != nil {
		return l, nil, fmt.Errorf("use the launcher's connection: %w", err)
	}
	return l, launcher, nil
}

// inherit makes a published port of what was handed over for it.
func inherit(f *os.File, p sandbox.Port) (boundary.Port, error) {
	defer f.Close()
	out := boundary.Port{Guest: p.GuestPort}
	var err error
	if p.Proto == "udp" {
		out.Datagram, err = net.FilePacketConn(f)
	} else {
		out.Stream, err = net.FileListener(f)
	}
	if err != nil {
		return out, fmt.Errorf("use the socket of port %s: %w", p, err)
	}
	return out, nil
}

// ServeLauncher answers the launcher, whose end before the task runs is the
// run's end: nobody is left to start it. A task in the foreground ends with its
// launcher at any time, since nobody else knows of it.
func (r *Run) ServeLauncher(conn net.Conn) { r.serve(conn, r.launcherGone) }

func (r *Run) launcherGone() {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.isOver():
	case r.task == nil:
		r.endLocked(errors.New("its launcher ended before the task was started"))
	case !r.kept && !r.detached:
		r.abrupt = true
		r.endLocked(errors.New("its launcher ended, and a task in the foreground ends with it; start one that goes on with -d"))
	}
}
