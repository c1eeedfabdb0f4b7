package procs

import (
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// Files is a pair of connected stream sockets, as descriptors.
func Files() (a, b *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make socket pair: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "socket"), os.NewFile(uintptr(fds[1]), "socket"), nil
}

// Pair is a connection of this process, and the other end of it for another one.
func Pair() (near *net.UnixConn, far *os.File, err error) {
	f, far, err := Files()
	if err != nil {
		return nil, nil, err
	}
	if near, err = Conn(f); err != nil {
		far.Close()
		return nil, nil, err
	}
	return near, far, nil
}

// Conns is a pair of connections of this process.
func Conns() (a, b *net.UnixConn, err error) {
	a, f, err := Pair()
	if err != nil {
		return nil, nil, err
	}
	if b, err = Conn(f); err != nil {
		a.Close()
		return nil, nil, err
	}
	return a, b, nil
}

// Conn makes a connection of a Unix socket's descriptor, which it closes.
func Conn(f *os.File) (*net.UnixConn, error) {
	defer f.Close()
	conn, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("use socket: %w", err)
	}
	unixConn, ok := conn.(*net.UnixConn)
	if !ok {
		conn.Close()
		return nil, errors.New("use socket: it is not a Unix socket")
	}
	return unixConn, nil
}

// Peer is the process at the other end of a connection, and its user: as they
// were when it connected or, of a listener, when it began to listen.
func Peer(conn *net.UnixConn) (*unix.Ucred, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("ask for the peer's user: %w", err)
	}
	var cred *unix.Ucred
	var inner error
	err = raw.Control(func(fd uintptr) { cred, inner = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err = errors.Join(err, inner); err != nil {
		return nil, fmt.Errorf("ask for the peer's user: %w", err)
	}
	return cred, nil
}
