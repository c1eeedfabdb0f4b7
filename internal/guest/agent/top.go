package agent

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"creel/internal/guest/api"
)

const (
	ticksPerSecond = 100        // USER_HZ, which is 100 on every architecture that Creel runs
	kernelThread   = 0x00200000 // PF_KTHREAD
	maxArgs        = 1 << 10    // bytes read of one command line
	maxAllArgs     = 96 << 10   // of all of them; as JSON they still fit into a message
)

// top lists the processes of the guest but for the kernel's and this one.
// Where there are too many words for one message, the last have no arguments.
func (a *Agent) top(procfs string) (api.TopReply, error) {
	entries, err := os.ReadDir(procfs)
	if err != nil {
		return api.TopReply{}, fmt.Errorf("list processes: %w", err)
	}
	uptime, err := uptimeOf(procfs)
	if err != nil {
		return api.TopReply{}, err
	}
	var pids []int
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil && pid != os.Getpid() {
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids)
	var reply api.TopReply
	names, room := a.userNames(), maxAllArgs
	for _, pid := range pids {
		p, err := processOf(filepath.Join(procfs, strconv.Itoa(pid)), uptime)
		if err != nil {
			continue // it has ended, or is the kernel's
		}
		if len(reply.Processes) == api.MaxProcesses {
			reply.More++
			continue
		}
		p.User = names[p.UID]
		for _, arg := range p.Args {
			room -= len(arg)
		}
		if room < 0 {
			p.Args = nil
		}
		reply.Processes = append(reply.Processes, p)
	}
	return reply, nil
}

func (a *Agent) userNames() map[int64]string {
	names := map[int64]string{}
	// Where the file cannot be read there are numbers, as in ps.
	a.eachRecord("/etc/passwd", 3, func(f []string) bool {
		if uid, ok := number(f[2]); ok && names[int64(uid)] == "" {
			names[int64(uid)] = f[0][:min(len(f[0]), 32)]
		}
		return true
	})
	return names
}

func uptimeOf(procfs string) (time.Duration, error) {
	data, err := os.ReadFile(filepath.Join(procfs, "uptime"))
	if err != nil {
		return 0, err
	}
	word, _, _ := strings.Cut(string(data), " ")
	seconds, err := strconv.ParseFloat(word, 64)
	return time.Duration(seconds * float64(time.Second)), err
}

var errKernel = errors.New("a thread of the kernel")

// processOf reads /proc/PID: see proc_pid_stat(5).
func processOf(dir string, uptime time.Duration) (api.Process, error) {
	var p api.Process
	data, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return p, err
	}
	open, closed := bytes.IndexByte(data, '('), bytes.LastIndexByte(data, ')') // the name may hold either
	if open < 0 || closed < open {
		return p, fmt.Errorf("%s/stat cannot be read", dir)
	}
	f := strings.Fields(string(data[closed+1:])) // from field 3 on
	if len(f) < 22 {
		return p, fmt.Errorf("%s/stat has %d fields", dir, len(f))
	}
	n := func(field int) int64 { v, _ := strconv.ParseInt(f[field-3], 10, 64); return v }
	if n(9)&kernelThread != 0 {
		return p, errKernel
	}
	pid, _ := strconv.Atoi(filepath.Base(dir))
	ticks := func(field int) time.Duration { return time.Duration(n(field)) * time.Second / ticksPerSecond }
	p = api.Process{
		PID: pid, Parent: int(n(4)), State: f[0], TTY: terminal(n(7)), Threads: int(n(20)),
		CPUMilliseconds: (ticks(14) + ticks(15)).Milliseconds(), AgeMilliseconds: max(uptime-ticks(22), 0).Milliseconds(),
		RSSBytes: n(24) * int64(os.Getpagesize()), VirtualBytes: n(23), Name: string(data[open+1 : closed]),
	}
	info, err := os.Stat(dir)
	if err != nil {
		return p, err
	}
	p.UID = int64(info.Sys().(*syscall.Stat_t).Uid)
	p.Args, err = argsOf(dir)
	return p, err
}

// terminal names a controlling terminal by its device number; "" for none.
func terminal(dev int64) string {
	major, minor := dev>>8&0xfff, dev&0xff|dev>>12&0xfff00
	switch {
	case dev == 0:
		return ""
	case major >= 136 && major <= 143: // Unix98 pseudo terminals
		return fmt.Sprintf("pts/%d", (major-136)<<8|minor)
	}
	return fmt.Sprintf("%d,%d", major, minor)
}

func argsOf(dir string) ([]string, error) {
	f, err := os.Open(filepath.Join(dir, "cmdline"))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxArgs))
	if err != nil || len(data) == 0 {
		return nil, err
	}
	return strings.Split(strings.TrimSuffix(string(data), "\x00"), "\x00"), nil
}
