package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const ports = "/sys/class/virtio-ports"

// vports speaks to every port on its own node, whatever /dev has.
func vports(ctx context.Context, p *prober, args []string) (result, error) {
	entries, err := os.ReadDir(ports)
	if err != nil {
		return result{Detail: err.Error()}, nil
	}
	dir, err := os.MkdirTemp("", "ports")
	if err != nil {
		return result{}, err
	}
	defer os.RemoveAll(dir)
	var out result
	var details []string
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(ports, e.Name(), "name"))
		name := strings.TrimSpace(string(b))
		if err != nil || len(args) > 0 && name != args[0] {
			continue
		}
		node := filepath.Join(dir, e.Name())
		if err := makeNode(node, filepath.Join(ports, e.Name(), "dev")); err != nil {
			details = append(details, fmt.Sprintf("%s (%s): node: %s", e.Name(), name, cause(err)))
			continue
		}
		wrote, read, err := p.abuse(ctx, node)
		out.Sent, out.Reached = out.Sent || wrote > 0, out.Reached || read > 0
		details = append(details, fmt.Sprintf("%s (%s): wrote %d, read %d, %s", e.Name(), name, wrote, read, cause(err)))
	}
	out.Detail = strings.Join(details, "; ")
	return out, nil
}

func makeNode(node, numbers string) error {
	b, err := os.ReadFile(numbers)
	if err != nil {
		return err
	}
	major, minor, _ := strings.Cut(strings.TrimSpace(string(b)), ":")
	ma, err := strconv.ParseUint(major, 10, 32)
	if err != nil {
		return err
	}
	mi, err := strconv.ParseUint(minor, 10, 32)
	if err != nil {
		return err
	}
	return unix.Mknod(node, unix.S_IFCHR|0o600, int(unix.Mkdev(uint32(ma), uint32(mi))))
}

// stolenPort speaks on ports that a process holds, of which nobody else can
// open one: root can borrow the descriptors.
func stolenPort(ctx context.Context, p *prober, args []string) (result, error) {
	pid, err := number(args[0])
	if err != nil {
		return result{}, err
	}
	held := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(held)
	if err != nil {
		return result{Detail: err.Error()}, nil
	}
	process, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return result{Detail: "open the process: " + cause(err)}, nil
	}
	defer unix.Close(process)
	out := result{Detail: "it holds no port"}
	for _, e := range entries {
		n, err := strconv.Atoi(e.Name())
		to, _ := os.Readlink(filepath.Join(held, e.Name())) // empty: closed since
		if err != nil || !strings.Contains(to, "vport") {
			continue
		}
		fd, err := unix.PidfdGetfd(process, n, 0)
		if err != nil {
			return result{Detail: "borrow " + to + ": " + cause(err)}, nil
		}
		wrote, read, err := p.abuseOpen(ctx, fd)
		unix.Close(fd)
		out = result{Sent: wrote > 0, Reached: read > 0, Detail: fmt.Sprintf("%s: wrote %d, read %d, %s", to, wrote, read, cause(err))}
	}
	return out, nil
}

// abuse writes what no honest agent would, and reads what comes.
func (p *prober) abuse(ctx context.Context, node string) (wrote, read int, err error) {
	fd, err := unix.Open(node, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, 0, err // EBUSY: whoever has it keeps it
	}
	defer unix.Close(fd)
	return p.abuseOpen(ctx, fd)
}

func (p *prober) abuseOpen(ctx context.Context, fd int) (wrote, read int, err error) {
	b := make([]byte, 64<<10)
	for _, message := range abuses() {
		for len(message) > 0 && ctx.Err() == nil {
			ready, err := poll(fd, unix.POLLOUT, p.wait)
			if err != nil || !ready {
				return wrote, read, err
			}
			n, err := unix.Write(fd, message[:min(len(message), 32<<10)])
			if err != nil {
				return wrote, read, err
			}
			wrote, message = wrote+n, message[n:]
		}
		for ctx.Err() == nil {
			ready, err := poll(fd, unix.POLLIN, 200*time.Millisecond)
			if err != nil || !ready {
				break
			}
			n, err := unix.Read(fd, b)
			read += max(n, 0)
			if n <= 0 || err != nil {
				return wrote, read, err
			}
		}
	}
	return wrote, read, nil
}

func poll(fd int, events int16, wait time.Duration) (bool, error) {
	fds := []unix.PollFd{{Fd: int32(fd), Events: events}}
	_, err := unix.Poll(fds, int(wait.Milliseconds()))
	if fds[0].Revents&unix.POLLHUP != 0 {
		return false, unix.EPIPE
	}
	return fds[0].Revents&events != 0, err
}

// abuses are zeros, lengths without an end, text, a FUSE request and noise.
func abuses() [][]byte {
	fuse := make([]byte, 40) // a header whose length is a lie, of an operation that there is not
	binary.LittleEndian.PutUint32(fuse, 1<<31)
	binary.LittleEndian.PutUint32(fuse[4:], 9999)
	noise := make([]byte, 1<<20)
	state := uint32(1)
	for i := range noise {
		state = state*1664525 + 1013904223
		noise[i] = byte(state >> 24)
	}
	return [][]byte{make([]byte, 4096), []byte(strings.Repeat("\xff", 4096)), []byte(`{"op":"exec","args":["id"]}` + "\n"), fuse, noise}
}
