// Package host is the host's side of the conversation with a guest agent.
// [Client] speaks the operations of package api over a machine's control port;
// [Exec] is one process in the guest.
//
// The guest is hostile: whatever it answers is checked and bounded before it
// is returned, it cannot open streams, and text of its own is cut short. The
// package must not know machines, policy or keepers.
package host

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"strings"
	"sync/atomic"
	"time"

	"creel/internal/guest/api"
	"creel/internal/printable"
	"creel/internal/sandbox"
	"creel/internal/wire"
)

// maxText bounds what the guest may say in an error, a name or a version.
const maxText = 4 << 10

// Client is the host's end of one guest. It is safe for use by several
// goroutines.
type Client struct {
	conn  *wire.Conn
	heard *atomic.Int64 // bytes read; nil over a connection that serves others too
	// relayed says that a keeper is in between: its errors have been given
	// their names already.
	relayed bool
}

// New starts a conversation over a control port, which it owns from then on;
// the caller ends it with [Client.Close].
func New(conn net.Conn) *Client {
	// An agent in a clone may have frames in its past that this host never
	// sent: numbers that start at random never meet those of its template.
	first := 1<<20 + rand.Uint32N(1<<31)
	heard := new(atomic.Int64)
	return &Client{conn: wire.NewConn(counted{conn, heard}, wire.Options{FirstID: first}), heard: heard}
}

// counted is a connection whose bytes from the guest are counted.
type counted struct {
	net.Conn
	heard *atomic.Int64
}

func (c counted) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.heard.Add(int64(n))
	return n, err
}

// Heard is the number of bytes that came from the guest so far.
func (c *Client) Heard() int64 { return c.heard.Load() }

// Over speaks the same operations over a connection that serves others too: a
// keeper's socket. The connection stays the caller's.
func Over(conn *wire.Conn) *Client { return &Client{conn: conn, relayed: true} }

// Close ends the conversation.
func (c *Client) Close() error { return c.conn.Close() }

// Done is closed when the conversation has ended; Err then says why.
func (c *Client) Done() <-chan struct{} { return c.conn.Done() }

// Err is nil while the conversation goes on.
func (c *Client) Err() error { return c.conn.Err() }

// Hello asks for a sign of life. When ctx ends first the client is closed.
func (c *Client) Hello(ctx context.Context) (api.HelloReply, error) {
	defer c.closeAfter(ctx)()
	r, err := wire.Call[api.HelloReply](ctx, c.conn, api.OpHello, api.HelloRequest{Version: api.Version})
	if err := c.refusal(api.OpHello, r.Error, err); err != nil {
		return api.HelloReply{}, err
	}
	if r.Version != api.Version {
		return api.HelloReply{}, fmt.Errorf("guest agent speaks version %d, this host %d: rebuild the template", r.Version, api.Version)
	}
	return r, bounded(api.OpHello, r.Kernel)
}

// Ping returns when the guest's agent has answered, or the conversation has
// ended.
func (c *Client) Ping(ctx context.Context) error { return c.call(ctx, api.OpPing, api.Empty{}) }

// Freeze makes the guest ready for a snapshot. When it has returned nothing is
// under way in either direction. When ctx ends first the client is closed.
func (c *Client) Freeze(ctx context.Context, req api.FreezeRequest) error {
	defer c.closeAfter(ctx)()
	s, err := c.conn.Open(ctx, api.OpFreeze, req)
	if err != nil {
		return c.named(api.OpFreeze, err)
	}
	defer s.Close()
	var r api.Reply
	err = s.Recv(ctx, &r)
	if err := c.refusal(api.OpFreeze, r.Error, err); err != nil {
		return err
	}
	// The agent closes the stream behind its reply; a frame of ours after
	// that would be cut in two by the snapshot.
	switch err := s.Recv(ctx, &r); err {
	case io.EOF:
		return nil
	case nil:
		return errors.New("guest: freeze: more than one reply")
	default:
		return fmt.Errorf("guest: freeze: %w", err)
	}
}

// Prepare has a clone that waits for its task do all that an identity needs,
// once, with one that is nobody's. It returns when the guest has answered or
// the conversation has ended.
func (c *Client) Prepare(ctx context.Context, nobody api.Identity) error {
	return c.call(ctx, api.OpPrepare, nobody)
}

// Identity makes a clone what it is, once. An *api.Error in the chain names
// the step that failed. When ctx ends first the client is closed.
func (c *Client) Identity(ctx context.Context, id api.Identity) error {
	defer c.closeAfter(ctx)()
	return c.call(ctx, api.OpIdentity, id)
}

// Clock sets the guest's clock.
func (c *Client) Clock(ctx context.Context, now time.Time) error {
	return c.call(ctx, api.OpClock, api.ClockRequest{UnixNano: now.UnixNano()})
}

// Shutdown ends every task process and syncs every file system. When ctx ends
// first the client is closed.
func (c *Client) Shutdown(ctx context.Context) error {
	defer c.closeAfter(ctx)()
	return c.call(ctx, api.OpShutdown, api.Empty{})
}

// CopyIn unpacks a tar stream into the directory that req names.
func (c *Client) CopyIn(ctx context.Context, req api.CopyRequest, tar io.Reader) error {
	s, err := c.conn.Open(ctx, api.OpCopyIn, req)
	if err != nil {
		return c.named(api.OpCopyIn, err)
	}
	defer s.Close()
	defer context.AfterFunc(ctx, func() { s.Close() })()
	w := s.Writer(api.ChannelIn)
	if _, err := io.Copy(guestWriter{w}, tar); err != nil && !errors.Is(err, errGuestWrite) {
		return fmt.Errorf("read tar for the guest: %w", err)
	}
	w.Close() // where the agent refused it has closed the channel's end; its reply says why
	var r api.Reply
	err = s.Recv(ctx, &r)
	return c.refusal(api.OpCopyIn, r.Error, err)
}

var errGuestWrite = errors.New("write to the guest")

// guestWriter tells the guest's errors from the tar's.
type guestWriter struct{ w io.Writer }

func (g guestWriter) Write(p []byte) (int, error) {
	n, err := g.w.Write(p)
	if err != nil {
		err = errors.Join(errGuestWrite, err)
	}
	return n, err
}

// CopyOut is path as a tar stream whose first entry is its base name. The
// caller closes it. The stream ends with an error where the tar is not whole.
func (c *Client) CopyOut(ctx context.Context, path string) (io.ReadCloser, error) {
	s, err := c.conn.Open(ctx, api.OpCopyOut, api.CopyRequest{Path: path})
	if err != nil {
		return nil, c.named(api.OpCopyOut, err)
	}
	var r api.Reply
	err = s.Recv(ctx, &r)
	if err := c.refusal(api.OpCopyOut, r.Error, err); err != nil {
		s.Close()
		return nil, err
	}
	return struct {
		io.Reader
		io.Closer
	}{s.Reader(api.ChannelOut), s}, nil
}

// Stat describes path without following its last symlink.
func (c *Client) Stat(ctx context.Context, path string) (api.StatReply, error) {
	r, err := wire.Call[api.StatReply](ctx, c.conn, api.OpStat, api.CopyRequest{Path: path})
	if err := c.refusal(api.OpStat, r.Error, err); err != nil {
		return api.StatReply{}, err
	}
	if r.Size < 0 || strings.ContainsAny(r.Name, "\x00") {
		return api.StatReply{}, fmt.Errorf("guest: stat %q: the reply makes no sense", path)
	}
	return r, bounded(api.OpStat, r.Name, r.LinkTarget)
}

// Usage is what the task has used so far; no figure is negative.
func (c *Client) Usage(ctx context.Context) (api.UsageReply, error) {
	r, err := wire.Call[api.UsageReply](ctx, c.conn, api.OpUsage, api.Empty{})
	if err := c.refusal(api.OpUsage, r.Error, err); err != nil {
		return api.UsageReply{}, err
	}
	for _, v := range []*int64{&r.MemoryPeakBytes, &r.MemoryBytes, &r.CPUMicroseconds, &r.PIDs, &r.DiskWrittenBytes, &r.OOMKills} {
		*v = min(max(*v, 0), math.MaxInt64/2)
	}
	return r, nil
}

// Top lists the processes of the sandbox. What they are called is cut short.
func (c *Client) Top(ctx context.Context) (api.TopReply, error) {
	r, err := wire.Call[api.TopReply](ctx, c.conn, api.OpTop, api.Empty{})
	if err := c.refusal(api.OpTop, r.Error, err); err != nil {
		return api.TopReply{}, err
	}
	if len(r.Processes) > api.MaxProcesses || r.More < 0 {
		return api.TopReply{}, fmt.Errorf("guest: top: %d processes in the reply, at most %d", len(r.Processes), api.MaxProcesses)
	}
	for i := range r.Processes {
		p := &r.Processes[i]
		p.User, p.State, p.TTY, p.Name = printable.Line(p.User), printable.Line(p.State), printable.Line(p.TTY), printable.Line(p.Name)
		for j, arg := range p.Args {
			p.Args[j] = printable.Line(arg)
		}
		for _, v := range []*int64{&p.CPUMilliseconds, &p.AgeMilliseconds, &p.RSSBytes, &p.VirtualBytes} {
			*v = min(max(*v, 0), math.MaxInt64/2)
		}
	}
	return r, nil
}

func (c *Client) call(ctx context.Context, op string, body any) error {
	r, err := wire.Call[api.Reply](ctx, c.conn, op, body)
	return c.refusal(op, r.Error, err)
}

// closeAfter closes the client when ctx ends: a guest that does not even take
// bytes would block the write, which has no other end. The returned function
// calls it off.
func (c *Client) closeAfter(ctx context.Context) func() bool {
	return context.AfterFunc(ctx, func() { c.conn.Close() })
}

// refusal joins the two ways an operation can fail. The guest's error is
// rebuilt from what is known, its text cut short and made printable.
func (c *Client) refusal(op string, e *api.Error, err error) error {
	if err != nil {
		return c.named(op, err)
	}
	if e == nil {
		return nil
	}
	clean := &api.Error{Code: api.CodeInternal, Message: printable.Line(e.Message[:min(len(e.Message), maxText)])}
	switch e.Code {
	case api.CodeInvalid, api.CodeNotFound, api.CodeNotExecutable, api.CodeNotReady, api.CodeNoSpace:
		clean.Code = e.Code
	}
	for _, step := range api.IdentitySteps {
		if e.Step == step {
			clean.Step = step
		}
	}
	if c.relayed {
		return clean // the keeper has said whose error it is
	}
	if op == api.OpExec && (clean.Code == api.CodeNotFound || clean.Code == api.CodeNotExecutable) {
		clean.Message = strings.TrimPrefix(clean.Message, op+": ")
		return clean // it is of what the user typed, and not of the guest
	}
	return c.named(op, clean)
}

// named says of an error once that it is the guest's, and which operation's.
func (c *Client) named(op string, err error) error {
	prefix := "guest: "
	if c.relayed {
		prefix = "" // it is of the connection to the keeper
	}
	if !strings.HasPrefix(err.Error(), op+": ") {
		prefix += op + ": "
	}
	return fmt.Errorf("%s%w", prefix, err)
}

// bounded refuses texts that no honest agent sends.
func bounded(op string, texts ...string) error {
	for _, t := range texts {
		if len(t) > maxText {
			return fmt.Errorf("guest: %s: a text of %d bytes in the reply, at most %d", op, len(t), maxText)
		}
	}
	return nil
}

// Exec starts a process in the guest. An *api.Error in the chain says why it
// could not run. ctx bounds only the start; the caller closes the Exec.
func (c *Client) Exec(ctx context.Context, p sandbox.Process) (*Exec, error) {
	s, err := c.conn.Open(ctx, api.OpExec, p)
	if err != nil {
		return nil, c.named(api.OpExec, err)
	}
	var r api.ExecReply
	err = s.Recv(ctx, &r)
	if err := c.refusal(api.OpExec, r.Error, err); err != nil {
		s.Close()
		return nil, err
	}
	if r.PID <= 0 || r.PID > 1<<22 {
		s.Close()
		return nil, fmt.Errorf("guest: exec: process number %d makes no sense", r.PID)
	}
	return &Exec{client: c, stream: s, pid: r.PID}, nil
}
