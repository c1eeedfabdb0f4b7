// Package procs is how Creel's processes find, watch and end one another
// without mistaking one for another that has its number by now, and how they are
// joined: [Handle] is a process that is held, [Instance] names one in a file,
// and [Pair] and [Peer] are the sockets between two.
//
// The package must not know what the processes do, and must not end one unless
// it is told to.
package procs

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ErrGone is of a process that has ended.
var ErrGone = errors.New("it has ended")

// Stat is what the kernel tells of a process.
type Stat struct {
	Parent int
	Ended  bool          // and its parent has not asked after it
	CPU    time.Duration // used so far
	Start  uint64        // clock ticks after the boot
}

// ReadStat asks for a process by its number.
func ReadStat(pid int) (Stat, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		err = ErrGone
	}
	if err != nil {
		return Stat{}, fmt.Errorf("look at process %d: %w", pid, err)
	}
	return ParseStat(data)
}

// ParseStat reads the content of /proc/PID/stat.
func ParseStat(data []byte) (Stat, error) {
	const tick = 10 * time.Millisecond // USER_HZ is 100 on x86-64
	// The name, in parentheses, may hold anything.
	fields := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
	if len(fields) < 20 {
		return Stat{}, fmt.Errorf("look at a process: cannot read %q", data)
	}
	parent, perr := strconv.Atoi(fields[1])
	user, uerr := strconv.ParseInt(fields[11], 10, 64)
	system, serr := strconv.ParseInt(fields[12], 10, 64)
	start, err := strconv.ParseUint(fields[19], 10, 64)
	if err = errors.Join(perr, uerr, serr, err); err != nil {
		return Stat{}, fmt.Errorf("look at a process: %w", err)
	}
	ended := fields[0] == "Z" || fields[0] == "X"
	return Stat{Parent: parent, Ended: ended, CPU: time.Duration(user+system) * tick, Start: start}, nil
}

// BootID is the ID of the host's present boot.
func BootID() (string, error) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read boot id: %w", err)
	}
	return strings.TrimSpace(string(id)), nil
}

// Instance is one process, whatever becomes of its number: no other that was
// started at that moment of that boot had the number.
type Instance struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // clock ticks after the boot
	Boot  string `json:"boot"`  // its ID
}

// Identify is of a process that cannot be reaped meanwhile.
func Identify(pid int) (Instance, error) {
	stat, err := ReadStat(pid)
	if err != nil {
		return Instance{}, err
	}
	boot, err := BootID()
	return Instance{pid, stat.Start, boot}, err
}

// Open holds the process, and no other: what has its number is looked at once it
// is held. The error is [ErrGone] where the process has ended.
func (i Instance) Open() (*Handle, error) {
	h, err := Open(i.PID)
	if err != nil {
		return nil, err
	}
	now, err := Identify(i.PID)
	if err == nil && now != i {
		err = ErrGone
	}
	if err != nil {
		h.Close()
		return nil, err
	}
	return h, nil
}

// Children maps each process of this host to those that it has started.
func Children() (map[int][]Instance, error) {
	pids, err := All()
	boot, berr := BootID()
	children := map[int][]Instance{}
	for _, pid := range pids {
		if stat, err := ReadStat(pid); err == nil { // else it has ended
			children[stat.Parent] = append(children[stat.Parent], Instance{pid, stat.Start, boot})
		}
	}
	return children, errors.Join(err, berr)
}

// All are the numbers of the processes that can be seen.
func All() (pids []int, err error) {
	entries, err := os.ReadDir("/proc")
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids, err
}

// EachOf calls do for each process of a user that has not ended. The handle is
// closed behind do.
func EachOf(uid int, do func(*Handle)) error {
	of := fmt.Appendf(nil, "\nUid:\t%d\t", uid)
	is := func(pid int) bool {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		return err == nil && bytes.Contains(status, of) && !bytes.Contains(status, []byte("\nState:\tZ"))
	}
	pids, err := All()
	errs := []error{err}
	for _, pid := range pids {
		if !is(pid) {
			continue
		}
		h, err := Open(pid)
		if err != nil {
			if !errors.Is(err, ErrGone) {
				errs = append(errs, err)
			}
			continue
		}
		if is(pid) { // still: the number may have been another's
			do(h)
		}
		h.Close()
	}
	return errors.Join(errs...)
}
