package vmtest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"

	"creel/internal/procs"
	"creel/internal/vm"
)

// Driver is a [vm.Driver] in memory. Fields are set before the first Start.
type Driver struct {
	// Guest is run for each machine, in a goroutine of its own, on the guest's
	// end of the control port; nil: nobody answers. It should return when its
	// reads fail, because Close waits for it.
	Guest func(control net.Conn)
	// FailStart, where not nil, may refuse a machine.
	FailStart func(vm.Config) error

	mu       sync.Mutex
	machines []*Machine
}

var _ vm.Driver = (*Driver)(nil)

// Machines are those started so far, ended ones too.
func (d *Driver) Machines() []*Machine {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]*Machine(nil), d.machines...)
}

// Start implements [vm.Driver].
func (d *Driver) Start(ctx context.Context, c vm.Config) (vm.Machine, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if d.FailStart != nil {
		if err := d.FailStart(c); err != nil {
			return nil, err
		}
	}
	m := &Machine{Config: c, done: make(chan struct{}), faults: make(chan vm.Fault, 1)}
	for i := range m.host {
		host, guest, err := procs.Conns()
		if err != nil {
			m.Close()
			return nil, err
		}
		m.host[i], m.guest[i] = host, guest
	}
	if d.Guest != nil {
		m.serving.Go(func() { d.Guest(m.guest[0]) })
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.machines = append(d.machines, m)
	return m, nil
}

// Machine is a [vm.Machine] without a process.
type Machine struct {
	Config vm.Config // as it was started

	host, guest [3]net.Conn // control, share, network
	serving     sync.WaitGroup
	done        chan struct{}
	faults      chan vm.Fault
	probes      atomic.Int64
	hangs       atomic.Bool

	mu     sync.Mutex
	err    error
	ended  bool
	paused bool
}

var (
	_ vm.Machine     = (*Machine)(nil)
	_ vm.Snapshotter = (*Machine)(nil)
	_ vm.Pauser      = (*Machine)(nil)
	_ vm.Prober      = (*Machine)(nil)
	_ vm.Faulter     = (*Machine)(nil)
)

func (m *Machine) Control() net.Conn     { return m.host[0] }
func (m *Machine) Share() net.Conn       { return m.host[1] }
func (m *Machine) Network() net.Conn     { return m.host[2] }
func (m *Machine) PID() int              { return 0 }
func (m *Machine) Done() <-chan struct{} { return m.done }

// GuestControl, GuestShare and GuestNetwork are the guest's ends.
func (m *Machine) GuestControl() net.Conn { return m.guest[0] }
func (m *Machine) GuestShare() net.Conn   { return m.guest[1] }
func (m *Machine) GuestNetwork() net.Conn { return m.guest[2] }

// Err implements [vm.Machine].
func (m *Machine) Err() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.err
}

// Paused reports whether Pause was called last.
func (m *Machine) Paused() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.paused
}

// Die ends the machine by itself: err is what Err returns, nil a power-off.
func (m *Machine) Die(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ended {
		return
	}
	m.ended, m.err = true, err
	for _, c := range m.guest {
		if c != nil {
			c.Close()
		}
	}
	close(m.done)
}

// Close implements [vm.Machine].
func (m *Machine) Close() error {
	m.Die(nil)
	for _, c := range m.host {
		if c != nil {
			c.Close() // a second time it says so, which is no fault
		}
	}
	m.serving.Wait()
	return nil
}

// Snapshot implements [vm.Snapshotter]: the state is a word, the memory is left
// as it is.
func (m *Machine) Snapshot(ctx context.Context, state *os.File) error {
	if err := errors.Join(ctx.Err(), m.alive()); err != nil {
		return err
	}
	if _, err := state.WriteString("state"); err != nil {
		return fmt.Errorf("write state: %w", err)
	}
	return nil
}

// Pause implements [vm.Pauser].
func (m *Machine) Pause(context.Context) error { return m.setPaused(true) }

// Resume implements [vm.Pauser].
func (m *Machine) Resume(context.Context) error { return m.setPaused(false) }

func (m *Machine) setPaused(paused bool) error {
	if err := m.alive(); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.paused = paused
	return nil
}

// Probe implements [vm.Prober].
func (m *Machine) Probe(ctx context.Context) (vm.Vitals, error) {
	m.probes.Add(1)
	if m.hangs.Load() {
		select {
		case <-ctx.Done():
			return vm.Vitals{}, ctx.Err()
		case <-m.done:
		}
	}
	return vm.Vitals{Running: !m.Paused()}, m.alive()
}

// Hang makes Probe answer no more.
func (m *Machine) Hang() { m.hangs.Store(true) }

// Probes is how often Probe was called.
func (m *Machine) Probes() int64 { return m.probes.Load() }

// Faults implements [vm.Faulter].
func (m *Machine) Faults() <-chan vm.Fault { return m.faults }

// Fault is one of the host's disks; the machine's user hears of it.
func (m *Machine) Fault(f vm.Fault) { m.faults <- f }

func (m *Machine) alive() error {
	select {
	case <-m.done:
		return errors.New("the machine has ended")
	default:
		return nil
	}
}
