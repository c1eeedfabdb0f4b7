package keeper

import (
	"context"
	"creel/internal/keeper/launch"
	"errors"
	"fmt"
	"net"
	"sync"

	"creel/internal/guest/host"
	"creel/internal/sandbox"
	"creel/internal/vm"
)

// Waiting is a restored clone that is nobody's yet. Where it was prepared,
// nothing that its guest says is read before a run has taken it and the keeper
// is locked in.
type Waiting struct {
	machine  vm.Machine
	parts    *Parts
	guest    *host.Client // nil: the run begins the conversation
	listen   func()       // lets the guest be heard
	prepared chan error
}

// Restore starts a clone from the parts of a template, which go with it, and at
// once where it cannot be started. Of c they are what is missing.
func Restore(ctx context.Context, driver vm.Driver, c vm.Config, parts *Parts) (*Waiting, error) {
	c.Memory, c.Restore, c.CPU, c.Disks = parts.Memory, parts.State, parts.CPU, parts.Disks
	m, err := driver.Start(ctx, c)
	if err != nil {
		return nil, errors.Join(err, parts.Close())
	}
	return &Waiting{machine: m, parts: parts}, nil
}

// Prepare has the guest do what its identity will need. It does not wait for
// it. Close is for clones that are prepared.
func (w *Waiting) Prepare() {
	port := &unheard{Conn: w.machine.Control(), heard: make(chan struct{})}
	w.guest, w.listen, w.prepared = host.New(port), port.listen, make(chan error, 1)
	go func() { // ends with the conversation
		w.prepared <- w.guest.Prepare(context.Background(), identity(launch.Config{Spec: sandbox.Spec{Hostname: "nobody"}}))
	}()
}

// Done is closed when the machine has ended.
func (w *Waiting) Done() <-chan struct{} { return w.machine.Done() }

// Close ends the machine. A run that has taken it does so itself; then nothing
// is left to do.
func (w *Waiting) Close() error {
	w.listen()
	return errors.Join(w.guest.Close(), w.machine.Close(), w.parts.Close())
}

// converse begins the conversation with the guest, or goes on with the one in
// which it was prepared.
func (w *Waiting) converse(ctx context.Context) (*host.Client, error) {
	if w.guest == nil {
		return host.New(w.machine.Control()), nil
	}
	w.listen()
	select {
	case err := <-w.prepared:
		if err != nil {
			err = fmt.Errorf("prepare the waiting VM: %w", err)
		}
		return w.guest, err
	case <-ctx.Done():
		return w.guest, ctx.Err()
	}
}

// unheard is a port that is not read from until somebody listens.
type unheard struct {
	net.Conn
	once  sync.Once
	heard chan struct{}
}

func (u *unheard) listen() { u.once.Do(func() { close(u.heard) }) }

func (u *unheard) Read(p []byte) (int, error) {
	<-u.heard
	return u.Conn.Read(p)
}
