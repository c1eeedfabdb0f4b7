package template

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"creel/internal/durable"
	"creel/internal/guest/api"
	"creel/internal/kernel"
	"creel/internal/sandbox"
	"creel/internal/template/content"
	"creel/internal/undo"
	"creel/internal/vm"
)

// ErrDeadline is in the chain of an error where a machine did not come up: the
// VMM did not start, or ended, or the agent did not answer in time. Another
// accelerator may do better.
var ErrDeadline = errors.New("the machine did not come up")

// How long a machine may take. Emulation shares the CPU with whatever else the
// host does.
const (
	deadlineKVM    = 10 * time.Second
	deadlineTCG    = 120 * time.Second
	freezeDeadline = 60 * time.Second
	// lastWordsDeadline is from the end of a machine's ports to its own.
	lastWordsDeadline = 2 * time.Second
)

// build makes one template, in a directory beside its place.
type build struct {
	store    *Store
	dir      string // its place
	recipe   Recipe
	kernel   kernel.Kernel
	rootPath string
	progress func(string)

	undo                         undo.Stack
	root, vmlinux, initrd, state *os.File
	memory                       *os.File
	initramfs                    string              // digest
	level                        sandbox.Confinement // of the VMM
}

func (b *build) staging() string { return b.dir + buildSuffix }

func (b *build) run(ctx context.Context) (m Manifest, err error) {
	defer func() { err = errors.Join(err, b.undo.Unwind()) }()
	if err := os.Mkdir(b.staging(), 0o700); err != nil {
		return m, fmt.Errorf("make directory: %w", err)
	}
	b.undo.Push("directory", func() error { return os.RemoveAll(b.staging()) })
	b.progress("checking the parts")
	if err := b.openParts(ctx); err != nil {
		return m, err
	}
	b.progress(fmt.Sprintf("booting a machine of shape %s under %s", b.recipe.Shape, b.recipe.Accel))
	if err := b.bootAndFreeze(ctx); err != nil {
		return m, err
	}
	b.progress("storing its memory")
	if m, err = b.writeOut(ctx); err != nil {
		return m, err
	}
	if err := durable.Rename(b.staging(), b.dir); err != nil {
		return m, fmt.Errorf("put in place: %w", err)
	}
	return m, nil
}

// openParts opens what the machine boots from, each checked against its digest.
// Kernel, initramfs and memory are memory files: the VMM, which may be another
// user, can open them through /proc, and nobody can change the first two.
func (b *build) openParts(ctx context.Context) (err error) {
	if b.root, err = content.Open(b.rootPath); err != nil {
		return fmt.Errorf("root file system: %w; load the image again", err)
	}
	b.undo.Push("root file system", b.root.Close)
	digest := b.recipe.RootFS.Digest
	known := b.store.stamps.Load(digest)
	stamp, err := content.Check(ctx, b.root, digest, known)
	if err != nil {
		return fmt.Errorf("root file system: %w; load the image again", err)
	}
	if stamp != known {
		if err := b.store.stamps.Save(stamp); err != nil {
			return err
		}
	}
	image, err := b.kernel.ReadVMLinux()
	if err != nil {
		return err
	}
	if b.vmlinux, err = b.memfd("creel-kernel"); err != nil {
		return err
	}
	if _, err := b.vmlinux.Write(image); err != nil {
		return fmt.Errorf("copy kernel: %w", err)
	}
	if b.initrd, err = b.memfd("creel-initramfs"); err != nil {
		return err
	}
	if err := b.kernel.WriteInitramfs(b.initrd, b.store.opts.Agent); err != nil {
		return err
	}
	if err := errors.Join(content.Seal(b.vmlinux), content.Seal(b.initrd)); err != nil {
		return err
	}
	if b.initramfs, err = content.File(ctx, b.initrd, nil); err != nil {
		return err
	}
	if b.memory, err = b.memfd("creel-template"); err != nil {
		return err
	}
	if err := b.memory.Truncate(int64(b.recipe.Shape.MemoryMiB) << 20); err != nil {
		return fmt.Errorf("size memory: %w", err)
	}
	b.state, err = b.create(stateName)
	return err
}

func (b *build) create(name string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(b.staging(), name), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err == nil {
		b.undo.Push(name, f.Close)
	}
	return f, err
}

func (b *build) memfd(name string) (*os.File, error) {
	f, err := content.NewMemfd(name)
	if err == nil {
		b.undo.Push(name, f.Close)
	}
	return f, err
}

// bootAndFreeze runs the machine from power-on to snapshot; it is gone when
// bootAndFreeze has returned.
func (b *build) bootAndFreeze(ctx context.Context) (err error) {
	var machine undo.Stack
	defer func() { err = errors.Join(err, machine.Unwind()) }()
	dir := filepath.Join(b.staging(), "confinement")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	machine.Push("confinement directory", func() error { return os.Remove(dir) })
	confinement := b.store.opts.Confinement(b.level, dir)
	m, err := b.store.opts.Driver.Start(ctx, vm.Config{
		Shape: b.recipe.Shape, Accel: b.recipe.Accel, CPU: b.recipe.CPU, Disks: Disks(b.root, nil), Memory: b.memory,
		Kernel: b.vmlinux, Initrd: b.initrd, Cmdline: b.recipe.Cmdline, Confinement: confinement,
	})
	if err != nil && ctx.Err() == nil {
		return fmt.Errorf("%w under %s: %w", ErrDeadline, b.recipe.Accel, err)
	}
	if err != nil {
		return err
	}
	guest := b.store.opts.Guest(m.Control())
	machine.Push("machine", func() error {
		guest.Close() // nothing can be said any more; what matters is the machine
		if err := m.Close(); !errors.Is(err, net.ErrClosed) {
			return err
		}
		return nil // its control connection was closed by the client, who owns it
	})
	freezer, ok := m.(vm.Snapshotter)
	if !ok {
		return errors.New("this driver's machines cannot be frozen")
	}
	if err := b.greet(ctx, m, guest); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, freezeDeadline)
	defer cancel()
	if err := guest.Freeze(ctx, api.FreezeRequest{Clock: true}); err != nil {
		return fmt.Errorf("freeze: %w", err)
	}
	if err := freezer.Snapshot(ctx, b.state); err != nil {
		return fmt.Errorf("snapshot: %w", err)
	}
	return nil
}

// greet waits for the agent's first answer, for as long as the accelerator may
// take and the machine lives.
func (b *build) greet(ctx context.Context, m vm.Machine, guest Guest) error {
	deadline := b.store.opts.BootDeadline
	switch {
	case deadline != 0:
	case b.recipe.Accel == sandbox.AccelKVM:
		deadline = deadlineKVM
	default:
		deadline = deadlineTCG
	}
	late := fmt.Errorf("%w under %s: no answer from its agent within %s", ErrDeadline, b.recipe.Accel, deadline)
	ctx, cancelTimer := context.WithTimeoutCause(ctx, deadline, late)
	defer cancelTimer()
	ctx, cancel := context.WithCancelCause(ctx)
	var watch sync.WaitGroup
	watch.Go(func() {
		select {
		case <-m.Done():
			cancel(fmt.Errorf("%w under %s: %w", ErrDeadline, b.recipe.Accel, m.Err()))
		case <-ctx.Done():
		}
	})
	hello, err := guest.Hello(ctx)
	if err != nil {
		// A VMM that ends closes its ports first, and its last words say more.
		select {
		case <-ctx.Done():
		case <-time.After(lastWordsDeadline):
		}
	}
	cancel(nil)
	watch.Wait()
	switch {
	case err != nil && context.Cause(ctx) != nil && !errors.Is(context.Cause(ctx), context.Canceled):
		return context.Cause(ctx)
	case err != nil:
		return fmt.Errorf("greet agent: %w", err)
	case hello.Kernel != b.kernel.Release:
		return fmt.Errorf("greet agent: it runs on kernel %q, want %q", hello.Kernel, b.kernel.Release)
	}
	return nil
}

// writeOut writes memory and manifest; everything is on the disk when it returns.
func (b *build) writeOut(ctx context.Context) (Manifest, error) {
	m := Manifest{Recipe: b.recipe, Initramfs: b.initramfs, Created: time.Now().UTC().Truncate(time.Second)}
	memory, err := b.create(memoryName)
	if err != nil {
		return m, err
	}
	if m.Memory, err = part(ctx, b.memory, memory, content.Memory); err != nil {
		return m, err
	}
	if m.State, err = part(ctx, b.state, nil, content.File); err != nil {
		return m, err
	}
	m.Digest = m.sum()
	data, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return m, fmt.Errorf("encode manifest: %w", err)
	}
	manifest, err := b.create(manifestName)
	if err != nil {
		return m, err
	}
	if _, err := manifest.Write(append(data, '\n')); err != nil {
		return m, fmt.Errorf("write manifest: %w", err)
	}
	return m, errors.Join(memory.Sync(), b.state.Sync(), manifest.Sync(), durable.Sync(b.staging()))
}

func part(ctx context.Context, src, dst *os.File, sum func(context.Context, *os.File, *os.File) (string, error)) (Part, error) {
	digest, err := sum(ctx, src, dst)
	if err != nil {
		return Part{}, err
	}
	info, err := src.Stat()
	if err != nil {
		return Part{}, fmt.Errorf("stat part: %w", err)
	}
	return Part{Digest: digest, SizeBytes: info.Size()}, nil
}
