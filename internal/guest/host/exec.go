package host

import (
	"context"
	"fmt"
	"io"

	"creel/internal/guest/api"
	"creel/internal/wire"
)

// Exec is one process in a guest. Both outputs must be read to their ends for
// [Exec.Wait] to return; with a TTY all output is on Stdout.
type Exec struct {
	client *Client
	stream *wire.Stream
	pid    int
}

// PID is the process's number in the guest.
func (e *Exec) PID() int { return e.pid }

// Stdin is where the process reads from; Close is its end of file.
func (e *Exec) Stdin() io.WriteCloser { return e.stream.Writer(api.ChannelIn) }

// Stdout is the process's output, for one reader.
func (e *Exec) Stdout() io.Reader { return e.stream.Reader(api.ChannelOut) }

// Stderr is the process's error output, for one reader.
func (e *Exec) Stderr() io.Reader { return e.stream.Reader(api.ChannelErr) }

// Signal sends the process a signal, 1 to 64; nothing happens where it has
// ended.
func (e *Exec) Signal(ctx context.Context, n int) error {
	if n < 1 || n > 64 {
		return fmt.Errorf("signal %d: want 1 to 64", n)
	}
	return e.control(ctx, api.ExecControl{Signal: n})
}

// Resize sets the size of the process's terminal in character cells.
func (e *Exec) Resize(ctx context.Context, rows, cols uint16) error {
	return e.control(ctx, api.ExecControl{Resize: &api.Resize{Rows: rows, Cols: cols}})
}

// Detach lets the process go on, with its streams open, when this client of a
// keeper has closed it or gone.
func (e *Exec) Detach(ctx context.Context) error {
	return e.control(ctx, api.ExecControl{Detach: true})
}

func (e *Exec) control(ctx context.Context, c api.ExecControl) error {
	if err := e.stream.Send(ctx, c); err != nil {
		return e.client.named("control process", err)
	}
	return nil
}

// Wait returns how the process ended, once; its outputs have ended too.
func (e *Exec) Wait(ctx context.Context) (api.ExecExit, error) {
	var exit api.ExecExit
	if err := e.stream.Recv(ctx, &exit); err != nil {
		if err == io.EOF {
			err = wire.ErrPeerClosed
		}
		return api.ExecExit{}, e.client.named("wait", err)
	}
	if exit.Error != nil {
		return api.ExecExit{}, e.client.refusal("wait", exit.Error, nil)
	}
	if exit.Code < 0 || exit.Code > 255 || exit.Signal < 0 || exit.Signal > 64 {
		return api.ExecExit{}, fmt.Errorf("guest: process %d ended with code %d, signal %d, which makes no sense", e.pid, exit.Code, exit.Signal)
	}
	return exit, nil
}

// Close hangs up: a process that still runs gets SIGHUP, and SIGKILL where it
// has not ended 5 s later.
func (e *Exec) Close() error { return e.stream.Close() }
