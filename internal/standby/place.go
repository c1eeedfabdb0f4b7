package standby

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"creel/internal/durable"
	"creel/internal/keeper/launch"
	"creel/internal/keeper/socket"
)

// Place is where this process's VM waits.
type Place struct {
	Dir string
	UID int

	lock     *durable.Lock // of the place, and of the sandbox that it becomes
	listener *net.UnixListener
	store    func() (*durable.Lock, error) // takes the store's lock
}

// ErrEnough is returned by [Pool.Make] where as many wait as are wanted.
var ErrEnough = errors.New("enough VMs wait")

// Make makes a place in the pool, for a VM of this process: uid is a user that
// nobody else has. Of others than key's those have to go that are too many.
// The store's lock is held; store takes it later.
func (p *Pool) Make(key Key, uid int, store func() (*durable.Lock, error)) (*Place, error) {
	if err := p.makeRoom(key); err != nil {
		return nil, err
	}
	place := &Place{Dir: filepath.Join(p.Dir, rand.Text()), UID: uid, store: store}
	if err := os.MkdirAll(place.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make a place for a waiting VM: %w", err)
	}
	text, err := json.Marshal(entry{key, uid})
	if err == nil {
		err = os.WriteFile(filepath.Join(place.Dir, keyName), text, 0o600)
	}
	if err == nil {
		place.lock, err = durable.Acquire(context.Background(), filepath.Join(place.Dir, launch.LockName)) // nobody else takes it
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make a place for a waiting VM: %w", err), os.RemoveAll(place.Dir))
	}
	return place, nil
}

// makeRoom ends one VM of another kind where the pool is full of them.
func (p *Pool) makeRoom(key Key) error {
	all, err := p.entries()
	if err != nil {
		return err
	}
	living, other := 0, ""
	for dir, e := range all {
		if !alive(dir) {
			continue
		}
		living++
		if e.Key != key {
			other = dir
		}
	}
	switch {
	case living < p.Size:
		return nil
	case p.Size > 0 && other != "":
		return end(other)
	}
	return ErrEnough
}

// Close gives up the lock: nobody looks after the place, or the sandbox that it
// has become, any more. Until then the caller keeps hold of p.
func (p *Place) Close() error { return p.lock.Close() }

// Listen lets the VM be taken from now on. One whose place was taken away
// meanwhile is not wanted any more.
func (p *Place) Listen() error {
	store, err := p.store()
	if err != nil {
		return err
	}
	defer store.Close()
	if p.listener, err = socket.Listen(p.Dir); err != nil {
		return fmt.Errorf("the waiting VM is not wanted any more: %w", err)
	}
	return nil
}

// Await returns what a launcher hands over, or nil where none came within idle,
// the one that came went, or ctx has ended: the place is gone then.
func (p *Place) Await(ctx context.Context, idle time.Duration) ([]*os.File, error) {
	defer p.listener.Close()
	p.listener.SetDeadline(time.Now().Add(idle)) // first: ctx may have ended
	stop := context.AfterFunc(ctx, func() { p.listener.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	conn, err := p.listener.AcceptUnix()
	if err != nil {
		if conn, err = p.leave(); conn == nil {
			return nil, err
		}
	}
	defer conn.Close()
	return receive(conn)
}

// leave gives up the place, unless somebody has come at the last moment.
// Whoever comes holds the store's lock while he connects: with that lock held
// here, who has come is in the listener's queue, and nobody else can.
func (p *Place) leave() (*net.UnixConn, error) {
	store, err := p.store()
	if err != nil {
		return nil, err
	}
	defer store.Close()
	if conn, err := p.waiting(); conn != nil || err != nil {
		return conn, err
	}
	return nil, os.RemoveAll(p.Dir)
}

// waiting is who is in the listener's queue, or nil. It asks the kernel, since
// an Accept with a deadline that has passed does not: on a busy machine any
// deadline can pass before the queue is looked at.
func (p *Place) waiting() (*net.UnixConn, error) {
	raw, err := p.listener.SyscallConn()
	if err != nil {
		return nil, err
	}
	fd, inner := -1, error(nil)
	if err := raw.Control(func(l uintptr) { fd, _, inner = unix.Accept4(int(l), unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK) }); err != nil {
		return nil, err
	}
	if inner != nil { // EAGAIN, or who came has gone
		return nil, nil
	}
	f := os.NewFile(uintptr(fd), "launcher")
	defer f.Close()
	conn, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	return conn.(*net.UnixConn), nil
}

// receive waits for what the launcher hands over; nil says that it went.
func receive(conn *net.UnixConn) ([]*os.File, error) {
	const most = 253 // SCM_MAX_FD
	count, oob := make([]byte, 1), make([]byte, unix.CmsgSpace(4*most))
	n, oobn, _, _, err := conn.ReadMsgUnix(count, oob)
	if err != nil || n == 0 {
		return nil, nil
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(messages) != 1 {
		return nil, fmt.Errorf("a launcher's message has %d parts, want one", len(messages))
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != int(count[0]) {
		return nil, fmt.Errorf("a launcher handed over %d descriptors and says %d", len(fds), count[0])
	}
	var files []*os.File
	for _, fd := range fds {
		files = append(files, os.NewFile(uintptr(fd), "launch"))
	}
	return files, nil
}
