package keeper

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"creel/internal/audit"

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
	Config     Config           `json:"config"`
}

// Descriptors that a keeper is started with. The third holds its lock, and is
// only kept open: the kernel gives the lock back when the keeper ends.
const (
	launchConfigFD = 3 + iota
	launchConnFD
	launchLockFD
)

const maxLaunchBytes = 4 << 20

// ReadLaunch reads what the launcher handed over, and returns its connection.
func ReadLaunch() (Launch, net.Conn, error) {
	var l Launch
	for fd := launchConfigFD; fd <= launchLockFD; fd++ {
		unix.CloseOnExec(fd) // none of them is for the VMM or the holder
	}
	config := os.NewFile(launchConfigFD, "config")
	defer config.Close()
	dec := json.NewDecoder(io.LimitReader(config, maxLaunchBytes))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&l); err != nil {
		return l, nil, fmt.Errorf("read keeper configuration: %w; a keeper is started by creel itself", err)
	}
	if l.Version != Version {
		return l, nil, fmt.Errorf("keeper configuration has version %d, this creel knows %d", l.Version, Version)
	}
	f := os.NewFile(launchConnFD, "launcher")
	defer f.Close()
	conn, err := net.FileConn(f)
	if err != nil {
		return l, nil, fmt.Errorf("use the launcher's connection: %w", err)
	}
	return l, conn, nil
}

// ServeLauncher answers the launcher, whose end before the task runs is the
// run's end: nobody is left to start it.
func (r *Run) ServeLauncher(conn net.Conn) {
	r.serve(conn, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.task == nil {
			r.endLocked(errors.New("its launcher ended before the task was started"))
		}
	})
}
