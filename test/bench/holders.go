package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"creel/internal/procs"

	"golang.org/x/sys/unix"
)

// holderDeadline is how long a holder that was killed may take to be gone.
const holderDeadline = 10 * time.Second

// holders are the processes that hold templates of the bench's own state.
func (r *rig) holders() ([]int, error) {
	pids, err := procs.All()
	return slices.DeleteFunc(pids, func(pid int) bool { return !r.isHolder(pid) }), err
}

func (r *rig) isHolder(pid int) bool {
	line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)) // one that has ended has none
	return isHolder(line, filepath.Join(r.state, "templates"))
}

// isHolder reports whether a process with this command line, each argument
// ended by a zero, holds a template of store.
func isHolder(cmdline []byte, store string) bool {
	args := strings.Split(string(cmdline), "\x00")
	i := slices.Index(args, "-store")
	return len(args) > 1 && args[1] == "holder" && i > 0 && i+1 < len(args) && args[i+1] == store
}

// endHolders kills them and waits until they are gone. No process but a holder
// can be hit: its number is tied down before it is looked at again.
func (r *rig) endHolders() error {
	pids, err := r.holders()
	errs := []error{err}
	for _, pid := range pids {
		process, err := procs.Open(pid)
		if err != nil {
			continue // it has ended
		}
		if r.isHolder(pid) {
			errs = append(errs, end(process))
		}
		process.Close()
	}
	return errors.Join(errs...)
}

func end(holder *procs.Handle) error {
	err := holder.Signal(unix.SIGKILL)
	ended := false
	if err == nil {
		ended, err = holder.Ends(holderDeadline)
	}
	if err == nil && !ended {
		err = errors.New("it goes on")
	}
	if err != nil {
		return fmt.Errorf("end holder %d: %w", holder.PID, err)
	}
	return nil
}
