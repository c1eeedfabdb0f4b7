package agent

import (
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// reaper waits for every child of PID 1: those that were started here, and
// orphans. A child is reaped with mu held, so that a process number that is
// registered cannot belong to another process.
type reaper struct {
	mu       sync.Mutex
	children map[int]*child
	some     sync.Cond // children may exist
	living   int       // starts since the kernel said that there is no child
}

type child struct {
	done   chan struct{}
	status syscall.WaitStatus // valid once done is closed
}

func newReaper() *reaper {
	r := &reaper{children: map[int]*child{}}
	r.some.L = &r.mu
	go r.loop() // lives as long as the process
	return r
}

// start registers what fork starts before it can be reaped.
func (r *reaper) start(fork func() (pid int, err error)) (int, *child, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	pid, err := fork()
	if err != nil {
		return 0, nil, err
	}
	c := &child{done: make(chan struct{})}
	r.children[pid] = c
	r.living++
	r.some.Signal()
	return pid, c, nil
}

// signal is for a child that has been started; one that has ended is left
// alone.
func (r *reaper) signal(pid int, c *child, sig syscall.Signal) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.children[pid] == c {
		syscall.Kill(pid, sig)
	}
}

// signalGroup is signal for a child and its process group, which it leads.
func (r *reaper) signalGroup(pid int, c *child, sig syscall.Signal) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.children[pid] == c {
		syscall.Kill(-pid, sig)
	}
}

func (r *reaper) loop() {
	for {
		r.mu.Lock()
		for r.living == 0 {
			r.some.Wait()
		}
		seen := r.living
		r.mu.Unlock()
		pid, err := nextZombie()
		r.mu.Lock()
		if err == unix.ECHILD && r.living == seen {
			r.living = 0
		}
		if err == nil {
			r.reap(pid)
		}
		r.mu.Unlock()
	}
}

func (r *reaper) reap(pid int) {
	var status syscall.WaitStatus
	if got, err := syscall.Wait4(pid, &status, syscall.WNOHANG, nil); err != nil || got != pid {
		return // a fork whose exec failed was reaped by syscall.ForkExec
	}
	if c := r.children[pid]; c != nil {
		delete(r.children, pid)
		c.status = status
		close(c.done)
	}
}

// nextZombie waits until some child has ended and leaves it to be reaped.
func nextZombie() (int, error) {
	var info unix.Siginfo
	for {
		err := unix.Waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOWAIT, nil)
		if err == unix.EINTR {
			continue
		}
		// siginfo_t of SIGCHLD: three ints, padding, then the pid.
		return int(*(*int32)(unsafe.Add(unsafe.Pointer(&info), 16))), err
	}
}
