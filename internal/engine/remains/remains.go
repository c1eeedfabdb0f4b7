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
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	of := fmt.Appendf(nil, "\nUid:\t%d\t", uid)
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		status, err := os.ReadFile(filepath.Join("/proc", e.Name(), "status"))
		if err != nil || !bytes.Contains(status, of) || bytes.Contains(status, []byte("\nState:\tZ")) {
			continue // not there any more, or not its
		}
		if !ends(pid, grace) {
			left = append(left, "process "+e.Name())
		}
	}
	return left, nil
}

// ends waits for the end of a process.
func ends(pid int, within time.Duration) bool {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return errors.Is(err, unix.ESRCH)
	}
	defer unix.Close(fd)
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(within.Milliseconds()))
		if !errors.Is(err, unix.EINTR) {
			return n == 1
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
