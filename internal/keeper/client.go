package keeper

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"syscall"
	"time"

	"creel/internal/guest/api"
	"creel/internal/guest/host"
	"creel/internal/sandbox"
	"creel/internal/wire"

	"golang.org/x/sys/unix"
)

// SocketName is the keeper's socket in its sandbox's directory.
const SocketName = "keeper.sock"

// Client talks to one sandbox's keeper. Exec, CopyIn, CopyOut, Stat and Usage
// are those of [host.Client].
type Client struct {
	*host.Client
	conn *wire.Conn
}

// Listen makes the socket in a sandbox's directory. The path goes through the
// directory's descriptor: a socket's own path may have 107 bytes at most.
func Listen(dir string) (*net.UnixListener, error) {
	at, done, err := socketPath(dir)
	if err != nil {
		return nil, err
	}
	defer done()
	// The keeper holds the sandbox's lock: a socket that is there is of an
	// earlier run.
	if err := os.Remove(at); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("remove the last run's socket: %w", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: at, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen in %s: %w", dir, err)
	}
	l.SetUnlinkOnClose(false) // its path is gone by then; the run removes it
	return l, nil
}

// Dial connects to the keeper of the sandbox in dir.
func Dial(ctx context.Context, dir string) (*Client, error) {
	at, done, err := socketPath(dir)
	if err != nil {
		return nil, err
	}
	defer done()
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", at)
	if err != nil {
		return nil, fmt.Errorf("connect to the keeper in %s: %w", dir, err)
	}
	return NewClient(ctx, conn)
}

func socketPath(dir string) (path string, done func(), err error) {
	d, err := os.OpenFile(dir, unix.O_PATH|syscall.O_DIRECTORY, 0)
	if err != nil {
		return "", nil, fmt.Errorf("open sandbox directory: %w", err)
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", d.Fd(), SocketName), func() { d.Close() }, nil
}

// NewClient greets the keeper at the other end of conn, which it then owns.
func NewClient(ctx context.Context, conn net.Conn) (*Client, error) {
	w := wire.NewConn(conn, wire.Options{})
	hello, err := wire.Call[helloReply](ctx, w, opHello, helloRequest{Version: Version})
	if err == nil && hello.Error != nil {
		err = hello.Error
	}
	if err != nil {
		w.Close()
		return nil, fmt.Errorf("greet the keeper: %w", err)
	}
	return &Client{Client: host.Over(w), conn: w}, nil
}

// Ready waits until the clone can run the task, and returns why it cannot.
func (c *Client) Ready(ctx context.Context) (sandbox.Status, error) { return c.status(ctx, opReady) }

// Wait returns the final status, once nothing remains of the run.
func (c *Client) Wait(ctx context.Context) (sandbox.Status, error) { return c.status(ctx, opWait) }

// Status returns what is known now.
func (c *Client) Status(ctx context.Context) (sandbox.Status, error) { return c.status(ctx, opStatus) }

func (c *Client) status(ctx context.Context, op string) (sandbox.Status, error) {
	reply, err := wire.Call[statusReply](ctx, c.conn, op, api.Empty{})
	if err == nil && reply.Error != nil {
		err = reply.Error
	}
	return reply.Status, err
}

// Start runs the task. Its error has the class of [api.ErrorCode].
func (c *Client) Start(ctx context.Context) error { return c.call(ctx, opStart, api.Empty{}) }

// Signal sends the task a signal, 1 to 64.
func (c *Client) Signal(ctx context.Context, signal int) error {
	return c.call(ctx, opSignal, api.ExecControl{Signal: signal})
}

// Resize gives the task's terminal a new size.
func (c *Client) Resize(ctx context.Context, rows, cols uint16) error {
	return c.call(ctx, opSignal, api.ExecControl{Resize: &api.Resize{Rows: rows, Cols: cols}})
}

// Stop sends the task signal (0: its image's stop signal) and, after grace,
// SIGKILL. It returns when the task has ended.
func (c *Client) Stop(ctx context.Context, signal int, grace time.Duration) error {
	return c.call(ctx, opStop, stopRequest{Signal: signal, Grace: grace})
}

// Kill ends the run at once, without asking the guest.
func (c *Client) Kill(ctx context.Context) error { return c.call(ctx, opKill, api.Empty{}) }

// Pause stops the sandbox's virtual CPUs.
func (c *Client) Pause(ctx context.Context) error { return c.call(ctx, opPause, api.Empty{}) }

// Resume lets them go on, with the clock set.
func (c *Client) Resume(ctx context.Context) error { return c.call(ctx, opResume, api.Empty{}) }

func (c *Client) call(ctx context.Context, op string, body any) error {
	reply, err := wire.Call[api.Reply](ctx, c.conn, op, body)
	if err == nil && reply.Error != nil {
		err = reply.Error
	}
	return err
}

// Attachment is a client's end of the task's streams.
type Attachment struct {
	Stdin          io.WriteCloser
	Stdout, Stderr io.Reader // at their end when the task's output is complete
	Close          func() error
}

// Attach joins the task's streams. What the task wrote before is not repeated.
func (c *Client) Attach(ctx context.Context, req AttachRequest) (*Attachment, error) {
	s, err := c.conn.Open(ctx, opAttach, req)
	if err != nil {
		return nil, err
	}
	var reply api.Reply
	if err := s.Recv(ctx, &reply); err != nil {
		s.Close()
		return nil, fmt.Errorf("attach: %w", err)
	}
	if reply.Error != nil {
		s.Close()
		return nil, reply.Error
	}
	return &Attachment{
		Stdin:  s.Writer(api.ChannelIn),
		Stdout: s.Reader(api.ChannelOut), Stderr: s.Reader(api.ChannelErr),
		Close: s.Close,
	}, nil
}

// Logs calls each for every entry of a kept task's log, and goes on with new
// ones until its output is complete.
func (c *Client) Logs(ctx context.Context, each func(LogEntry) error) error {
	s, err := c.conn.Open(ctx, opLogs, api.Empty{})
	if err != nil {
		return err
	}
	defer s.Close()
	var reply api.Reply
	if err := s.Recv(ctx, &reply); err != nil {
		return fmt.Errorf("read logs: %w", err)
	}
	if reply.Error != nil {
		return reply.Error
	}
	return DecodeLog(s.Reader(api.ChannelOut), each)
}

// peerUID is the user at the other end of a Unix socket.
func peerUID(conn net.Conn) (int, error) {
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return -1, err
	}
	uid := -1
	var inner error
	err = raw.Control(func(fd uintptr) {
		var cred *unix.Ucred
		if cred, inner = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); inner == nil {
			uid = int(cred.Uid)
		}
	})
	if err == nil {
		err = inner
	}
	return uid, err
}
