package machine

import (
	"io"
	"time"

	"golang.org/x/sys/unix"
)

// Port is a virtio-serial port. A read blocks its thread in the kernel, which
// is the shortest way back when a clone goes on: no poller, no hand-over.
type Port struct {
	fd int
}

func openPort(sys string) (*Port, error) {
	device, err := makeNode(sys, unix.S_IFCHR)
	if err != nil {
		return nil, err
	}
	fd, err := unix.Open(device, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return &Port{fd}, nil
}

// Read implements io.Reader; the end of file is the host's going away.
func (p *Port) Read(b []byte) (int, error) { return retry(unix.Read, p.fd, b) }

// Write implements io.Writer.
func (p *Port) Write(b []byte) (int, error) { return writeAll(p.fd, b) }

// Close does nothing: the port is for the next host too.
func (p *Port) Close() error { return nil }

// AwaitHost returns when a host may be there again, after what the last one
// left unread has been dropped.
func (p *Port) AwaitHost() error {
	var dropped [4 << 10]byte
	tick := time.NewTicker(portPoll)
	defer tick.Stop()
	for {
		switch _, err := p.Read(dropped[:]); err {
		case nil:
		case io.EOF:
			return p.awaitConnection(tick.C)
		default:
			return err
		}
	}
}

// awaitConnection asks again and again: the driver has no event for it that a
// poll could wait for.
func (p *Port) awaitConnection(tick <-chan time.Time) error {
	for {
		fds := []unix.PollFd{{Fd: int32(p.fd), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, 0); err != nil && err != unix.EINTR {
			return err
		}
		if fds[0].Revents&unix.POLLHUP == 0 {
			return nil
		}
		<-tick
	}
}

func writeAll(fd int, b []byte) (written int, err error) {
	for written < len(b) && err == nil {
		var n int
		n, err = retry(unix.Write, fd, b[written:])
		written += n
	}
	return written, err
}

func retry(call func(int, []byte) (int, error), fd int, b []byte) (int, error) {
	for {
		n, err := call(fd, b)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return 0, err
		case n == 0:
			return 0, io.EOF
		}
		return n, nil
	}
}
