package machine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"creel/internal/guest/api"
	"creel/internal/sandbox"
)

const (
	cgroupDir = "/sys/fs/cgroup"
	taskDir   = cgroupDir + "/task"
	cpuPeriod = 100000   // microseconds
	ownMemory = 24 << 20 // bytes left to kernel and agent at least,
	ownShare  = 20       // or this part of all memory
	poll      = time.Second / 10
)

// prepareCgroup makes the task's cgroup; its limits come with the identity.
func (m *Machine) prepareCgroup() error {
	if err := os.WriteFile(cgroupDir+"/cgroup.subtree_control", []byte("+cpu +memory +pids"), 0); err != nil {
		return err
	}
	if err := os.Mkdir(taskDir, 0o755); err != nil {
		return err
	}
	f, err := os.Open(taskDir)
	m.cgroup = f
	return err
}

// Rehearse implements the agent's Platform: the process is in a cgroup beside
// the task's.
func (m *Machine) Rehearse(run func(cgroup int) error) error {
	const dir = cgroupDir + "/rehearsal"
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	f, err := os.Open(dir)
	if err == nil {
		err = errors.Join(run(int(f.Fd())), f.Close())
	}
	_, uerr := m.Usage()
	return errors.Join(err, uerr, os.Remove(dir))
}

// limit sets what the task may use. Memory is always limited, so that a task
// that wants too much is killed in its cgroup and the agent lives.
func (m *Machine) limit(r sandbox.Resources) error {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return fmt.Errorf("size of memory: %w", err)
	}
	total := int64(info.Totalram) * int64(info.Unit)
	memory := total - max(ownMemory, total/ownShare)
	if r.MemoryBytes > 0 {
		memory = min(memory, r.MemoryBytes)
	}
	values := [][2]string{{"memory.max", strconv.FormatInt(memory, 10)}}
	if r.PIDs > 0 {
		values = append(values, [2]string{"pids.max", strconv.FormatInt(r.PIDs, 10)})
	}
	// As many as there are is no limit, and would cost a timer.
	if r.CPUs > 0 && r.CPUs < float64(runtime.NumCPU()) {
		values = append(values, [2]string{"cpu.max", fmt.Sprintf("%d %d", int64(r.CPUs*cpuPeriod), cpuPeriod)})
	}
	for _, v := range values {
		if err := m.writeCgroup(v[0], v[1]); err != nil {
			return err
		}
	}
	return nil
}

// writeCgroup goes by descriptor: task code may mount over the name.
func (m *Machine) writeCgroup(file, value string) error {
	fd, err := unix.Openat(int(m.cgroup.Fd()), file, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err == nil {
		_, err = unix.Write(fd, []byte(value))
		err = errors.Join(err, unix.Close(fd))
	}
	if err != nil {
		return fmt.Errorf("set %s to %s: %w", file, value, err)
	}
	return nil
}

func (m *Machine) readCgroup(file string) (string, error) {
	fd, err := unix.Openat(int(m.cgroup.Fd()), file, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("read %s: %w", file, err)
	}
	defer unix.Close(fd)
	content := make([]byte, 4<<10) // more than any of them has
	n, err := unix.Read(fd, content)
	return string(bytes.TrimSpace(content[:max(n, 0)])), err
}

// value is the number behind key in a flat keyed file, or the only number
// where key is empty; 0 where it is not there: the kernel may lack the file.
func (m *Machine) value(file, key string) int64 {
	content, err := m.readCgroup(file)
	if err != nil {
		return 0
	}
	for line := range strings.Lines(content) {
		line = strings.TrimSpace(line)
		if key != "" {
			var ok bool
			if line, ok = strings.CutPrefix(line, key+" "); !ok {
				continue
			}
		}
		n, _ := strconv.ParseInt(line, 10, 64)
		return n
	}
	return 0
}

// OOMKills implements the agent's Platform.
func (m *Machine) OOMKills() int64 { return m.value("memory.events", "oom_kill") }

// Usage implements the agent's Platform.
func (m *Machine) Usage() (api.UsageReply, error) {
	r := api.UsageReply{
		MemoryBytes:     m.value("memory.current", ""),
		MemoryPeakBytes: m.value("memory.peak", ""),
		CPUMicroseconds: m.value("cpu.stat", "usage_usec"),
		PIDs:            m.value("pids.current", ""),
		OOMKills:        m.OOMKills(),
	}
	var stat unix.Statfs_t
	if err := unix.Fstatfs(int(m.scratch.Fd()), &stat); err != nil {
		return r, fmt.Errorf("size of the writable disk: %w", err)
	}
	r.DiskWrittenBytes = int64((stat.Blocks-stat.Bfree)*uint64(stat.Bsize) - m.baseline)
	return r, nil
}

// killTasks ends every process of the task and waits until none is left.
func (m *Machine) killTasks(ctx context.Context) error {
	if err := m.writeCgroup("cgroup.kill", "1"); err != nil {
		return err
	}
	tick := time.NewTicker(poll)
	defer tick.Stop()
	for m.value("cgroup.events", "populated") != 0 {
		select {
		case <-ctx.Done():
			return fmt.Errorf("end the task: %w", ctx.Err())
		case <-tick.C:
		}
	}
	return nil
}
