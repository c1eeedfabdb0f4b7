// Package boundary opens and closes one sandbox's edge: the host's side of
// everything that crosses it. Today the edge lets nothing cross: every frame
// that the sandbox's NIC sends is read and dropped, and none is sent to it. It
// must not know the engine, and must not dial.
package boundary

import (
	"errors"
	"io"
	"net"
	"sync/atomic"
)

// Edge is one open boundary.
type Edge struct {
	network net.Conn
	dropped atomic.Int64
	done    chan struct{}
}

// Open takes charge of the sandbox's NIC, and owns the connection from then on.
func Open(network net.Conn) *Edge {
	e := &Edge{network: network, done: make(chan struct{})}
	go func() {
		defer close(e.done)
		io.Copy((*sink)(&e.dropped), network) // ends when the machine or Close ends it
	}()
	return e
}

// DroppedBytes is how much the sandbox has sent for nothing.
func (e *Edge) DroppedBytes() int64 { return e.dropped.Load() }

// Close ends the edge; nothing of it remains when it has returned. Closing one
// whose machine has closed the connection, or twice, is no fault.
func (e *Edge) Close() error {
	err := e.network.Close()
	<-e.done
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// sink counts and forgets what is written to it, without parsing: nothing that
// a guest can put into a frame reaches code of ours.
type sink atomic.Int64

func (s *sink) Write(p []byte) (int, error) {
	(*atomic.Int64)(s).Add(int64(len(p)))
	return len(p), nil
}
