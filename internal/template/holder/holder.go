// Package holder keeps one template's memory and device state, sealed, in a
// process of its own for one user, and hands them to that user's clones:
// [Serve] is the process, [Client] what asks it and starts it on demand,
// [Parts] what a clone gets.
//
// The holder hashes while it copies, so that what it hands out is what the
// digests name, whatever happens to the files afterwards. It must not write to
// a template, nor know what the parts are for.
package holder

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"creel/internal/procs"

	"golang.org/x/sys/unix"
)

// version of the protocol. One packet each way on a SOCK_SEQPACKET socket:
// request, then reply with the descriptors; then the client keeps the
// connection for as long as it uses them.
const (
	version   = 1
	maxPacket = 4 << 10

	opOpen   = "open"   // reply carries memory, state, root
	opRetire = "retire" // take no new clients, end with the last one
)

type request struct {
	Version int    `json:"version"`
	Op      string `json:"op"`
	Digest  string `json:"digest"` // of the template
}

type reply struct {
	Version int    `json:"version"`
	Error   string `json:"error,omitempty"`
}

// Part is a file and the digest of its content.
type Part struct{ Path, Digest string }

// Template is what a holder holds.
type Template struct {
	Digest string
	Memory Part // by content.Memory
	State  Part
	Root   Part
}

// readyFD is the descriptor on which a holder tells its starter that it is
// ready, or why it will not be.
const readyFD = 3

const readyWord = "ready\n"

// socketName is short, because a socket's whole path must fit 108 bytes.
func socketName(digest string) string {
	_, hex, _ := strings.Cut(digest, ":")
	return hex[:min(16, len(hex))] + ".sock"
}

// openDir opens the directory of the sockets, making it where absent. Nobody
// but its owner may enter.
func openDir(path string) (*os.File, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("make runtime directory: %w", err)
	}
	dir, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("open runtime directory: %w", err)
	}
	info, err := dir.Stat()
	if err != nil {
		dir.Close()
		return nil, fmt.Errorf("stat runtime directory: %w", err)
	}
	owner := int(info.Sys().(*syscall.Stat_t).Uid)
	if owner != os.Geteuid() || info.Mode().Perm()&0o077 != 0 {
		dir.Close()
		return nil, fmt.Errorf("runtime directory %s belongs to user %d with mode %o; want user %d and 700, so that nobody else can pose as a holder", path, owner, info.Mode().Perm(), os.Geteuid())
	}
	return dir, nil
}

// socketAddr names a socket by its directory's descriptor: paths of any length
// can be used so.
func socketAddr(dir *os.File, name string) *net.UnixAddr {
	path := filepath.Join("/proc/self/fd", strconv.Itoa(int(dir.Fd())), name)
	return &net.UnixAddr{Net: "unixpacket", Name: path}
}

func unlinkSocket(dir *os.File, name string) error {
	err := unix.Unlinkat(int(dir.Fd()), name, 0)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove holder's socket: %w", err)
	}
	return nil
}

// checkPeer refuses a peer of another user.
func checkPeer(conn *net.UnixConn) error {
	cred, err := procs.Peer(conn)
	if err != nil {
		return err
	}
	if int(cred.Uid) != os.Geteuid() {
		return fmt.Errorf("peer is user %d, want %d", cred.Uid, os.Geteuid())
	}
	return nil
}

func send(conn *net.UnixConn, v any, files ...*os.File) error {
	data, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode message: %w", err)
	}
	var rights []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			fds[i] = int(f.Fd())
		}
		rights = unix.UnixRights(fds...)
	}
	if _, _, err := conn.WriteMsgUnix(data, rights, nil); err != nil {
		return fmt.Errorf("send message: %w", err)
	}
	return nil
}

// receive reads one packet into v and returns the descriptors that came along,
// at most limit. They are the caller's unless there is an error.
func receive(conn *net.UnixConn, v any, limit int) ([]*os.File, error) {
	data := make([]byte, maxPacket)
	oob := make([]byte, unix.CmsgSpace(4*limit))
	n, oobn, flags, _, err := conn.ReadMsgUnix(data, oob)
	if err != nil {
		return nil, fmt.Errorf("receive message: %w", err)
	}
	files, err := parseRights(oob[:oobn])
	switch {
	case err != nil:
	case flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0:
		err = errors.New("receive message: too long")
	case n == 0:
		err = errPeerGone
	default:
		err = json.Unmarshal(data[:n], v)
	}
	if err != nil {
		closeAll(files)
		return nil, err
	}
	return files, nil
}

var errPeerGone = errors.New("the other side has closed the connection")

func parseRights(oob []byte) (files []*os.File, err error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("parse descriptors: %w", err)
	}
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			closeAll(files)
			return nil, fmt.Errorf("parse descriptors: %w", err)
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			files = append(files, os.NewFile(uintptr(fd), "held"))
		}
	}
	return files, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}
