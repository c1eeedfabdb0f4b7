package holder

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"creel/internal/durable"
	"creel/internal/procs"
	"creel/internal/template/content"

	"golang.org/x/sys/unix"
)

// Client asks holders, and starts them where they do not run.
type Client struct {
	Dir string // of the sockets
	// Command is the command line that becomes the holder of a template: it
	// ends in Serve.
	Command func(digest string) []string
	// Patience is for a holder that does nothing while it is waited for; 0: the
	// usual.
	Patience time.Duration
}

// Parts are what a clone starts from. Memory and State are sealed copies, and
// nobody can write to Root by it. The holder keeps the memory as long as
// anybody has Parts open.
type Parts struct {
	Memory, State, Root *os.File
	conn                *net.UnixConn
}

// Close gives the parts back.
func (p *Parts) Close() error {
	return errors.Join(p.Memory.Close(), p.State.Close(), p.Root.Close(), p.conn.Close())
}

// lockName is locked by whoever starts a holder.
const lockName = "start.lock"

// attempts at finding a holder that ended between two steps.
const attempts = 5

// Open gets the parts of a template from its holder.
func (c *Client) Open(ctx context.Context, digest string) (*Parts, error) {
	dir, err := openDir(c.Dir)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	for attempt := range attempts {
		var conn *net.UnixConn
		if conn, err = dial(ctx, dir, digest); absent(err) {
			conn, err = c.start(ctx, dir, digest)
		}
		if errors.Is(err, errEarlyEnd) && attempt == 0 {
			continue // it was killed; a second time it is not by chance
		}
		if err != nil {
			return nil, err
		}
		var parts *Parts
		if parts, err = c.open(ctx, conn, digest); !absent(err) {
			return parts, err
		}
	}
	return nil, fmt.Errorf("the template's holder ended %d times in a row: %w", attempts, err)
}

// Retire tells the holder of a template, if one runs, to take no new clients
// and end with the last one.
func (c *Client) Retire(ctx context.Context, digest string) error {
	dir, err := openDir(c.Dir)
	if err != nil {
		return err
	}
	defer dir.Close()
	conn, err := dial(ctx, dir, digest)
	if absent(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := c.ask(ctx, conn, request{Version: version, Op: opRetire, Digest: digest}); !absent(err) {
		return err
	}
	return nil
}

// absent reports whether an error means that no holder is there, or that it
// has just ended.
func absent(err error) bool {
	for _, gone := range []error{
		fs.ErrNotExist, unix.ECONNREFUSED, unix.ECONNRESET, unix.EPIPE, io.EOF, errPeerGone, errHung,
	} {
		if errors.Is(err, gone) {
			return true
		}
	}
	return false
}

func dial(ctx context.Context, dir *os.File, digest string) (*net.UnixConn, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unixpacket", socketAddr(dir, socketName(digest)).Name)
	if err != nil {
		return nil, fmt.Errorf("connect to holder: %w", err)
	}
	conn := c.(*net.UnixConn)
	if err := checkPeer(conn); err != nil {
		conn.Close()
		return nil, fmt.Errorf("holder: %w", err)
	}
	return conn, nil
}

// ask sends a request and returns the descriptors of the answer.
func (c *Client) ask(ctx context.Context, conn *net.UnixConn, r request) ([]*os.File, error) {
	peer, err := procs.Peer(conn)
	if err != nil {
		return nil, err
	}
	ctx, answered := giveUp(ctx, int(peer.Pid), c.patience())
	defer answered()
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := send(conn, r); err != nil {
		return nil, errors.Join(context.Cause(ctx), err)
	}
	var a reply
	files, err := receive(conn, &a, 3)
	if err != nil {
		return nil, errors.Join(context.Cause(ctx), err)
	}
	if a.Error == "" && a.Version != version {
		a.Error = fmt.Sprintf("it speaks version %d, want %d", a.Version, version)
	}
	if a.Error != "" {
		closeAll(files)
		return nil, fmt.Errorf("holder: %s", a.Error)
	}
	return files, nil
}

func (c *Client) open(ctx context.Context, conn *net.UnixConn, digest string) (*Parts, error) {
	files, err := c.ask(ctx, conn, request{Version: version, Op: opOpen, Digest: digest})
	if err == nil && (len(files) != 3 || !content.Sealed(files[0]) || !content.Sealed(files[1])) {
		err = errors.New("holder: it sent no sealed memory and state")
	}
	var state *os.File
	if err == nil {
		// A descriptor that was passed shares its offset with everybody who got
		// it, and the VMM reads the state as a stream.
		state, err = os.Open("/proc/self/fd/" + strconv.Itoa(int(files[1].Fd())))
	}
	if err != nil {
		closeAll(files)
		conn.Close()
		return nil, err
	}
	files[1].Close()
	return &Parts{Memory: files[0], State: state, Root: files[2], conn: conn}, nil
}

// start starts a holder, unless another process is just doing so, and connects
// to it.
func (c *Client) start(ctx context.Context, dir *os.File, digest string) (*net.UnixConn, error) {
	starting, err := durable.Acquire(ctx, filepath.Join(c.Dir, lockName))
	if err != nil {
		return nil, err
	}
	defer starting.Close()
	conn, err := dial(ctx, dir, digest)
	if !absent(err) {
		return conn, err
	}
	// Nobody listens: what is there was left by a holder that was killed.
	if err := unlinkSocket(dir, socketName(digest)); err != nil {
		return nil, err
	}
	if err := c.spawn(ctx, digest); err != nil {
		return nil, fmt.Errorf("start holder: %w", err)
	}
	return dial(ctx, dir, digest)
}

// errEarlyEnd is of a holder that ended without a word.
var errEarlyEnd = errors.New("it ended before it was ready; it was killed, perhaps for memory: see the kernel's log")

// spawn starts the process and waits until it is ready.
func (c *Client) spawn(ctx context.Context, digest string) error {
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("make pipe: %w", err)
	}
	defer r.Close()
	defer w.Close()
	command := c.Command(digest)
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Dir, cmd.Env = "/", []string{} // nothing of its starter's is kept alive by it
	cmd.ExtraFiles = []*os.File{w}     // readyFD
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	w.Close()
	// It outlives this process, which only has to reap it if it does not.
	go cmd.Wait()
	ctx, ready := giveUp(ctx, cmd.Process.Pid, c.patience())
	defer ready()
	stop := context.AfterFunc(ctx, func() { r.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	said, err := io.ReadAll(io.LimitReader(r, maxPacket))
	switch {
	case ctx.Err() != nil:
		cmd.Process.Kill() // else it would race with the next one
		return context.Cause(ctx)
	case err != nil:
		return fmt.Errorf("wait for it: %w", err)
	case string(said) == readyWord:
		return nil
	case len(said) == 0:
		return errEarlyEnd
	}
	return errors.New(strings.TrimSpace(string(said)))
}
