package holder

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// usualPatience is how long a holder may do nothing at all while its answer is
// waited for. One that hashes a file that has changed uses a processor.
const usualPatience = 15 * time.Second

// errHung is of a holder that was stopped, or hangs. It was killed, which ends
// no clone: each has the memory open itself.
var errHung = errors.New("the template's holder did not answer and did nothing, stopped or hanging, and was killed; run again")

func (c *Client) patience() time.Duration {
	if c.Patience > 0 {
		return c.Patience
	}
	return usualPatience
}

// giveUp ends the returned context with errHung, and the process, when that has
// used no processor for as long as patience lasts. stop ends the watch.
func giveUp(ctx context.Context, pid int, patience time.Duration) (_ context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil { // it has gone, or cannot be seen from here
		return ctx, func() { cancel(nil) }
	}
	var watch sync.WaitGroup
	watch.Go(func() {
		tick := time.NewTicker(patience)
		defer tick.Stop()
		for last := used(pid); ; {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			now := used(pid)
			if now == last {
				unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0)
				unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, int(patience.Milliseconds()))
				cancel(errHung)
				return
			}
			last = now
		}
	})
	return ctx, func() {
		cancel(nil)
		watch.Wait()
		unix.Close(pidfd)
	}
}

// used is the processor time of a process, in words of the kernel's.
func used(pid int) string {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	const user, system = 11, 12 // behind the name, which may contain anything
	fields := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
	if len(fields) <= system {
		return ""
	}
	return fields[user] + " " + fields[system]
}

// peerPID is the process that listens at the other end.
func peerPID(conn *net.UnixConn) int {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0
	}
	pid := 0
	raw.Control(func(fd uintptr) {
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			pid = int(cred.Pid)
		}
	})
	return pid
}
