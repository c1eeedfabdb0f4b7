package holder

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"creel/internal/template/content"
	"creel/internal/undo"

	"golang.org/x/sys/unix"
)

// Config is what a holder process needs.
type Config struct {
	Dir      string // of the sockets
	Template Template
	Stamps   content.Stamps
	Idle     time.Duration // without clients, until it ends
	// Confine locks the process in; what it opens by path afterwards is the
	// root file system, and what it removes is its socket.
	Confine func() error
}

// requestTimeout is how long a client may take to say what it wants.
const requestTimeout = 10 * time.Second

// Serve loads the template and hands its parts out until ctx ends, or there
// was no client for a while, or it was told to retire. It tells its starter
// over descriptor 3 when it is ready, or why it will not be.
func Serve(ctx context.Context, c Config) error {
	starter := os.NewFile(readyFD, "starter")
	s := server{cfg: c, done: make(chan *net.UnixConn), retire: make(chan struct{}, 1)}
	var steps undo.Stack
	defer steps.Unwind()
	err := s.open(ctx, &steps)
	if errors.Is(err, unix.EADDRINUSE) {
		// Another holder of this template was faster; let it serve.
		starter.WriteString(readyWord)
		return starter.Close()
	}
	if err != nil {
		return refuse(starter, err)
	}
	starter.WriteString(readyWord)
	starter.Close()
	return s.run(ctx)
}

// Refuse tells the starter why there will be no holder, and returns the reason.
func Refuse(reason error) error { return refuse(os.NewFile(readyFD, "starter"), reason) }

func refuse(starter *os.File, reason error) error {
	starter.WriteString(reason.Error())
	return errors.Join(reason, starter.Close())
}

type server struct {
	cfg           Config
	dir           *os.File
	memory, state *os.File
	listener      *net.UnixListener

	linked bool // the socket has its name

	done   chan *net.UnixConn // a client has gone
	retire chan struct{}

	mu    sync.Mutex // held while the root is checked, so that it is hashed once
	stamp content.Stamp
}

func (s *server) open(ctx context.Context, steps *undo.Stack) (err error) {
	if s.dir, err = openDir(s.cfg.Dir); err != nil {
		return err
	}
	steps.Push("runtime directory", s.dir.Close)
	if err := s.load(ctx, steps); err != nil {
		return err
	}
	name := socketName(s.cfg.Template.Digest)
	s.listener, err = net.ListenUnix("unixpacket", socketAddr(s.dir, name))
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	s.listener.SetUnlinkOnClose(false)
	s.linked = true
	steps.Push("listener", s.unlisten)
	return s.cfg.Confine()
}

// unlink takes the socket's name away, once. It has to happen while the socket
// still listens: whoever cannot connect any more starts the next holder, and
// that one's socket has the same name.
func (s *server) unlink() error {
	if !s.linked {
		return nil
	}
	s.linked = false
	return unlinkSocket(s.dir, socketName(s.cfg.Template.Digest))
}

func (s *server) unlisten() error { return errors.Join(s.unlink(), s.listener.Close()) }

// load copies memory and state into sealed files, and checks the root.
func (s *server) load(ctx context.Context, steps *undo.Stack) (err error) {
	t := s.cfg.Template
	if s.memory, err = sealedCopy(ctx, "creel-memory", t.Memory, content.Memory); err != nil {
		return fmt.Errorf("memory: %w", err)
	}
	steps.Push("memory", s.memory.Close)
	if s.state, err = sealedCopy(ctx, "creel-state", t.State, content.File); err != nil {
		return fmt.Errorf("device state: %w", err)
	}
	steps.Push("device state", s.state.Close)
	s.stamp = s.cfg.Stamps.Load(t.Root.Digest)
	known := s.stamp
	root, err := s.checkedRoot(ctx)
	if err != nil {
		return err
	}
	root.Close()
	if s.stamp != known {
		return s.cfg.Stamps.Save(s.stamp)
	}
	return nil
}

type copier func(ctx context.Context, src, dst *os.File) (string, error)

func sealedCopy(ctx context.Context, name string, p Part, copy copier) (*os.File, error) {
	src, err := content.Open(p.Path)
	if err != nil {
		return nil, err
	}
	defer src.Close()
	dst, err := content.NewMemfd(name)
	if err != nil {
		return nil, err
	}
	got, err := copy(ctx, src, dst)
	if err == nil && got != p.Digest {
		err = &content.MismatchError{Path: p.Path, Want: p.Digest, Got: got}
	}
	if err == nil {
		err = content.Seal(dst)
	}
	if err != nil {
		dst.Close()
		return nil, err
	}
	return dst, nil
}

// checkedRoot opens the root file system for one client, and hashes it unless
// it is the file that was hashed last, unchanged.
func (s *server) checkedRoot(ctx context.Context) (*os.File, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f, err := content.Open(s.cfg.Template.Root.Path)
	if err != nil {
		return nil, fmt.Errorf("root file system: %w", err)
	}
	stamp, err := content.Check(ctx, f, s.cfg.Template.Root.Digest, s.stamp)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("root file system: %w", err)
	}
	s.stamp = stamp
	return f, nil
}

// run serves until there is a reason to end; all clients' connections are
// closed then.
func (s *server) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	accepted := make(chan *net.UnixConn)
	var tasks sync.WaitGroup
	tasks.Go(func() { s.accept(ctx, accepted) })
	clients := map[*net.UnixConn]bool{}
	defer func() {
		cancel()
		s.unlisten()
		for c := range clients {
			c.Close()
		}
		tasks.Wait()
	}()
	idle := time.NewTimer(s.cfg.Idle)
	retired := false
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-idle.C:
			return nil
		case <-s.retire:
			retired = true
			if err := s.unlink(); err != nil {
				return err
			}
		case c := <-accepted:
			idle.Stop()
			clients[c] = true
			tasks.Go(func() { s.serveClient(ctx, c) })
		case c := <-s.done:
			c.Close()
			delete(clients, c)
			if len(clients) == 0 {
				idle.Reset(s.cfg.Idle)
			}
		}
		if retired && len(clients) == 0 {
			return nil
		}
	}
}

func (s *server) accept(ctx context.Context, accepted chan<- *net.UnixConn) {
	for {
		c, err := s.listener.AcceptUnix()
		if err != nil {
			return // closed
		}
		select {
		case accepted <- c:
		case <-ctx.Done():
			c.Close()
			return
		}
	}
}

// serveClient answers one client and returns when it has gone.
func (s *server) serveClient(ctx context.Context, c *net.UnixConn) {
	defer func() {
		select {
		case s.done <- c:
		case <-ctx.Done():
		}
	}()
	if checkPeer(c) != nil {
		return
	}
	c.SetDeadline(time.Now().Add(requestTimeout))
	var r request
	if _, err := receive(c, &r, 0); err != nil {
		return
	}
	// A root that changed is hashed again first, which may take longer.
	c.SetDeadline(time.Time{})
	if err := s.answer(ctx, c, r); err != nil {
		return
	}
	c.Read(make([]byte, 1)) // returns when the client has gone
}

func (s *server) answer(ctx context.Context, c *net.UnixConn, r request) error {
	refuse := func(text string) error {
		return errors.Join(errors.New(text), send(c, reply{Version: version, Error: text}))
	}
	switch {
	case r.Version != version:
		return refuse(fmt.Sprintf("holder speaks version %d, the client %d; it ends when its clones have ended", version, r.Version))
	case r.Digest != s.cfg.Template.Digest:
		return refuse("holder has another template")
	case r.Op == opRetire:
		select {
		case s.retire <- struct{}{}:
		default: // told before
		}
		return send(c, reply{Version: version})
	case r.Op != opOpen:
		return refuse(fmt.Sprintf("operation %q is not known", r.Op))
	}
	root, err := s.checkedRoot(ctx)
	if err != nil {
		return refuse(err.Error())
	}
	defer root.Close()
	return send(c, reply{Version: version}, s.memory, s.state, root)
}
