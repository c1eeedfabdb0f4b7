package rig

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"creel/internal/procs"
)

// Kind is what a process of creel is.
type Kind string

// Kinds of processes; a front door is one that was started as a command.
const (
	Front  Kind = "front door"
	Keeper Kind = "keeper"
	Holder Kind = "holder"
	Stage  Kind = "stage"
	// Standby is one whose VM waits for a task, and the keeper that it becomes.
	Standby Kind = "standby"
	VMM     Kind = "VMM"
)

// Process is one that descends from the test.
type Process struct {
	PID, Parent int
	Kind        Kind
	Args        []string

	ended bool // and not reaped: still the parent of what it has started
}

func (p Process) String() string { return fmt.Sprintf("%s %d", p.Kind, p.PID) }

// Processes are the rig's own: those below this process that work on its state.
// What has ended and only waits to be reaped is not counted.
func (r *Rig) Processes() []Process {
	all := map[int]Process{}
	pids, _ := procs.All() // empty: the tests that look find nothing that they need
	for _, pid := range pids {
		if p, ok := readProcess(pid); ok {
			all[pid] = p
		}
	}
	var ours []Process
	for _, p := range all {
		if !p.ended && r.owns(p, all) {
			ours = append(ours, p)
		}
	}
	slices.SortFunc(ours, func(a, b Process) int { return a.PID - b.PID })
	return ours
}

// owns reports whether p descends from this process, and it or an ancestor
// names the rig's directory or runs its binary. A VMM whose keeper is gone
// names neither; it has no other mark and belongs to every rig of the test.
func (r *Rig) owns(p Process, all map[int]Process) bool {
	marked := p.Kind == VMM && p.Parent == os.Getpid()
	for depth := 0; depth < 32; depth++ {
		if p.PID == os.Getpid() {
			return marked
		}
		exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", p.PID)) // not to be had from what is undumpable
		marked = marked || exe == r.Creel || exe == "" || slices.ContainsFunc(p.Args, func(a string) bool { return strings.HasPrefix(a, r.dir) })
		parent, ok := all[p.Parent]
		if !ok {
			return false
		}
		p = parent
	}
	return false
}

func readProcess(pid int) (Process, bool) {
	stat, err := procs.ReadStat(pid)
	if err != nil {
		return Process{}, false
	}
	cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return Process{}, false
	}
	args := strings.Split(strings.TrimSuffix(string(cmdline), "\x00"), "\x00")
	return Process{PID: pid, Parent: stat.Parent, Kind: kindOf(args), Args: args, ended: stat.Ended}, true
}

func kindOf(args []string) Kind {
	switch {
	case strings.HasPrefix(filepath.Base(args[0]), "qemu-system"):
		return VMM
	case len(args) < 2:
		return Front
	case args[1] == "keeper":
		return Keeper
	case args[1] == "holder":
		return Holder
	case args[1] == "standby":
		return Standby
	case args[1] == "vmm-stage":
		return Stage
	}
	return Front
}

// Await waits until the processes have ended.
func Await(t testing.TB, processes ...Process) {
	t.Helper()
	deadline := time.Now().Add(Patience)
	for _, p := range processes {
		process, err := procs.Open(p.PID)
		if errors.Is(err, procs.ErrGone) {
			continue
		}
		if err != nil {
			t.Fatalf("watch %s: %v", p, err)
		}
		ended, err := process.Ends(max(0, time.Until(deadline)))
		process.Close()
		if !ended || err != nil {
			t.Fatalf("%s did not end within %s: %v", p, Patience, err)
		}
	}
}
