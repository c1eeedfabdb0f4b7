package keeper

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"sync"

	"creel/internal/audit"
	"creel/internal/audit/event"
	"creel/internal/guest/api"
	"creel/internal/keeper/socket"
	"creel/internal/procs"
	"creel/internal/wire"
)

// Serve answers clients on l until the run has ended, and closes it. Only root
// and the user that the keeper was started by may connect.
func (r *Run) Serve(l net.Listener, uid int) {
	var closing sync.WaitGroup
	defer closing.Wait()
	closing.Go(func() { <-r.ended; l.Close() })
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		if peer, err := procs.Peer(conn.(*net.UnixConn)); err != nil || peer.Uid != 0 && int(peer.Uid) != uid {
			r.deps.Log.Warn("refused a client", "peer", peer, "err", err)
			conn.Close()
			continue
		}
		r.serve(conn, func() {})
	}
}

// maxClients at once; the next is hung up on. It keeps the keeper's descriptors
// from running out.
const maxClients = 64

// serve answers one client in the background, and calls gone when it has hung
// up. It owns conn.
func (r *Run) serve(conn net.Conn, gone func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.leaving || len(r.clients) >= maxClients {
		conn.Close()
		return
	}
	r.clients[conn] = true
	w := wire.NewConn(conn, wire.Options{Handler: func(ctx context.Context, s *wire.Stream) {
		r.handle(ctx, s, func() { conn.Close() })
	}})
	r.serving.Go(func() {
		<-w.Done()
		gone()
		w.Close() // waits for the handlers
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.clients, conn)
	})
}

// hangUp ends the connections of clients that do not go.
func (r *Run) hangUp() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for conn := range r.clients {
		conn.Close()
	}
}

// removeSocket leaves no way in, where there was one.
func (r *Run) removeSocket() error {
	if err := r.deps.Dir.Remove(socket.Name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove socket: %w", err)
	}
	return nil
}

func (r *Run) handle(ctx context.Context, s *wire.Stream, drop func()) {
	serveAttach := func(ctx context.Context, s *wire.Stream) error { return r.serveAttach(ctx, s, drop) }
	serve, known := map[string]func(context.Context, *wire.Stream) error{
		socket.OpHello: r.serveHello, socket.OpReady: r.serveReady, socket.OpAttach: serveAttach, socket.OpDetach: r.serveDetach, socket.OpStart: r.serveStart,
		socket.OpWait: r.serveWait, socket.OpStatus: r.serveStatus, socket.OpSignal: r.serveSignal, socket.OpStop: r.serveStop,
		socket.OpKill: r.serveKill, socket.OpPause: r.servePause, socket.OpResume: r.serveResume, socket.OpLogs: r.serveLogs,
		socket.OpPolicy: r.servePolicy, socket.OpInForce: r.serveInForce, socket.OpSecrets: r.serveSecrets, socket.OpNotes: r.serveNotes,
		api.OpExec: r.serveExec, api.OpCopyIn: r.serveCopyIn, api.OpCopyOut: r.serveCopyOut,
		api.OpStat: r.serveStat, api.OpUsage: r.serveUsage, api.OpTop: r.serveTop,
	}[s.Op()]
	err := fmt.Errorf("operation %q is not known to this keeper", s.Op())
	if known {
		err = serve(ctx, s)
	}
	if err != nil {
		err = r.explained(err)
		s.Send(ctx, api.Reply{Error: apiError(err)}) // the client may have gone
	}
}

// apiError keeps the class of an error that came from the guest.
func apiError(err error) *api.Error {
	if err == nil {
		return nil
	}
	return &api.Error{Code: api.ErrorCode(err), Message: err.Error()}
}

func (r *Run) serveHello(ctx context.Context, s *wire.Stream) error {
	var req socket.HelloRequest
	if err := s.Body(&req); err != nil {
		return err
	}
	reply := socket.HelloReply{Version: socket.Version, ID: r.cfg.Spec.ID}
	if req.Version != socket.Version {
		reply.Error = &api.Error{Code: api.CodeInvalid, Message: fmt.Sprintf(
			"the sandbox's keeper speaks version %d, this creel version %d; use the creel that started it", socket.Version, req.Version)}
	}
	return s.Send(ctx, reply)
}

func (r *Run) serveReady(ctx context.Context, s *wire.Stream) error {
	if err := r.awaitReady(ctx); err != nil {
		return err
	}
	r.mu.Lock()
	reply := socket.StatusReply{Status: r.withEdge(r.status), Error: apiError(r.failure)}
	r.mu.Unlock()
	return s.Send(ctx, reply)
}

func (r *Run) serveStatus(ctx context.Context, s *wire.Stream) error {
	return s.Send(ctx, socket.StatusReply{Status: r.Status()})
}

func (r *Run) serveWait(ctx context.Context, s *wire.Stream) error {
	select {
	case <-r.ended:
	case <-ctx.Done():
		return ctx.Err()
	}
	return s.Send(ctx, socket.StatusReply{Status: r.Status()})
}

func (r *Run) serveStart(ctx context.Context, s *wire.Stream) error {
	if err := r.start(ctx); err != nil {
		return err
	}
	return s.Send(ctx, api.Reply{})
}

func (r *Run) serveAttach(ctx context.Context, s *wire.Stream, drop func()) error {
	var req socket.AttachRequest
	if err := s.Body(&req); err != nil {
		return err
	}
	if r.isPaused() {
		return errPaused
	}
	writers := map[int]io.WriteCloser{}
	if req.Stdout {
		writers[api.ChannelOut] = s.Writer(api.ChannelOut)
	}
	if req.Stderr {
		writers[api.ChannelErr] = s.Writer(api.ChannelErr)
	}
	client := r.out.attach(writers, drop)
	defer r.out.detach(client)
	if err := s.Send(ctx, api.Reply{}); err != nil {
		return nil // gone already
	}
	if req.Stdin && r.cfg.Process.Interactive {
		go r.feed(ctx, s.Reader(api.ChannelIn), req.EndsStdin) // ends with the stream
	}
	select {
	case <-client.gone:
	case <-ctx.Done():
	}
	return nil
}

// serveDetach leaves a run that was started in the foreground to this keeper.
func (r *Run) serveDetach(ctx context.Context, s *wire.Stream) error {
	var req socket.DetachRequest
	if err := s.Body(&req); err != nil {
		return err
	}
	if err := r.awaitRun(ctx); err != nil {
		return err
	}
	if err := r.record(ctx, event.KindStep, event.Step{Step: "detach"}); err != nil {
		return err
	}
	if err := r.detach(req.Keep); err != nil {
		return err
	}
	return s.Send(ctx, api.Reply{})
}

func (r *Run) detach(keep bool) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.isOver() {
		return errNotRunning
	}
	if keep && r.log == nil {
		if err := r.beginLog(); err != nil {
			return err
		}
		r.kept = true
	}
	r.detached = true
	return nil
}

func (r *Run) serveSignal(ctx context.Context, s *wire.Stream) error {
	var req api.ExecControl
	if err := s.Body(&req); err != nil {
		return err
	}
	err := errors.New("neither a signal nor a size was given")
	switch task := r.runningTask(); {
	case task == nil:
		err = errNotRunning
	case r.isPaused() && req.Signal == sigkill:
		return r.serveKill(ctx, s) // as it needs nothing of the guest
	case r.isPaused():
		err = errPaused
	case req.Resize != nil:
		err = task.Resize(ctx, req.Resize.Rows, req.Resize.Cols)
	case req.Signal == sigkill:
		err = r.killTask(ctx)
	case req.Signal > 0:
		r.tellSignal(req.Signal, task)
		err = task.Signal(ctx, req.Signal)
	}
	if err != nil {
		return err
	}
	return s.Send(ctx, api.Reply{})
}

func (r *Run) serveStop(ctx context.Context, s *wire.Stream) error {
	var req socket.StopRequest
	if err := s.Body(&req); err != nil {
		return err
	}
	if req.Signal == 0 {
		req.Signal = r.cfg.StopSignal
	}
	if err := r.stop(ctx, req.Signal, req.Grace); err != nil {
		return err
	}
	return s.Send(ctx, api.Reply{})
}

func (r *Run) serveKill(ctx context.Context, s *wire.Stream) error {
	r.tell(audit.KindSignal, event.Signal{Signal: sigkill, Target: "vm"})
	r.kill()
	return s.Send(ctx, api.Reply{})
}

func (r *Run) serveLogs(ctx context.Context, s *wire.Stream) error {
	if err := r.awaitReady(ctx); err != nil {
		return err
	}
	log := r.keptLog()
	if log == nil {
		return errors.New("this sandbox keeps no log: it runs in the foreground")
	}
	if err := s.Send(ctx, api.Reply{}); err != nil {
		return nil
	}
	w := s.Writer(api.ChannelOut)
	defer w.Close()
	if err := log.Follow(ctx, w); err != nil && ctx.Err() == nil {
		r.deps.Log.Warn("following the log", "err", err)
	}
	return nil
}
