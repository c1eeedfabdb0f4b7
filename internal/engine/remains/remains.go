// Package remains looks for what could be left of a run that has ended:
// processes, mounts, files. The package must not end or remove anything.
package remains

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// File is the name of the file at path, where there is one.
func File(path string) ([]string, error) {
	_, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return []string{filepath.Base(path)}, err
}

// Processes lists the processes of a user whom only one sandbox has. One that
// was killed a moment ago is given grace to end; one that only waits for its
// parent to ask after it has ended.
func Processes(uid int, grace time.Duration) (left []string, err error) {
	err = EachProcess(uid, func(pid int, process *os.File) {
		if ended, err := Ends(process, grace); err != nil || !ended {
			left = append(left, "process "+strconv.Itoa(pid))
		}
	})
	return left, err
}

// EachProcess calls do for each process of a user that has not ended, with a
// descriptor that is it and no other that gets its number. The descriptor is
// closed behind do.
func EachProcess(uid int, do func(pid int, process *os.File)) error {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return err
	}
	of := fmt.Appendf(nil, "\nUid:\t%d\t", uid)
	is := func(pid int) bool {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		return err == nil && bytes.Contains(status, of) && !bytes.Contains(status, []byte("\nState:\tZ"))
	}
	var errs []error
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || !is(pid) {
			continue
		}
		fd, err := unix.PidfdOpen(pid, 0)
		if errors.Is(err, unix.ESRCH) {
			continue // it has ended
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("open process %d: %w", pid, err))
			continue
		}
		process := os.NewFile(uintptr(fd), "process")
		if is(pid) { // still: the number may have been another's
			do(pid, process)
		}
		process.Close()
	}
	return errors.Join(errs...)
}

// Ends waits for the end of the process that a descriptor is of.
func Ends(process *os.File, within time.Duration) (bool, error) {
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(process.Fd()), Events: unix.POLLIN}}, int(within.Milliseconds()))
		if !errors.Is(err, unix.EINTR) {
			return n == 1, err
		}
	}
}

// Mounts lists this namespace's mounts in a directory.
func Mounts(dir string) (left []string, err error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	for line := range bytes.Lines(data) {
		if fields := strings.Fields(string(line)); len(fields) > 4 && strings.HasPrefix(fields[4]+"/", dir+"/") {
			left = append(left, "mount "+fields[4])
		}
	}
	return left, nil
}
