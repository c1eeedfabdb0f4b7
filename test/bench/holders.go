package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// holderDeadline is how long a holder that was killed may take to be gone.
const holderDeadline = 10_000 // milliseconds

// holders are the processes that hold templates of the bench's own state.
func (r *rig) holders() ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil && r.isHolder(pid) {
			pids = append(pids, pid)
		}
	}
	return pids, nil
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
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue // it has ended
		}
		if r.isHolder(pid) {
			errs = append(errs, endProcess(fd, pid))
		}
		unix.Close(fd)
	}
	return errors.Join(errs...)
}

func endProcess(fd, pid int) error {
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("end holder %d: %w", pid, err)
	}
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, holderDeadline)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err == nil && n == 0 {
			err = errors.New("it does not end")
		}
		if err != nil {
			return fmt.Errorf("wait for holder %d: %w", pid, err)
		}
		return nil
	}
}
