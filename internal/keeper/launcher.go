package keeper

import (
	"errors"
	"fmt"
	"net"
	"os"

	"creel/internal/boundary"
	"creel/internal/sandbox"
)

// Published makes published ports of the sockets that a launcher handed over
// for them, and closes the files.
func Published(ports []sandbox.Port, files []*os.File) ([]boundary.Port, error) {
	var out []boundary.Port
	for i, p := range ports {
		port, err := published(files[i], p)
		if err != nil {
			return nil, err
		}
		out = append(out, port)
	}
	return out, nil
}

func published(f *os.File, p sandbox.Port) (boundary.Port, error) {
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
