package keeper

import (
	"slices"
	"sync"

	"creel/internal/sandbox"
)

// notes hands denials to whoever listens; one that does not keep up loses
// some, and the final status has them all.
type notes struct {
	mu        sync.Mutex
	listeners []chan sandbox.Denial
}

const notesAhead = 16

func (n *notes) listen() chan sandbox.Denial {
	n.mu.Lock()
	defer n.mu.Unlock()
	c := make(chan sandbox.Denial, notesAhead)
	n.listeners = append(n.listeners, c)
	return c
}

func (n *notes) leave(c chan sandbox.Denial) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.listeners = slices.DeleteFunc(n.listeners, func(l chan sandbox.Denial) bool { return l == c })
}

func (n *notes) send(d sandbox.Denial) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, c := range n.listeners {
		select {
		case c <- d:
		default:
		}
	}
}
