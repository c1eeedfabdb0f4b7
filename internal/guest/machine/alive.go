package machine

import (
	"bytes"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Alive implements the agent's Platform. A debugger that has stopped one thread
// of this process leaves the others answering, and exits of tasks unnoticed.
func (m *Machine) Alive() error {
	if _, err := m.threads.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("list threads: %w", err)
	}
	names, err := m.threads.Readdirnames(-1)
	if err != nil {
		return fmt.Errorf("list threads: %w", err)
	}
	for _, name := range names {
		if stoppedThread(m.threads, name) {
			return fmt.Errorf("thread %s of the agent is stopped, as a debugger does it", name)
		}
	}
	return nil
}

// stoppedThread reports whether a thread in the directory threads is stopped by
// a signal or by a tracer. One that has just ended is not.
func stoppedThread(threads *os.File, name string) bool {
	fd, err := unix.Openat(int(threads.Fd()), name+"/stat", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	var buf [256]byte
	n, err := unix.Read(fd, buf[:])
	if err != nil {
		return false
	}
	// "pid (name) state …", and a name may have anything in it.
	state := buf[bytes.LastIndexByte(buf[:n], ')')+1 : n]
	return bytes.HasPrefix(state, []byte(" t")) || bytes.HasPrefix(state, []byte(" T"))
}
