package procs

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Handle holds a process: it is that one, and no other that gets its number. Its
// methods may be called by several goroutines. The caller closes it.
type Handle struct {
	PID  int
	file *os.File // a pidfd
}

// Open holds the process that has a number now. The error is [ErrGone] where
// none has.
func Open(pid int) (*Handle, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		err = ErrGone
	}
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", pid, err)
	}
	return &Handle{pid, os.NewFile(uintptr(fd), "process")}, nil
}

// Close lets the process go, which lives on.
func (h *Handle) Close() error { return h.file.Close() }

// Signal sends a signal; a process that has ended needs none.
func (h *Handle) Signal(signal unix.Signal) error {
	err := h.with(func(fd int) error { return unix.PidfdSendSignal(fd, signal, nil, 0) })
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}

// Wait returns when the process has ended.
func (h *Handle) Wait() error {
	_, err := h.poll(-1)
	return err
}

// Ends waits for the end of the process, and reports whether it came. One that
// only waits for its parent to ask after it has ended.
func (h *Handle) Ends(within time.Duration) (bool, error) {
	return h.poll(int(within.Milliseconds()))
}

// poll reports whether the process has ended after so many milliseconds.
func (h *Handle) poll(timeout int) (ended bool, err error) {
	err = h.with(func(fd int) error {
		for {
			n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, timeout)
			if !errors.Is(err, unix.EINTR) {
				ended = n > 0
				return err
			}
		}
	})
	return ended, err
}

// with calls use with the descriptor, which is not closed meanwhile. The error
// is [os.ErrClosed] after Close.
func (h *Handle) with(use func(fd int) error) error {
	raw, err := h.file.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if raw.Control(func(fd uintptr) { inner = use(int(fd)) }) != nil {
		return os.ErrClosed // there is no other reason
	}
	return inner
}
