package qemu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"creel/internal/confine"
	"creel/internal/postmortem"
	"creel/internal/procs"
	"creel/internal/undo"
	"creel/internal/vm"
)

const (
	maxLastWords = 16 << 10 // of the VMM's stderr and of the guest's console, the end of each
	minFileBytes = 64 << 20 // what a VMM may write to a file: at least a device state
)

// comesUpIn is how long a VMM may take until its guest runs, on a machine that is
// busy.
const comesUpIn = 2 * time.Minute

// machine is a running VMM.
type machine struct {
	process *confine.Process
	qmp     *qmp

	control, share, network net.Conn

	words    *lastWords
	patience time.Duration // with a VMM that comes up

	console *lastWords        // what the guest's kernel said
	kills   *postmortem.Kills // nil where this kernel does not count
	stack   *undo.Stack

	done     chan struct{}
	shutdown chan struct{} // closed when the guest has ended the machine; the VMM waits to be killed
	disks    []vm.Disk
	faults   chan vm.Fault

	mu     sync.Mutex
	closed bool
	reason string // of the SHUTDOWN event, or internalError
	err    error  // valid once done is closed

	stops    chan struct{}  // of the virtual CPUs, for watchStops
	watching sync.WaitGroup // watchStops

	closeOnce sync.Once
	closeErr  error
}

var (
	_ vm.Machine     = (*machine)(nil)
	_ vm.Snapshotter = (*machine)(nil)
	_ vm.Pauser      = (*machine)(nil)
	_ vm.Prober      = (*machine)(nil)
	_ vm.Faulter     = (*machine)(nil)
)

// start runs one VMM to the point where its guest runs. What it opens is on
// the stack, and goes when it fails.
func (d *Driver) start(ctx context.Context, c vm.Config) (_ *machine, err error) {
	m := &machine{done: make(chan struct{}), shutdown: make(chan struct{}), disks: c.Disks, patience: comesUpIn, faults: make(chan vm.Fault, 1), stops: make(chan struct{}, 1)}
	var stack undo.Stack
	defer func() {
		if err != nil {
			err = errors.Join(m.withLastWords(err), stack.Unwind())
		}
	}()

	if c.Restore == nil {
		// The VMM opens these by name, which its uid may not: it gets copies.
		if c.Kernel, err = copyToMemory(&stack, "kernel", c.Kernel); err != nil {
			return nil, err
		}
		if c.Initrd, err = copyToMemory(&stack, "initrd", c.Initrd); err != nil {
			return nil, err
		}
	}
	if c.Restore != nil {
		// A descriptor has one offset for all who share it, other clones too.
		if c.Restore, err = copyToMemory(&stack, "state", c.Restore); err == nil {
			_, err = c.Restore.Seek(0, io.SeekStart)
		}
		if err != nil {
			return nil, err
		}
	}
	p := newPlan(c)
	var conns [4]*net.UnixConn
	var theirs undo.Stack // the VMM's ends: ours to close once it runs
	defer func() { err = errors.Join(err, theirs.Unwind()) }()
	files := make([]*os.File, 0, fdFirstFree-3+len(p.files))
	for i := range conns {
		var far *os.File
		if conns[i], far, err = procs.Pair(); err != nil {
			return nil, err
		}
		stack.Push("close socket", func() error { return closeOnce(conns[i]) })
		theirs.Push("close socket", far.Close)
		files = append(files, far)
	}
	files = append(append(files, c.Memory), p.files...)
	var stderr *os.File
	if m.words, stderr, err = newLastWords(); err != nil {
		return nil, err
	}
	theirs.Push("close stderr", stderr.Close)
	stack.Push("close stderr", m.words.close)
	var stdout *os.File
	if m.console, stdout, err = newLastWords(); err != nil {
		return nil, err
	}
	theirs.Push("close console", stdout.Close)
	stack.Push("close console", m.console.close)
	if m.kills, err = postmortem.OpenKills(); err == nil {
		stack.Push("close count of kills", m.kills.Close)
	}

	m.process, err = confine.Start(confine.VMM{
		Path: d.binary, Args: p.args, Files: files, Stderr: stderr, Stdout: stdout,
		Level: c.Confinement.Level, UID: c.Confinement.UID, GID: c.Confinement.GID, Dir: c.Confinement.Dir,
		KVM: c.Accel == "kvm", MaxFileBytes: maxFileBytes(c),
	})
	if err != nil {
		return nil, err
	}
	stack.Push("kill vmm", m.process.Kill)
	// From here on an end of the VMM ends its sockets, and with them any wait.
	if err = theirs.Unwind(); err != nil {
		return nil, err
	}
	m.qmp = newQMP(conns[0])
	go m.qmp.read(m.onEvent)
	m.watching.Go(m.watchStops)
	m.control, m.share, m.network = conns[1], conns[2], conns[3]
	if err = m.bringUp(ctx, c); err != nil {
		return nil, err
	}
	m.stack = stack.Release()
	go m.watch()
	return m, nil
}

func (m *machine) bringUp(ctx context.Context, c vm.Config) error {
	ctx, cancel := context.WithTimeoutCause(ctx, m.patience, fmt.Errorf(
		"the VMM does not answer: it was not ready within %s, stopped or hanging, and was killed; try again when this machine is less busy", m.patience))
	defer cancel()
	if err := m.qmp.run(ctx, nil, "qmp_capabilities", nil); err != nil {
		return err
	}
	if c.Restore == nil {
		// The guest runs already, and what happened before that command was
		// answered is not reported.
		m.stopped()
		return nil
	}
	if err := m.qmp.migrate(ctx, c.Restore, "migrate-incoming"); err != nil {
		return err
	}
	// The guest still has the capacities of the template's placeholders, and
	// may go on with them for a moment after it was told.
	for i, d := range c.Disks {
		if d.File == nil || d.ReadOnly {
			continue
		}
		info, err := d.File.Stat()
		if err != nil {
			return fmt.Errorf("size disk %s: %w", d.Serial, err)
		}
		if info.Size() == d.PlaceholderBytes {
			continue // the guest's driver has work for each notice
		}
		size := map[string]any{"node-name": diskNode(i), "size": info.Size()}
		if err := m.qmp.run(ctx, nil, "block_resize", size); err != nil {
			return err
		}
	}
	return nil
}

// maxFileBytes is the size of the largest file that the VMM writes.
func maxFileBytes(c vm.Config) int64 {
	most := int64(minFileBytes)
	for _, d := range c.Disks {
		if d.File != nil && !d.ReadOnly {
			if info, err := d.File.Stat(); err == nil {
				most = max(most, info.Size())
			}
		}
	}
	return most
}

func (m *machine) Control() net.Conn     { return m.control }
func (m *machine) Share() net.Conn       { return m.share }
func (m *machine) Network() net.Conn     { return m.network }
func (m *machine) PID() int              { return m.process.PID() }
func (m *machine) Done() <-chan struct{} { return m.done }

func (m *machine) Err() error {
	select {
	case <-m.done:
		return m.err
	default:
		return nil
	}
}

// Close implements [vm.Machine].
func (m *machine) Close() error {
	m.closeOnce.Do(func() {
		m.mu.Lock()
		m.closed = true
		m.mu.Unlock()
		m.closeErr = m.process.Kill()
		<-m.done
		m.closeErr = errors.Join(m.closeErr, m.stack.Unwind())
		<-m.qmp.closed
		m.watching.Wait()
	})
	return m.closeErr
}

// watch says how the machine ended, once it has. The words and events that it
// left behind are read to their end first.
func (m *machine) watch() {
	select {
	case <-m.process.Done():
	case <-m.shutdown:
		m.process.Kill() // its error is that of a process that cannot be killed, which Close meets, too
	}
	<-m.process.Done()
	<-m.words.done
	<-m.console.done
	<-m.qmp.closed
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.closed {
		m.err = ending(m.reason, m.console.String(), m.process.State(), m.kills)
		if m.reason == internalError {
			m.err = errBroken
		}
		if _, byGuest := errors.AsType[*vm.GuestEnded](m.err); m.err != nil && !byGuest {
			m.err = m.withLastWords(m.err)
		}
	}
	close(m.done)
}

func (m *machine) onEvent(e event) {
	switch e.Name {
	case "SHUTDOWN":
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.reason == "" {
			m.reason = e.Data.Reason
			close(m.shutdown)
		}
	case "BLOCK_IO_ERROR":
		m.fault(e)
	case "STOP":
		m.stopped()
	}
}

// fault tells of a fault of the host's disks, unless one is waiting to be heard.
func (m *machine) fault(e event) {
	// The event has a flag of its own for a full disk, but not where the error is
	// reported to the guest.
	full := strings.EqualFold(e.Data.Reason, unix.ENOSPC.Error()) || strings.EqualFold(e.Data.Reason, unix.EDQUOT.Error())
	f := vm.Fault{Write: e.Data.Operation == "write", NoSpace: full}
	for i, d := range m.disks {
		if e.Data.Node == diskNode(i) {
			f.Disk = d.Serial
		}
	}
	select {
	case m.faults <- f:
	default:
	}
}

// Faults implements [vm.Faulter].
func (m *machine) Faults() <-chan vm.Fault { return m.faults }

// Probe implements [vm.Prober].
func (m *machine) Probe(ctx context.Context) (vm.Vitals, error) {
	var status struct {
		Running bool `json:"running"`
	}
	err := m.qmp.ask(ctx, "query-status", &status)
	return vm.Vitals{Running: status.Running, CPU: m.process.CPU()}, err
}

// Snapshot implements [vm.Snapshotter].
func (m *machine) Snapshot(ctx context.Context, state *os.File) error {
	if err := m.qmp.migrate(ctx, state, "migrate"); err != nil {
		return m.withLastWords(fmt.Errorf("freeze machine: %w", err))
	}
	return nil
}

// Pause implements [vm.Pauser].
func (m *machine) Pause(ctx context.Context) error { return m.gone(m.qmp.run(ctx, nil, "stop", nil)) }

// Resume implements [vm.Pauser].
func (m *machine) Resume(ctx context.Context) error { return m.gone(m.qmp.run(ctx, nil, "cont", nil)) }

// withLastWords adds what the VMM said last. A VMM that has closed its socket
// is about to end, so its words are waited for; one that lives is not.
func (m *machine) withLastWords(err error) error {
	if m.words == nil {
		return err
	}
	if m.process != nil && errors.Is(err, errQMPClosed) {
		err = m.gone(err)
		err = errors.Join(err, m.process.Kill())
		<-m.words.done
	}
	if words := m.words.String(); words != "" {
		return fmt.Errorf("%w: %q", err, words)
	}
	return err
}

// gone says how the VMM has ended, for an error about its command socket. A
// socket is closed as its process ends; one that it has closed itself, or that
// makes no sense, tells of no end.
func (m *machine) gone(err error) error {
	if m.process == nil || !errors.Is(err, errQMPClosed) {
		return err
	}
	timer := time.NewTimer(endsIn)
	defer timer.Stop()
	select {
	case <-m.process.Done():
		return fmt.Errorf("%s (%w)", postmortem.How("the VMM", m.process.State(), m.kills), err)
	case <-timer.C:
		return err
	}
}

// endsIn is how long a VMM may take to end that has closed its command socket.
const endsIn = 2 * time.Second

// lastWords keeps the end of what a VMM writes to its standard error.
type lastWords struct {
	pipe *os.File
	done chan struct{} // the VMM's end is closed

	mu   sync.Mutex
	tail []byte
}

func newLastWords() (*lastWords, *os.File, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, nil, fmt.Errorf("make pipe: %w", err)
	}
	l := &lastWords{pipe: r, done: make(chan struct{})}
	go func() {
		defer close(l.done)
		io.Copy(l, r) // ends with the VMM or by close
	}()
	return l, w, nil
}

func (l *lastWords) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tail = append(l.tail, p...)
	l.tail = append([]byte(nil), l.tail[max(0, len(l.tail)-maxLastWords):]...)
	return len(p), nil
}

func (l *lastWords) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.TrimSpace(string(l.tail))
}

func (l *lastWords) close() error {
	err := l.pipe.Close()
	<-l.done
	return err
}

// copyToMemory copies a file into sealed memory.
func copyToMemory(stack *undo.Stack, name string, from *os.File) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("make memory for %s: %w", name, err)
	}
	to := os.NewFile(uintptr(fd), name)
	stack.Push("close "+name, to.Close)
	info, err := from.Stat()
	if err != nil {
		return nil, fmt.Errorf("copy %s: %w", name, err)
	}
	if _, err := io.Copy(to, io.NewSectionReader(from, 0, info.Size())); err != nil {
		return nil, fmt.Errorf("copy %s: %w", name, err)
	}
	if _, err := unix.FcntlInt(to.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_WRITE|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL); err != nil {
		return nil, fmt.Errorf("seal %s: %w", name, err)
	}
	return to, nil
}

// closeOnce closes a connection whose user may have closed it already.
func closeOnce(c net.Conn) error {
	if err := c.Close(); !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}
