// Package vmtest holds what tests of machines need: [Run], the conformance
// suite that every [vm.Driver] passes, and [Driver], one in memory for tests of
// what stands on machines. It must not be imported outside tests.
package vmtest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"creel/internal/guest/api"
	"creel/internal/sandbox"
	"creel/internal/vm"
)

// Fixtures are what real machines boot from: a kernel, and an initramfs with
// the command vmtest/guest as its /init.
type Fixtures struct {
	Kernel, Initrd string // paths
	Cmdline        string
	Accel          sandbox.Accel
	Confinement    func(t *testing.T) vm.Confinement
}

const (
	memoryMiB   = 256
	limit       = 60 * time.Second // of one machine under emulation on a busy host
	placeholder = 1 << 30
	scratchSize = 64 << 20
)

// Run checks a driver against the contracts of package vm.
func Run(t *testing.T, d vm.Driver, fx Fixtures) {
	t.Run("boot, freeze, clone", func(t *testing.T) { testClone(t, d, fx) })
	t.Run("ends", func(t *testing.T) { testEnds(t, d, fx) })
	t.Run("a full host's disk is the guest's error", func(t *testing.T) { testFullDisk(t, d, fx) })
	t.Run("a damaged state leaves nothing", func(t *testing.T) { testDamaged(t, d, fx) })
}

func (fx Fixtures) config(t *testing.T) vm.Config {
	t.Helper()
	return vm.Config{
		Shape: vm.Shape{MemoryMiB: memoryMiB, VCPUs: 1}, Accel: fx.Accel,
		Disks: []vm.Disk{
			{Serial: api.DiskRoot, ReadOnly: true, PlaceholderBytes: placeholder},
			{Serial: api.DiskScratch, PlaceholderBytes: placeholder},
			{Serial: api.DiskWorkspace, ReadOnly: true, PlaceholderBytes: placeholder},
		},
		Memory: memory(t), Confinement: fx.Confinement(t),
	}
}

func (fx Fixtures) boot(t *testing.T, d vm.Driver) (vm.Config, vm.Machine, *guest) {
	t.Helper()
	c := fx.config(t)
	c.Kernel, c.Initrd, c.Cmdline = open(t, fx.Kernel), open(t, fx.Initrd), fx.Cmdline
	m := start(t, d, c)
	g := talk(t, m.Control())
	g.expect("hello")
	return c, m, g
}

func testClone(t *testing.T, d vm.Driver, fx Fixtures) {
	c, m, g := fx.boot(t, d)
	g.ask("ping", "pong")
	g.ask("disks", fmt.Sprintf("root:1:%d scratch:0:%d workspace:1:%[1]d", placeholder/512, placeholder/512))
	pause(t, m, g)
	state := snapshot(t, m)
	closeTwice(t, m)

	// Seal it as a holder does: clones must not need to write it.
	if _, err := unix.FcntlInt(c.Memory.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_WRITE|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW); err != nil {
		t.Fatal(err)
	}
	for i := range 2 {
		c.Kernel, c.Initrd, c.Cmdline = nil, nil, ""
		c.Restore, c.Confinement = state, fx.Confinement(t)
		c.Disks[1].File = temp(t, scratchSize)
		clone := start(t, d, c)
		g := talk(t, clone.Control())
		g.ask("ping", "pong")
		g.ask("disks", fmt.Sprintf("root:1:%d scratch:0:%d workspace:1:%[1]d", placeholder/512, scratchSize/512))
		echo(t, clone.Share(), fmt.Sprintf("clone %d", i))
		closeTwice(t, clone)
	}
}

func pause(t *testing.T, m vm.Machine, g *guest) {
	t.Helper()
	p := m.(vm.Pauser)
	if err := p.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	g.send("ping")
	if v, err := m.(vm.Prober).Probe(t.Context()); v.Running || err != nil {
		t.Errorf("paused: Probe() = %+v, %v", v, err)
	}
	if err := p.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	g.expect("pong")
}

// testEnds has guests end their machines in every way that a task which is root
// has: of one that was booted, and of clones, which are other machines to a
// guest's kernel.
func testEnds(t *testing.T, d vm.Driver, fx Fixtures) {
	c, m, _ := fx.boot(t, d)
	state := snapshot(t, m)
	closeTwice(t, m)
	c.Kernel, c.Initrd, c.Cmdline, c.Restore = nil, nil, "", state
	for word, want := range map[string]string{
		"off": "", "sysrq o": "", "reboot": "the guest rebooted itself", "sysrq b": "the guest rebooted itself",
		"sysrq c": "sysrq triggered crash", "panic": "Attempted to kill init",
	} {
		t.Run("clone: "+word, func(t *testing.T) {
			c.Confinement = fx.Confinement(t)
			clone := start(t, d, c)
			talk(t, clone.Control()).ask("ping", "pong")
			testEnd(t, clone, word, want)
		})
	}
	for word, want := range map[string]string{"off": "", "panic": "Attempted to kill init"} {
		t.Run("booted: "+word, func(t *testing.T) {
			_, m, _ := fx.boot(t, d)
			testEnd(t, m, word, want)
		})
	}
}

func testEnd(t *testing.T, m vm.Machine, word, want string) {
	t.Helper()
	talk(t, m.Control()).send(word)
	select {
	case <-m.Done():
	case <-time.After(limit):
		t.Fatal("the machine did not end")
	}
	err := m.Err()
	if (want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), want) {
		t.Errorf("Err() = %v, want %q", err, want)
	}
	if _, byGuest := errors.AsType[*vm.GuestEnded](err); byGuest != (want != "") {
		t.Errorf("Err() = %v; that the guest ended it: %v", err, byGuest)
	}
	closeTwice(t, m)
}

// testFullDisk has a guest fill a disk that the host cannot hold.
func testFullDisk(t *testing.T, d vm.Driver, fx Fixtures) {
	small := t.TempDir()
	if err := unix.Mount("tmpfs", small, "tmpfs", 0, "size=8m"); err != nil {
		t.Skip("a small file system takes root: ", err)
	}
	t.Cleanup(func() { unix.Unmount(small, unix.MNT_DETACH) })
	f, err := os.Create(small + "/disk")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(scratchSize); err != nil {
		t.Fatal(err)
	}
	c := fx.config(t)
	c.Disks[1].File = f
	c.Kernel, c.Initrd, c.Cmdline = open(t, fx.Kernel), open(t, fx.Initrd), fx.Cmdline
	m := start(t, d, c)
	g := talk(t, m.Control())
	g.expect("hello")
	g.ask("fill", unix.EIO.Error())
	g.ask("ping", "pong")
	if v, err := m.(vm.Prober).Probe(t.Context()); !v.Running || v.CPU == 0 || err != nil {
		t.Errorf("Probe() = %+v, %v", v, err)
	}
	select {
	case got := <-m.(vm.Faulter).Faults():
		if want := (vm.Fault{Disk: api.DiskScratch, Write: true, NoSpace: true}); got != want {
			t.Errorf("a fault of %+v, want %+v", got, want)
		}
	case <-time.After(limit):
		t.Error("nothing was said of the host's full disk")
	}
	closeTwice(t, m)
}

func snapshot(t *testing.T, m vm.Machine) *os.File {
	t.Helper()
	state := temp(t, 0)
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	if err := m.(vm.Snapshotter).Snapshot(ctx, state); err != nil {
		t.Fatal(err)
	}
	return state
}

func testDamaged(t *testing.T, d vm.Driver, fx Fixtures) {
	c := fx.config(t)
	c.Restore = temp(t, 4096)
	before := openFiles(t)
	if _, err := d.Start(t.Context(), c); err == nil {
		t.Fatal("a machine started from zeroes")
	}
	if after := openFiles(t); after != before {
		t.Errorf("%d open files before, %d after", before, after)
	}
}

func start(t *testing.T, d vm.Driver, c vm.Config) vm.Machine {
	t.Helper()
	m, err := d.Start(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

// closeTwice ends a machine and checks that nothing is left of it.
func closeTwice(t *testing.T, m vm.Machine) {
	t.Helper()
	for range 2 {
		if err := m.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	}
	select {
	case <-m.Done():
	default:
		t.Error("closed, but not done")
	}
	if pid := m.PID(); pid != 0 {
		if err := unix.Kill(pid, 0); err != unix.ESRCH {
			t.Errorf("process %d is still there: %v", pid, err)
		}
	}
	if _, err := m.Control().Write([]byte("x")); err == nil {
		t.Error("the control port still takes data")
	}
}

// guest is the host's end of vmtest/guest.
type guest struct {
	t     *testing.T
	conn  net.Conn
	lines *bufio.Reader
}

func talk(t *testing.T, conn net.Conn) *guest {
	t.Helper()
	if err := conn.SetDeadline(time.Now().Add(limit)); err != nil {
		t.Fatal(err)
	}
	return &guest{t, conn, bufio.NewReader(conn)}
}

func (g *guest) send(word string) {
	g.t.Helper()
	if _, err := fmt.Fprintln(g.conn, word); err != nil {
		g.t.Fatal(err)
	}
}

func (g *guest) expect(want string) {
	g.t.Helper()
	got, err := g.lines.ReadString('\n')
	if err != nil || strings.TrimSpace(got) != want {
		g.t.Fatalf("guest said %q, %v; want %q", got, err, want)
	}
}

func (g *guest) ask(word, want string) {
	g.t.Helper()
	g.send(word)
	g.expect(want)
}

func echo(t *testing.T, conn net.Conn, text string) {
	t.Helper()
	conn.SetDeadline(time.Now().Add(limit))
	if _, err := io.WriteString(conn, text); err != nil {
		t.Fatal(err)
	}
	back := make([]byte, len(text))
	if _, err := io.ReadFull(conn, back); err != nil || string(back) != text {
		t.Fatalf("file port echoed %q, %v; want %q", back, err, text)
	}
}

func memory(t *testing.T) *os.File {
	t.Helper()
	fd, err := unix.MemfdCreate("guest", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "guest")
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(memoryMiB << 20); err != nil {
		t.Fatal(err)
	}
	return f
}

func temp(t *testing.T, size int64) *os.File {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "file")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return f
}

func open(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}
