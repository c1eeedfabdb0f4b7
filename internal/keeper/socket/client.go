package socket

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"time"

	"creel/internal/guest/api"
	"creel/internal/guest/host"
	"creel/internal/keeper/rundir"
	"creel/internal/procs"
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
	d, err := openDir(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	at := fmt.Sprintf("/proc/self/fd/%d/%s", d.Fd(), Name)
	// The keeper holds the sandbox's lock: what is there is of an earlier run,
	// and need not be a socket.
	if err := os.RemoveAll(at); err != nil {
		return nil, fmt.Errorf("remove the last run's socket: %w", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: at, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen in %s: %w", dir, err)
	}
	l.SetUnlinkOnClose(false) // its path is gone by then; the run removes it
	return l, nil
}

// greetWithin is how long a keeper may take to answer a client's first words,
// on a machine that is busy.
const greetWithin = 30 * time.Second

// Dial connects to the keeper of the sandbox id in dir. That keeper may have
// been taken over, and dir is where it can lay what it likes: a client never
// ends up with another sandbox's keeper, and does not wait for ever.
func Dial(ctx context.Context, dir string, id sandbox.ID) (*Client, error) {
	return dial(ctx, dir, id, greetWithin)
}

func dial(ctx context.Context, dir string, id sandbox.ID, within time.Duration) (*Client, error) {
	conn, err := Connect(dir)
	if err != nil {
		return nil, err
	}
	late := fmt.Errorf("it has not answered for %s; `creel rm -f` removes the sandbox", within)
	ctx, cancel := context.WithTimeoutCause(ctx, within, late)
	defer cancel()
	return NewClient(ctx, conn, id)
}

// Connect connects to the socket in dir: to nothing that the socket's name
// leads to elsewhere, and to no process that listens as another user. A keeper
// listens before it becomes the sandbox's own user, so that the socket's
// credentials, which are those of that moment, are of the user that started
// it; a keeper that was taken over later cannot make a socket that has them
// where Creel is started as root.
func Connect(dir string) (*net.UnixConn, error) {
	f, err := openSocket(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	at := fmt.Sprintf("/proc/self/fd/%d", f.Fd())
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: at, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("connect to the keeper in %s: %w", dir, err)
	}
	if err := checkListener(conn, os.Geteuid()); err != nil {
		conn.Close()
		return nil, fmt.Errorf("connect to the keeper in %s: %w", dir, err)
	}
	return conn, nil
}

// openSocket opens the socket itself, for its path alone.
func openSocket(dir string) (*os.File, error) {
	d, err := openDir(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	fd, err := unix.Openat(int(d.Fd()), Name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open the keeper's socket in %s: %w", dir, err)
	}
	f := os.NewFile(uintptr(fd), Name)
	info, err := f.Stat()
	if err == nil && info.Mode().Type() != fs.ModeSocket {
		err = fmt.Errorf("%s in %s is not a socket, so its keeper may have been taken over; `creel rm -f` removes the sandbox", Name, dir)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func openDir(dir string) (*os.File, error) {
	d, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("open sandbox directory: %w", err)
	}
	return d, nil
}

// checkListener refuses a socket that another user than uid listens on.
func checkListener(conn *net.UnixConn, uid int) error {
	cred, err := procs.Peer(conn)
	if err != nil {
		return err
	}
	if int(cred.Uid) != uid {
		return fmt.Errorf("user %d listens there, not %d, so the keeper may have been taken over; `creel rm -f` removes the sandbox", cred.Uid, uid)
	}
	return nil
}

// NewClient greets the keeper of the sandbox id at the other end of conn, which
// it then owns.
func NewClient(ctx context.Context, conn net.Conn, id sandbox.ID) (*Client, error) {
	w := wire.NewConn(conn, wire.Options{})
	hello, err := wire.Call[HelloReply](ctx, w, OpHello, HelloRequest{Version: Version})
	if err == nil && hello.Error != nil {
		err = hello.Error
	}
	if err == nil && hello.ID != id {
		err = fmt.Errorf("it is not that of sandbox %s, so that one's may have been taken over; `creel rm -f` removes the sandbox", id.Short())
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

// Policy is the canonical text of the policy that is in force.
func (c *Client) Policy(ctx context.Context) (string, error) {
	reply, err := wire.Call[PolicyReply](ctx, c.conn, OpInForce, api.Empty{})
	if err == nil && reply.Error != nil {
		err = reply.Error
	}
	return reply.Policy, err
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
	// A keeper that has all it needs, or refuses, may answer and close before
	// the end of what is sent: its answer counts.
	if err := errors.Join(secret.WriteGrants(w, grants), w.Close()); err != nil && !errors.Is(err, wire.ErrPeerClosed) {
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
