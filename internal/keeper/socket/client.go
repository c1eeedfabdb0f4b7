package socket

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
	"creel/internal/keeper/rundir"
	"creel/internal/sandbox"
	"creel/internal/secret"
	"creel/internal/wire"

	"golang.org/x/sys/unix"
)

// Name is the keeper's socket in its sandbox's directory.
const Name = "keeper.sock"

// Client talks to one sandbox's keeper. Exec, CopyIn, CopyOut, Stat and Usage
// are those of [host.Client].
type Client struct {
	*host.Client
	conn *wire.Conn
}

// Listen makes the socket in a sandbox's directory. The path goes through the
// directory's descriptor: a socket's own path may have 107 bytes at most.
func Listen(dir string) (*net.UnixListener, error) {
	at, done, err := Path(dir)
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
	at, done, err := Path(dir)
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

// Path names the socket in dir in a way that is short enough; done ends its use.
func Path(dir string) (path string, done func(), err error) {
	d, err := os.OpenFile(dir, unix.O_PATH|syscall.O_DIRECTORY, 0)
	if err != nil {
		return "", nil, fmt.Errorf("open sandbox directory: %w", err)
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", d.Fd(), Name), func() { d.Close() }, nil
}

// NewClient greets the keeper at the other end of conn, which it then owns.
func NewClient(ctx context.Context, conn net.Conn) (*Client, error) {
	w := wire.NewConn(conn, wire.Options{})
	hello, err := wire.Call[HelloReply](ctx, w, OpHello, HelloRequest{Version: Version})
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
func (c *Client) Ready(ctx context.Context) (sandbox.Status, error) { return c.status(ctx, OpReady) }

// Wait returns the final status, once nothing remains of the run.
func (c *Client) Wait(ctx context.Context) (sandbox.Status, error) { return c.status(ctx, OpWait) }

// Status returns what is known now.
func (c *Client) Status(ctx context.Context) (sandbox.Status, error) { return c.status(ctx, OpStatus) }

func (c *Client) status(ctx context.Context, op string) (sandbox.Status, error) {
	reply, err := wire.Call[StatusReply](ctx, c.conn, op, api.Empty{})
	if err == nil && reply.Error != nil {
		err = reply.Error
	}
	return reply.Status, err
}

// Start runs the task. Its error has the class of [api.ErrorCode].
func (c *Client) Start(ctx context.Context) error { return c.call(ctx, OpStart, api.Empty{}) }

// Detach lets the run go on when this client has gone, with its stdin open;
// keep lets disk and log outlive it.
func (c *Client) Detach(ctx context.Context, keep bool) error {
	return c.call(ctx, OpDetach, DetachRequest{Keep: keep})
}

// Signal sends the task a signal, 1 to 64.
func (c *Client) Signal(ctx context.Context, signal int) error {
	return c.call(ctx, OpSignal, api.ExecControl{Signal: signal})
}

// Resize gives the task's terminal a new size.
func (c *Client) Resize(ctx context.Context, rows, cols uint16) error {
	return c.call(ctx, OpSignal, api.ExecControl{Resize: &api.Resize{Rows: rows, Cols: cols}})
}

// Stop sends the task signal (0: its image's stop signal) and, after grace,
// SIGKILL. It returns when the task has ended.
func (c *Client) Stop(ctx context.Context, signal int, grace time.Duration) error {
	return c.call(ctx, OpStop, StopRequest{Signal: signal, Grace: grace})
}

// Kill ends the run at once, without asking the guest.
func (c *Client) Kill(ctx context.Context) error { return c.call(ctx, OpKill, api.Empty{}) }

// Pause stops the sandbox's virtual CPUs.
func (c *Client) Pause(ctx context.Context) error { return c.call(ctx, OpPause, api.Empty{}) }

// Resume lets them go on, with the clock set.
func (c *Client) Resume(ctx context.Context) error { return c.call(ctx, OpResume, api.Empty{}) }

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
	s, err := c.conn.Open(ctx, OpAttach, req)
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
func (c *Client) Logs(ctx context.Context, each func(rundir.Entry) error) error {
	s, err := c.conn.Open(ctx, OpLogs, api.Empty{})
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
	return rundir.Decode(s.Reader(api.ChannelOut), each)
}

// SetPolicy puts another policy in force: its canonical text.
func (c *Client) SetPolicy(ctx context.Context, text string) error {
	return c.call(ctx, OpPolicy, PolicyRequest{text})
}

// SetSecrets replaces the values of secrets that the sandbox has, and adds
// those that it has not.
func (c *Client) SetSecrets(ctx context.Context, grants []secret.Grant) error {
	s, err := c.conn.Open(ctx, OpSecrets, api.Empty{})
	if err != nil {
		return err
	}
	defer s.Close()
	w := s.Writer(api.ChannelIn)
	if err := errors.Join(secret.WriteGrants(w, grants), w.Close()); err != nil {
		return fmt.Errorf("hand over secrets: %w", err)
	}
	var reply api.Reply
	if err := s.Recv(ctx, &reply); err != nil {
		return fmt.Errorf("hand over secrets: %w", err)
	}
	if reply.Error != nil {
		return reply.Error
	}
	return nil
}

// Notes calls each for every destination that is denied for the first time,
// until the task has ended.
func (c *Client) Notes(ctx context.Context, each func(sandbox.Denial)) error {
	s, err := c.conn.Open(ctx, OpNotes, api.Empty{})
	if err != nil {
		return err
	}
	defer s.Close()
	var reply api.Reply
	if err := s.Recv(ctx, &reply); err != nil || reply.Error != nil {
		return err
	}
	for {
		var d sandbox.Denial
		if err := s.Recv(ctx, &d); err != nil {
			if err == io.EOF {
				return nil
			}
			return err
		}
		each(d)
	}
}
