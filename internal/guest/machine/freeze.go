package machine

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"creel/internal/guest/api"
	"creel/internal/sandbox"
)

const (
	maxWarm   = 4 << 20 // bytes read of one file
	clockWait = 5 * time.Second
)

// warmed are files that the first processes of most tasks read. They are read
// into the page cache, which is part of the template; nothing of them runs.
var warmed = []string{
	"/bin/sh", "/bin/bash", "/bin/busybox", "/bin/true", "/usr/bin/env", "/lib64/ld-linux-x86-64.so.2",
	"/lib/x86_64-linux-gnu/libc.so.6", "/lib64/libc.so.6", "/lib/ld-musl-x86_64.so.1",
	"/lib/x86_64-linux-gnu/libtinfo.so.6", "/etc/ld.so.cache", "/etc/passwd", "/etc/group",
}

// Freeze implements the agent's Platform.
func (m *Machine) Freeze(req api.FreezeRequest) error {
	if req.Clock {
		awaitClock()
	}
	if err := m.findDisks(); err != nil {
		return err
	}
	device := m.disks[api.DiskRoot]
	err := mount(device, imageDir, "ext4", unix.MS_RDONLY, "noload")
	if err != nil {
		if eerr := mount(device, imageDir, "erofs", unix.MS_RDONLY, ""); eerr != nil {
			return errors.Join(err, eerr)
		}
	}
	plain, err := plainEtc(imageDir)
	if err != nil {
		return err
	}
	m.ownEtc = !plain
	if err := warm(imageDir); err != nil {
		return err
	}
	if err := warmCodecs(); err != nil {
		return err
	}
	if err := m.tune(); err != nil {
		return err
	}
	runtime.GC() // here rather than in a clone
	if err := populate(); err != nil {
		return err
	}
	unix.Sync()
	return nil
}

// tune sets what is state of the kernel and therefore of every clone. Requests
// go to the host as they come, which orders them itself: an elevator and the
// throttling of writes are only more code to translate in each clone.
func (m *Machine) tune() error {
	for _, role := range []string{api.DiskRoot, api.DiskScratch} {
		queue := "/sys/block/" + path.Base(m.disks[role]) + "/queue/"
		for file, value := range map[string]string{"scheduler": "none", "wbt_lat_usec": "0"} {
			err := os.WriteFile(queue+file, []byte(value), 0)
			if err != nil && !errors.Is(err, os.ErrNotExist) { // a kernel may be without
				return err
			}
		}
	}
	return nil
}

// awaitClock returns when the kernel has a clock source that is more than a
// makeshift. One that never gets a better one works, too.
func awaitClock() {
	const file = "/sys/devices/system/clocksource/clocksource0/current_clocksource"
	for range int(clockWait / portPoll) {
		name, err := os.ReadFile(file)
		switch string(bytes.TrimSpace(name)) {
		case "tsc-early", "jiffies", "refined-jiffies":
		default:
			return
		}
		if err != nil {
			return
		}
		time.Sleep(portPoll)
	}
}

// warmCodecs makes package json learn the messages of a clone's first moments:
// it does so once for each type, which costs more than all decoding after it.
func warmCodecs() error {
	for _, message := range []any{
		&api.Identity{Mounts: []sandbox.Mount{{}}}, &sandbox.Process{},
		&api.Reply{Error: &api.Error{}}, &api.ExecReply{}, &api.ExecExit{}, &api.ExecControl{Resize: &api.Resize{}},
	} {
		data, err := json.Marshal(message)
		if err == nil {
			err = json.Unmarshal(data, message)
		}
		if err != nil {
			return fmt.Errorf("learn messages: %w", err)
		}
	}
	return nil
}

func warm(dir string) error {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open image: %w", err)
	}
	defer unix.Close(fd)
	how := unix.OpenHow{Flags: unix.O_RDONLY | unix.O_NONBLOCK | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT}
	for _, name := range warmed {
		file, err := unix.Openat2(fd, name, &how)
		if err != nil {
			continue // images differ
		}
		var stat unix.Stat_t
		if unix.Fstat(file, &stat) == nil && stat.Mode&unix.S_IFMT == unix.S_IFREG {
			unix.Fadvise(file, 0, maxWarm, unix.FADV_WILLNEED)
			drop(file)
		}
		unix.Close(file)
	}
	return nil
}

func drop(fd int) {
	buf := make([]byte, 256<<10)
	for total := 0; total < maxWarm; {
		n, err := unix.Read(fd, buf)
		if n <= 0 || err != nil {
			return // a cold file costs time, nothing else
		}
		total += n
	}
}

// populate maps every page of this program, so that no clone has to fault for
// it: a fault is among the dearest things under emulation.
func populate() error {
	f, err := os.Open("/proc/self/maps")
	if err != nil {
		return err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		var from, to uintptr
		var perms string
		if _, err := fmt.Sscanf(lines.Text(), "%x-%x %s", &from, &to, &perms); err != nil {
			return fmt.Errorf("read maps: %w", err)
		}
		if !strings.Contains(lines.Text(), "/init") || perms[0] != 'r' {
			continue
		}
		advice := uintptr(unix.MADV_POPULATE_READ)
		if perms[1] == 'w' {
			advice = unix.MADV_POPULATE_WRITE
		}
		// The kernel only looks at the addresses; older ones refuse the advice.
		unix.Syscall(unix.SYS_MADVISE, from, to-from, advice)
	}
	return lines.Err()
}
