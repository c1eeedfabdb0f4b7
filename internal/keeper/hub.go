package keeper

import (
	"io"
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

// listener is one attached client: a writer per output channel, nil where it
// does not want it.
type listener struct {
	writers map[int]io.WriteCloser
	gone    chan struct{} // closed when the hub has let it go
}

// attach adds a client; after the output has ended it is let go at once.
func (h *hub) attach(writers map[int]io.WriteCloser) *listener {
	l := &listener{writers: writers, gone: make(chan struct{})}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		l.close()
		return l
	}
	if h.clients == nil {
		h.clients = map[*listener]bool{}
	}
	h.clients[l] = true
	return l
}

func (h *hub) detach(l *listener) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.clients[l] {
		delete(h.clients, l)
		l.close()
	}
}

func (l *listener) close() {
	for _, w := range l.writers {
		w.Close() // the client may be gone already
	}
	close(l.gone)
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
	defer h.mu.Unlock()
	h.closed = true
	for l := range h.clients {
		delete(h.clients, l)
		l.close()
	}
}
