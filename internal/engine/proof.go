package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"creel/internal/audit"
	"creel/internal/audit/event"
	"creel/internal/keeper/socket"

	"golang.org/x/sys/unix"
)

// killGrace is how long a process may take to end that was killed.
const killGrace = 5 * time.Second

// proveGone looks for what could be left of a run that has ended, and puts
// what it finds on record. Of a kept sandbox the directory is meant to stay.
func (e *Engine) proveGone(ctx context.Context, rec Record, kept bool) error {
	id := rec.Config.Spec.ID
	dir := e.SandboxDir(id)
	found := event.Cleanup{}
	look := func(what string, left []string, err error) {
		if err != nil {
			return // what could not be looked at is not said to be gone
		}
		found.Checked = append(found.Checked, what)
		found.Left = append(found.Left, left...)
	}
	if rec.UID != 0 {
		left, err := processesOf(rec.UID, killGrace)
		look("processes", left, err)
	}
	left, err := mountsBelow(dir)
	look("mounts", left, err)
	if kept {
		found.Kept = []string{"record", "logs", "disk"}
		left, err = there(filepath.Join(e.KeeperDir(id), socket.Name))
		look("socket", left, err)
	} else {
		left, err = there(dir)
		look("directory", left, err)
	}
	found.Complete = len(found.Left) == 0
	return e.opts.Ledger.Append(context.WithoutCancel(ctx), audit.Event{Kind: audit.KindCleanup, Sandbox: string(id), Data: found})
}

func there(path string) ([]string, error) {
	_, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return []string{filepath.Base(path)}, err
}

// processesOf lists the processes of a user whom only one sandbox has. One that
// was killed a moment ago is given grace to end; one that only waits for its
// parent to ask after it has ended.
func processesOf(uid int, grace time.Duration) (left []string, err error) {
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

// mountsBelow lists this namespace's mounts in a directory.
func mountsBelow(dir string) (left []string, err error) {
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
