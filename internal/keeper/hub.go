package keeper

import (
	"io"
	"maps"
	"slices"
	"sync"
)

// hub hands the task's output to the log and to every attached client. It
// waits for the slowest, so that nothing is lost and nothing grows; a client
// that goes away is dropped. With nobody attached, output is read and
// forgotten.
type hub struct {
	mu      sync.Mutex
	clients map[*listener]bool
	closed  bool

	// log keeps everything; nil: nothing is kept. An error is reported once
	// and ends the keeping, not the task.
	log      func(channel int, data []byte) error
	logError func(error)
}

func newHub() *hub { return &hub{clients: map[*listener]bool{}} }

// keep begins to keep the output.
func (h *hub) keep(log func(channel int, data []byte) error, logError func(error)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.log, h.logError = log, logError
}

// listener is one attached client: a writer per output channel, nil where it
// does not want it.
type listener struct {
	writers map[int]io.WriteCloser
	drop    func() // ends its connection, for one that does not read
	once    sync.Once
	gone    chan struct{} // closed when the hub has let it go
}

// attach adds a client; after the output has ended it is let go at once.
func (h *hub) attach(writers map[int]io.WriteCloser, drop func()) *listener {
	l := &listener{writers: writers, drop: drop, gone: make(chan struct{})}
	h.mu.Lock()
	closed := h.closed
	if !closed {
		h.clients[l] = true
	}
	h.mu.Unlock()
	if closed {
		l.close()
	}
	return l
}

func (h *hub) detach(l *listener) {
	l.close()
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.clients, l)
}

// close may wait for the client; the hub is not locked.
func (l *listener) close() {
	l.once.Do(func() {
		for _, w := range l.writers {
			w.Close() // the client may be gone already
		}
		close(l.gone)
	})
}

// carry copies one of the task's output channels until it ends.
func (h *hub) carry(channel int, from io.Reader) {
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			h.send(channel, buf[:n])
		}
		if err != nil {
			return
		}
	}
}

func (h *hub) send(channel int, data []byte) {
	h.mu.Lock()
	if h.log != nil {
		if err := h.log(channel, data); err != nil {
			h.log = nil
			h.logError(err)
		}
	}
	var to []*listener
	for l := range h.clients {
		if l.writers[channel] != nil {
			to = append(to, l)
		}
	}
	h.mu.Unlock()
	for _, l := range to {
		if _, err := l.writers[channel].Write(data); err != nil {
			h.detach(l)
		}
	}
}

// end lets every client go: the output is complete.
func (h *hub) end() {
	h.mu.Lock()
	h.closed = true
	all := slices.Collect(maps.Keys(h.clients))
	h.mu.Unlock()
	for _, l := range all {
		h.detach(l)
	}
}

// dropAll ends the connections of clients that have not been let go yet.
func (h *hub) dropAll() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for l := range h.clients {
		l.drop()
	}
}
