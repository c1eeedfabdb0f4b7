package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"creel/internal/guest/api"
	"creel/internal/guest/blob"
	"creel/internal/guest/host"
	"creel/internal/kernel"
	"creel/internal/sandbox"
	"creel/internal/scratch"
	"creel/internal/template"
	"creel/internal/template/content"
	"creel/internal/undo"
	"creel/internal/vm"
	"creel/internal/vm/qemu"
)

// vmmUID is what the VMMs that the bench starts itself become, beside those of
// Creel's own ranges.
const vmmUID = 0x67000000

// machines starts the machine of a template without keeper and front door, in
// both ways: as a clone, and from power-on.
type machines struct {
	rig             *rig
	driver          *qemu.Driver
	vmlinux, initrd *os.File // in memory: a tuned boot reads no disk for them
}

func (r *rig) machines(ctx context.Context) (*machines, error) {
	if err := r.image(ctx); err != nil {
		return nil, err
	}
	driver, err := qemu.New(qemu.Options{})
	if err != nil {
		return nil, err
	}
	k, err := kernel.Latest(filepath.Join(r.state, "kernels"))
	if err != nil {
		return nil, err
	}
	agent, err := blob.Agent()
	if err != nil {
		return nil, err
	}
	if got := content.Bytes(agent); got != r.manifest.Agent {
		return nil, fmt.Errorf("the bench has the guest agent %s, creel's template %s; build both from one tree", got, r.manifest.Agent)
	}
	m := &machines{rig: r, driver: driver}
	image, err := k.ReadVMLinux()
	if err != nil {
		return nil, err
	}
	if m.vmlinux, err = r.memfd("bench-kernel"); err != nil {
		return nil, err
	}
	if m.initrd, err = r.memfd("bench-initramfs"); err != nil {
		return nil, err
	}
	_, err = m.vmlinux.Write(image)
	return m, errors.Join(err, k.WriteInitramfs(m.initrd, agent))
}

func (r *rig) memfd(name string) (*os.File, error) {
	f, err := content.NewMemfd(name)
	if err == nil {
		r.ends.Push(name, f.Close)
	}
	return f, err
}

// clone is the milliseconds until a clone is ready.
func (m *machines) clone(ctx context.Context) (float64, error) {
	return m.timed(ctx, func(ctx context.Context, c *vm.Config, disk *os.File, ends *undo.Stack) error {
		parts, err := m.rig.templates.Open(ctx, m.rig.manifest)
		if err != nil {
			return err
		}
		ends.Push("template parts", parts.Close)
		c.Memory, c.Restore, c.Disks = parts.Memory, parts.State, template.Disks(parts.Root, disk)
		return nil
	})
}

// boot is the milliseconds until the same machine is ready from power-on.
func (m *machines) boot(ctx context.Context) (float64, error) { return m.timed(ctx, m.powerOn) }

// powerOn adds what a machine boots from, which was checked and is in the page
// cache.
func (m *machines) powerOn(_ context.Context, c *vm.Config, disk *os.File, ends *undo.Stack) error {
	root, err := os.Open(filepath.Join(m.rig.state, "templates", m.rig.manifest.RootFS.Path))
	if err != nil {
		return err
	}
	ends.Push("root", root.Close)
	if c.Memory, err = content.NewMemfd("bench-memory"); err != nil {
		return err
	}
	ends.Push("memory", c.Memory.Close)
	c.Kernel, c.Initrd, c.Cmdline, c.Disks = m.vmlinux, m.initrd, m.rig.manifest.Cmdline, template.Disks(root, disk)
	return c.Memory.Truncate(int64(c.Shape.MemoryMiB) << 20)
}

// timed starts a machine from what prepare adds to its configuration and stops
// the clock when its identity is done. That a process then runs is proven.
func (m *machines) timed(ctx context.Context, prepare func(context.Context, *vm.Config, *os.File, *undo.Stack) error) (ms float64, err error) {
	var ends undo.Stack
	defer func() { err = errors.Join(err, ends.Unwind()) }()
	dir, err := os.MkdirTemp(m.rig.state, "machine-")
	if err != nil {
		return 0, err
	}
	ends.Push("directory", func() error { return os.RemoveAll(dir) })
	c := vm.Config{
		Shape: m.rig.manifest.Shape, Accel: m.rig.manifest.Accel, CPU: m.rig.manifest.CPU,
		Confinement: vm.Confinement{Level: sandbox.ConfinementFull, UID: vmmUID, GID: vmmUID, Dir: filepath.Join(dir, "vmm")},
	}
	if err := os.Mkdir(c.Confinement.Dir, 0o700); err != nil {
		return 0, err
	}
	began := time.Now()
	path := filepath.Join(dir, "scratch")
	if err := scratch.New(ctx, filepath.Join(m.rig.state, "scratch"), path, sandbox.DefaultDisk, scratch.Disposable); err != nil {
		return 0, err
	}
	disk, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	ends.Push("disk", disk.Close)
	if err := prepare(ctx, &c, disk, &ends); err != nil {
		return 0, err
	}
	machine, err := m.driver.Start(ctx, c)
	if err != nil {
		return 0, err
	}
	ends.Push("machine", machine.Close)
	guest := host.New(machine.Control())
	if err := makeReady(ctx, guest, c.Restore == nil); err != nil {
		return 0, err
	}
	ms = float64(time.Since(began).Microseconds()) / 1000
	return ms, proveExec(ctx, guest)
}

// makeReady does what the keeper does with a clone, and before it what the
// builder of templates does with a machine that has just booted.
func makeReady(ctx context.Context, guest *host.Client, booted bool) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if booted {
		if _, err := guest.Hello(ctx); err != nil {
			return err
		}
		if err := guest.Freeze(ctx, api.FreezeRequest{}); err != nil { // mounts the root
			return err
		}
	}
	random := make([]byte, 64+16)
	rand.Read(random)
	return guest.Identity(ctx, api.Identity{
		Version: api.Version, Seed: random[:64], UnixNano: time.Now().UnixNano(),
		Hostname: "bench", MachineID: hex.EncodeToString(random[64:]),
		Hosts: "127.0.0.1\tlocalhost\n", Resolv: "nameserver 192.168.127.1\n",
	})
}

func proveExec(ctx context.Context, guest *host.Client) error {
	x, err := guest.Exec(ctx, sandbox.Process{Args: []string{"/bin/true"}})
	if err != nil {
		return err
	}
	defer x.Close()
	exit, err := x.Wait(ctx)
	if err == nil && exit.Code != 0 {
		err = fmt.Errorf("/bin/true ended with %d in a machine that said it was ready", exit.Code)
	}
	return err
}

// cloneWarm and cloneCold compare a clone with a boot, confined as users run
// it, with a holder that has the template in memory, and with none.
func (r *rig) cloneWarm(ctx context.Context) (a, b side, err error) {
	m, err := r.machines(ctx)
	if err != nil {
		return a, b, err
	}
	return side{"clone", m.clone}, side{"boot", m.boot}, nil
}

func (r *rig) cloneCold(ctx context.Context) (a, b side, err error) {
	m, err := r.machines(ctx)
	if err != nil {
		return a, b, err
	}
	a = side{"clone", func(ctx context.Context) (float64, error) {
		if err := r.endHolders(); err != nil {
			return 0, err
		}
		return m.clone(ctx)
	}}
	return a, side{"boot", m.boot}, nil
}
