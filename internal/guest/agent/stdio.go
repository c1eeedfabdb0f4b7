package agent

import (
	"fmt"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"creel/internal/sandbox"
)

// open makes the process's standard streams: its own ends in attr, and as
// descriptors that the caller closes.
func (t *task) open(p sandbox.Process, acc account, attr *syscall.ProcAttr) (theirs []int, err error) {
	if p.TTY {
		return t.openTerminal(p, acc, attr)
	}
	defer func() {
		for _, fd := range theirs {
			attr.Files = append(attr.Files, uintptr(fd))
		}
	}()
	if p.Interactive {
		var theirEnd int
		t.stdin, theirEnd, err = pipe(true)
		if err != nil {
			return theirs, err
		}
		theirs = append(theirs, theirEnd)
	} else {
		null, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return theirs, fmt.Errorf("open /dev/null: %w", err)
		}
		theirs = append(theirs, null)
	}
	for _, ours := range []**os.File{&t.stdout, &t.stderr} {
		f, theirEnd, err := pipe(false)
		if err != nil {
			return theirs, err
		}
		*ours = f
		theirs = append(theirs, theirEnd)
		// The process may open its output again by name as its own user.
		if acc.uid != 0 {
			unix.Fchown(theirEnd, int(acc.uid), int(acc.gid))
		}
	}
	if t.stdin != nil && acc.uid != 0 {
		unix.Fchown(theirs[0], int(acc.uid), int(acc.gid))
	}
	return theirs, nil
}

// pipe is a pipe whose end for this process does not block a thread.
func pipe(weWrite bool) (ours *os.File, theirs int, err error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return nil, -1, fmt.Errorf("make a pipe: %w", err)
	}
	mine, theirs := p[0], p[1]
	if weWrite {
		mine, theirs = p[1], p[0]
	}
	unix.SetNonblock(mine, true)
	return os.NewFile(uintptr(mine), "pipe"), theirs, nil
}

// openTerminal makes a pseudo terminal that the process controls.
func (t *task) openTerminal(p sandbox.Process, acc account, attr *syscall.ProcAttr) ([]int, error) {
	master, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/ptmx: %w", err)
	}
	t.stdout = os.NewFile(uintptr(master), "/dev/ptmx")
	if err := unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err != nil {
		return nil, fmt.Errorf("unlock terminal: %w", err)
	}
	n, err := unix.IoctlGetInt(master, unix.TIOCGPTN)
	if err != nil {
		return nil, fmt.Errorf("number of terminal: %w", err)
	}
	slave, err := unix.Open("/dev/pts/"+strconv.Itoa(n), unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, fmt.Errorf("open terminal: %w", err)
	}
	if acc.uid != 0 {
		unix.Fchown(slave, int(acc.uid), -1)
	}
	if p.Rows > 0 && p.Cols > 0 {
		resize(t.stdout, p.Rows, p.Cols)
	}
	if p.Interactive {
		t.stdin = t.stdout
	}
	attr.Sys.Setctty = true // of descriptor 0 in the child
	attr.Files = []uintptr{uintptr(slave), uintptr(slave), uintptr(slave)}
	return []int{slave}, nil
}

// resize sets a terminal's size; one that has gone has none.
func resize(tty *os.File, rows, cols uint16) {
	conn, err := tty.SyscallConn()
	if err != nil {
		return
	}
	conn.Control(func(fd uintptr) {
		unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols})
	})
}
