package engine

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"creel/internal/audit"
	"creel/internal/audit/event"
	"creel/internal/engine/remains"
	"creel/internal/engine/store"
	"creel/internal/keeper/launch"
)

// answersIn is how long a keeper may take to end its run when it is told to,
// before it is ended from outside.
const answersIn = 30 * time.Second

// instance is one process, whatever becomes of its number: no other that was
// started at that moment of that boot had the number.
type instance struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // clock ticks after the boot
	Boot  string `json:"boot"`  // its ID
}

// errGone is of a process that has ended.
var errGone = errors.New("it has ended")

// identify is of a process that cannot be reaped meanwhile.
func identify(pid int) (instance, error) {
	_, start, err := readStat(pid)
	if err != nil {
		return instance{}, err
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return instance{pid, start, strings.TrimSpace(string(boot))}, err
}

// readStat is a process's parent and when it was started.
func readStat(pid int) (parent int, start uint64, err error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0, err
	}
	// The name, in parentheses, may hold anything.
	fields := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
	if len(fields) < 20 {
		return 0, 0, fmt.Errorf("process %d: cannot read %q", pid, data)
	}
	parent, err = strconv.Atoi(fields[1])
	if err == nil {
		start, err = strconv.ParseUint(fields[19], 10, 64)
	}
	return parent, start, err
}

// open returns a descriptor of the process, which is it and no other: what has
// its number is looked at once the descriptor holds it.
func (p instance) open() (*os.File, error) {
	fd, err := unix.PidfdOpen(p.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil, errGone
	}
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", p.PID, err)
	}
	f := os.NewFile(uintptr(fd), "process")
	now, err := identify(p.PID)
	if err == nil && now == p {
		return f, nil
	}
	f.Close()
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ESRCH) {
		return nil, fmt.Errorf("look at process %d: %w", p.PID, err)
	}
	return nil, errGone
}

// noteKeeper writes down which process is the keeper of the sandbox in dir: who
// launches it does, outside of what the keeper can write. What a keeper says of
// itself is not believed.
func noteKeeper(dir string, p instance) error {
	data, err := json.Marshal(p)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, store.ProcessName), data, 0o600) // a reboot makes it worthless
	}
	if err != nil {
		return fmt.Errorf("note the keeper's process: %w", err)
	}
	return nil
}

// endKeeper ends a sandbox's keeper from outside, and all that it has started.
// The caller tries the sandbox's lock to see whether that was all.
func (e *Engine) endKeeper(ctx context.Context, rec store.Record) error {
	id := rec.Config.Spec.ID
	family, err := endFamily(e.store.Dir(id))
	others, left := e.endUser(rec.UID)
	if err = errors.Join(err, left); family+others == 0 {
		return err // nobody was there
	}
	about := audit.Event{Kind: audit.KindSignal, Sandbox: string(id), Data: event.Signal{Signal: int(unix.SIGKILL), Target: "keeper"}}
	if recorded := e.opts.Ledger.Append(context.WithoutCancel(ctx), about); recorded != nil {
		e.opts.Log.Warn("that the keeper was ended is not on record", "sandbox", id.Short(), "err", recorded)
	}
	return err
}

// endFamily ends the keeper of the sandbox in dir, and what it has started. If a
// holder is among that, the next run starts another. It returns how many were
// sent a signal.
func endFamily(dir string) (ended int, err error) {
	data, err := os.ReadFile(filepath.Join(dir, store.ProcessName))
	if err != nil {
		return 0, fmt.Errorf("find the keeper's process: %w; find it by its open file %s, and end it", err, filepath.Join(dir, launch.LockName))
	}
	var keeper instance
	if err := json.Unmarshal(data, &keeper); err != nil {
		return 0, fmt.Errorf("read %s: %w", store.ProcessName, err)
	}
	main, err := keeper.open()
	if errors.Is(err, errGone) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	errs := []error{send(main, unix.SIGSTOP)} // it starts no more of them
	family := append(descendants(keeper.PID), main)
	for _, f := range family {
		errs = append(errs, send(f, unix.SIGKILL))
	}
	for _, f := range family {
		errs = append(errs, awaitProcess(f, killGrace), f.Close())
	}
	return len(family), errors.Join(errs...)
}

// send sends a signal to the process that f holds; one that has ended needs
// none.
func send(f *os.File, signal unix.Signal) error {
	err := unix.PidfdSendSignal(int(f.Fd()), signal, nil, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}

func awaitProcess(f *os.File, within time.Duration) error {
	ended, err := remains.Ends(f, within)
	if err == nil && !ended {
		err = fmt.Errorf("a process did not end within %s of SIGKILL; the kernel holds it", within)
	}
	return err
}

// descendants holds all that a process has started, and what those have.
func descendants(of int) (out []*os.File) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	children := map[int][]instance{}
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		if parent, _, err := readStat(pid); err == nil {
			if p, err := identify(pid); err == nil {
				children[parent] = append(children[parent], p)
			}
		}
	}
	for wave := children[of]; len(wave) > 0; {
		var next []instance
		for _, p := range wave {
			if f, err := p.open(); err == nil {
				out = append(out, f)
			}
			next = append(next, children[p.PID]...)
		}
		wave = next
	}
	return out
}

// endUser ends every process of a user whom only one sandbox has, and returns
// how many there were.
func (e *Engine) endUser(uid int) (ended int, err error) {
	if !store.OwnUser(uid) {
		return 0, nil // the user's own
	}
	var errs []error
	err = remains.EachProcess(uid, func(_ int, process *os.File) {
		errs = append(errs, send(process, unix.SIGKILL), awaitProcess(process, killGrace))
		ended++
	})
	return ended, errors.Join(append(errs, err)...)
}
