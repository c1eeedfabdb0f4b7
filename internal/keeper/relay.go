package keeper

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"sync"
	"sync/atomic"

	"creel/internal/audit"
	"creel/internal/audit/event"
	"creel/internal/guest/api"
	"creel/internal/guest/host"
	"creel/internal/policy/tier"
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
	switch {
	case r.runningTask() == nil:
		return errNotRunning
	case r.isPaused():
		return errPaused
	}
	if err := r.record(ctx, audit.KindExec, event.Process{Args: tier.HideAll(p.Args), User: p.User}); err != nil {
		return err
	}
	if r.isPaused() { // meanwhile
		return errPaused
	}
	x, err := r.guest.Exec(ctx, p)
	if err != nil {
		return err
	}
	b := &besides{run: r, x: x, controlled: make(chan struct{})}
	defer b.leave(ctx)
	// A client that goes hangs up on the process, whose output nobody reads.
	defer context.AfterFunc(ctx, b.clientGone)()
	if err := s.Send(ctx, api.ExecReply{PID: x.PID()}); err != nil {
		close(b.controlled)
		return nil // the client has gone, and with it the process's streams
	}
	go func() {
		io.Copy(x.Stdin(), s.Reader(api.ChannelIn))
		if !b.detached.Load() {
			x.Stdin().Close()
		}
	}()
	go b.control(ctx, s)
	b.out.Go(func() { b.pour(s.Writer(api.ChannelOut), x.Stdout()) })
	b.out.Go(func() { b.pour(s.Writer(api.ChannelErr), x.Stderr()) })
	exit, err := x.Wait(ctx)
	if err != nil && ctx.Err() != nil {
		return nil
	}
	b.out.Wait()
	if err != nil {
		exit = api.ExecExit{Error: apiError(r.explained(err))}
	}
	return s.Send(ctx, exit)
}

// besides is a process beside the task, with the client that it was started by.
type besides struct {
	run        *Run
	x          *host.Exec
	out        sync.WaitGroup
	detached   atomic.Bool   // its client has said that it shall go on
	controlled chan struct{} // closed when the client's last message was taken
}

// leave ends what is done for a process, or lets it go on by itself where its
// client has gone and said so, until it or the run ends.
func (b *besides) leave(ctx context.Context) {
	if ctx.Err() != nil {
		<-b.controlled // the client's last messages
		if b.detached.Load() && b.goOn() {
			return
		}
	}
	b.x.Close()
	b.out.Wait()
}

func (b *besides) goOn() bool {
	b.run.mu.Lock()
	defer b.run.mu.Unlock()
	if b.run.isOver() {
		return false
	}
	b.run.tending.Go(func() {
		defer b.x.Close()
		b.x.Wait(context.Background()) // it ends with the guest's connection at the latest
		b.out.Wait()
	})
	return true
}

// clientGone lets go of the process, but for one that shall go on.
func (b *besides) clientGone() {
	<-b.controlled
	if !b.detached.Load() {
		b.x.Close()
	}
}

// pour copies one output channel and ends it. Of a process that goes on without
// its client the rest is read and forgotten.
func (b *besides) pour(to io.WriteCloser, from io.Reader) {
	io.Copy(to, from) // an error means that either side has gone
	to.Close()
	if b.detached.Load() {
		io.Copy(io.Discard, from)
	}
}

// control passes a client's signals and sizes on until the client is gone.
func (b *besides) control(ctx context.Context, s *wire.Stream) {
	defer close(b.controlled)
	for {
		var c api.ExecControl
		if s.Recv(ctx, &c) != nil {
			return
		}
		if c.Detach {
			b.detached.Store(true)
		}
		if c.Resize != nil {
			b.x.Resize(ctx, c.Resize.Rows, c.Resize.Cols) // a process that has ended has no size
		}
		if c.Signal <= 0 {
			continue
		}
		b.run.tellSignal(c.Signal, b.x)
		b.x.Signal(ctx, c.Signal)
	}
}

// copyRequest takes a request and records it, where direction says that files
// will move.
func (r *Run) copyRequest(ctx context.Context, s *wire.Stream, direction string) (api.CopyRequest, error) {
	var req api.CopyRequest
	if err := s.Body(&req); err != nil {
		return req, err
	}
	if err := r.awaitGuest(ctx); err != nil {
		return req, err
	}
	if direction == "" {
		return req, nil
	}
	return req, r.record(ctx, audit.KindCopy, event.Copy{Direction: direction, Path: req.Path})
}

// measured is an archive on its way, with what goes on record of it.
type measured struct {
	io.Reader
	digest hash.Hash
	bytes  int64
}

func measure(archive io.Reader) *measured {
	m := &measured{digest: sha256.New()}
	m.Reader = io.TeeReader(archive, m)
	return m
}

func (m *measured) Write(p []byte) (int, error) {
	m.bytes += int64(len(p))
	return m.digest.Write(p)
}

func (r *Run) recordCopied(ctx context.Context, direction, path string, m *measured) error {
	return r.record(ctx, event.KindCopied, event.Copied{
		Copy:   event.Copy{Direction: direction, Path: path},
		Digest: fmt.Sprintf("sha256:%x", m.digest.Sum(nil)), Bytes: m.bytes,
	})
}

func (r *Run) serveCopyIn(ctx context.Context, s *wire.Stream) error {
	req, err := r.copyRequest(ctx, s, event.In)
	if err != nil {
		return err
	}
	archive := measure(s.Reader(api.ChannelIn))
	if err := r.guest.CopyIn(ctx, req, archive); err != nil {
		return err
	}
	if err := r.recordCopied(ctx, event.In, req.Path, archive); err != nil {
		return err
	}
	return s.Send(ctx, api.Reply{})
}

func (r *Run) serveCopyOut(ctx context.Context, s *wire.Stream) error {
	req, err := r.copyRequest(ctx, s, event.Out)
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
	archive := measure(tar)
	_, err = io.Copy(w, archive)
	if err == nil {
		err = r.recordCopied(ctx, event.Out, req.Path, archive)
	}
	if err != nil {
		r.deps.Log.Warn("a copy did not come to its end", "err", err)
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

func (r *Run) serveTop(ctx context.Context, s *wire.Stream) error {
	if err := r.awaitGuest(ctx); err != nil {
		return err
	}
	top, err := r.guest.Top(ctx)
	if err != nil {
		return err
	}
	return s.Send(ctx, top)
}

// awaitRun waits until the run has come up and is not over, or cannot be.
func (r *Run) awaitRun(ctx context.Context) error {
	if err := r.awaitReady(ctx); err != nil {
		return err
	}
	if r.isOver() {
		return errNotRunning
	}
	return nil
}

// awaitGuest is awaitRun for what needs an answer of the guest.
func (r *Run) awaitGuest(ctx context.Context) error {
	if err := r.awaitRun(ctx); err != nil {
		return err
	}
	if r.isPaused() {
		return errPaused
	}
	return nil
}
