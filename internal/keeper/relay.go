package keeper

import (
	"context"
	"errors"
	"io"
	"sync"

	"creel/internal/guest/api"
	"creel/internal/guest/host"
	"creel/internal/sandbox"
	"creel/internal/wire"
)

var errNotRunning = errors.New("the sandbox is not running")

// runningTask is nil before the task runs, and when the run is over.
func (r *Run) runningTask() *host.Exec {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.isOver() {
		return nil
	}
	return r.task
}

// serveExec runs one more process beside the task. Its record is durable
// before it runs.
func (r *Run) serveExec(ctx context.Context, s *wire.Stream) error {
	var p sandbox.Process
	if err := s.Body(&p); err != nil {
		return err
	}
	if r.runningTask() == nil {
		return errNotRunning
	}
	if err := r.record(ctx, "exec", map[string]any{"args": p.Args, "user": p.User}); err != nil {
		return err
	}
	x, err := r.guest.Exec(ctx, p)
	if err != nil {
		return err
	}
	defer x.Close()
	// A client that goes lets go of the process, whose output nobody reads.
	defer context.AfterFunc(ctx, func() { x.Close() })()
	if err := s.Send(ctx, api.ExecReply{PID: x.PID()}); err != nil {
		return nil // the client has gone, and with it the process's streams
	}
	go func() {
		io.Copy(x.Stdin(), s.Reader(api.ChannelIn))
		x.Stdin().Close()
	}()
	go r.control(ctx, s, x)
	var out sync.WaitGroup
	out.Go(func() { pour(s.Writer(api.ChannelOut), x.Stdout()) })
	out.Go(func() { pour(s.Writer(api.ChannelErr), x.Stderr()) })
	exit, err := x.Wait(ctx)
	out.Wait()
	if err != nil {
		return err
	}
	return s.Send(ctx, exit)
}

// pour copies one output channel and ends it.
func pour(to io.WriteCloser, from io.Reader) {
	io.Copy(to, from) // an error means that either side has gone
	to.Close()
}

// control passes a client's signals and sizes on until the client is gone. A
// signal that cannot be recorded is not sent, and is the last.
func (r *Run) control(ctx context.Context, s *wire.Stream, x *host.Exec) {
	for {
		var c api.ExecControl
		if s.Recv(ctx, &c) != nil {
			return
		}
		if c.Resize != nil {
			x.Resize(ctx, c.Resize.Rows, c.Resize.Cols) // a process that has ended has no size
		}
		if c.Signal <= 0 {
			continue
		}
		if err := r.recordSignal(ctx, c.Signal, x); err != nil {
			r.deps.Log.Error("a signal was not sent", "err", err)
			return
		}
		x.Signal(ctx, c.Signal)
	}
}

func (r *Run) copyRequest(ctx context.Context, s *wire.Stream, record string) (api.CopyRequest, error) {
	var req api.CopyRequest
	if err := s.Body(&req); err != nil {
		return req, err
	}
	if err := r.awaitGuest(ctx); err != nil {
		return req, err
	}
	if record == "" {
		return req, nil
	}
	return req, r.record(ctx, "copy", map[string]any{"direction": record, "path": req.Path})
}

func (r *Run) serveCopyIn(ctx context.Context, s *wire.Stream) error {
	req, err := r.copyRequest(ctx, s, "in")
	if err != nil {
		return err
	}
	if err := r.guest.CopyIn(ctx, req, s.Reader(api.ChannelIn)); err != nil {
		return err
	}
	return s.Send(ctx, api.Reply{})
}

func (r *Run) serveCopyOut(ctx context.Context, s *wire.Stream) error {
	req, err := r.copyRequest(ctx, s, "out")
	if err != nil {
		return err
	}
	tar, err := r.guest.CopyOut(ctx, req.Path)
	if err != nil {
		return err
	}
	defer tar.Close()
	if err := s.Send(ctx, api.Reply{}); err != nil {
		return nil
	}
	w := s.Writer(api.ChannelOut)
	if _, err := io.Copy(w, tar); err != nil {
		return nil // the tar ends short; its reader notices
	}
	return w.Close()
}

func (r *Run) serveStat(ctx context.Context, s *wire.Stream) error {
	req, err := r.copyRequest(ctx, s, "")
	if err != nil {
		return err
	}
	reply, err := r.guest.Stat(ctx, req.Path)
	if err != nil {
		return err
	}
	return s.Send(ctx, reply)
}

func (r *Run) serveUsage(ctx context.Context, s *wire.Stream) error {
	if err := r.awaitGuest(ctx); err != nil {
		return err
	}
	usage, err := r.guest.Usage(ctx)
	if err != nil {
		return err
	}
	return s.Send(ctx, usage)
}

// awaitGuest waits until the guest can be asked, or never can.
func (r *Run) awaitGuest(ctx context.Context) error {
	if err := r.awaitReady(ctx); err != nil {
		return err
	}
	if r.isOver() {
		return errNotRunning
	}
	return nil
}
