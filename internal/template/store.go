package template

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"creel/internal/durable"
	"creel/internal/guest/api"
	"creel/internal/kernel"
	"creel/internal/sandbox"
	"creel/internal/template/content"
	"creel/internal/template/holder"
	"creel/internal/vm"
)

// Names beside the templates' directories, each behind a template's key.
const (
	buildSuffix = ".build" // being built, or being removed
	lockSuffix  = ".lock"
	stampsName  = "stamps"
)

// Guest is the agent in a machine that is being made a template.
type Guest interface {
	Hello(ctx context.Context) (api.HelloReply, error)
	Freeze(ctx context.Context, req api.FreezeRequest) error
	Close() error
}

// Boot is how a driver boots a machine: the kernel's command line, the CPU
// model that the guest sees, a digest of what that model shows of the host's
// CPU, and a name for the device set and its order.
type Boot struct{ Cmdline, CPU, HostCPU, Devices string }

// Options are what a store acts with. All but the last two are required.
type Options struct {
	Dir        string // of the templates
	RuntimeDir string // of the holders' sockets; nobody else's
	Driver     vm.Driver
	// VMM identifies what the driver runs. It and Boot are asked for every run:
	// they are quick, and answer the same while nothing has changed.
	VMM    func(ctx context.Context) (VMM, error)
	Boot   func(ctx context.Context, req Request) (Boot, error)
	Kernel func() (kernel.Kernel, error)
	Agent  []byte // the guest agent's binary
	Guest  func(control net.Conn) Guest
	// Confinement is that of the VMM that builds; dir is empty and goes away
	// with the machine.
	Confinement func(level sandbox.Confinement, dir string) vm.Confinement
	// Holder is the command line that ends in HolderMain with the arguments
	// that are put behind it.
	Holder []string
	Log    *slog.Logger

	HolderIdle   time.Duration // 0: five minutes without clones
	BootDeadline time.Duration // 0: 10 s under KVM, 120 s under emulation
}

// Store is the directory of one user's templates. It is safe for use by
// several goroutines and processes.
type Store struct {
	opts   Options
	stamps content.Stamps
	agent  func() string // digest
}

// RootFS is a root file system in the image store.
type RootFS struct {
	Digest    string // sha256:… of the file
	Path      string
	SizeBytes int64
}

// Request is what a run needs of a template.
type Request struct {
	Image  string // image ID
	RootFS RootFS
	Shape  vm.Shape
	Accel  sandbox.Accel // kvm or tcg
	// Confinement is the level at which a missing template is built; it is no
	// part of the template.
	Confinement sandbox.Confinement
}

// Open opens the store, and makes its directory where absent.
func Open(o Options) (*Store, error) {
	if o.HolderIdle == 0 {
		o.HolderIdle = 5 * time.Minute
	}
	s := &Store{
		opts:   o,
		stamps: content.Stamps{Dir: filepath.Join(o.Dir, stampsName)},
		agent:  sync.OnceValue(func() string { return content.Bytes(o.Agent) }),
	}
	return s, nil
}

func (s *Store) path(key string) string { return filepath.Join(s.opts.Dir, key) }

// For finds the template of a request, or builds it: then built is true. Where
// another process builds it already For waits. A template that does not come
// up in time is an [ErrDeadline]. Progress gets a line for what takes a while.
func (s *Store) For(ctx context.Context, req Request, progress func(step string)) (m Manifest, built bool, err error) {
	k, err := s.opts.Kernel()
	if err != nil {
		return Manifest{}, false, err
	}
	recipe, err := s.recipe(ctx, req, k)
	if err != nil {
		return Manifest{}, false, err
	}
	if err := os.MkdirAll(s.stamps.Dir, 0o700); err != nil {
		return Manifest{}, false, fmt.Errorf("make template store: %w", err)
	}
	dir := s.path(recipe.key())
	if m, err := load(dir); !absent(err) {
		return m, false, err
	}
	held, err := durable.TryAcquire(dir + lockSuffix)
	if err == nil && held == nil {
		progress("waiting for another process that builds this template")
		held, err = durable.Acquire(ctx, dir+lockSuffix)
	}
	if err != nil {
		return Manifest{}, false, err
	}
	defer held.Close()
	if m, err := load(dir); !absent(err) {
		return m, false, err
	}
	if err := s.sweep(dir + buildSuffix); err != nil {
		return Manifest{}, false, err
	}
	if err := os.RemoveAll(dir); err != nil { // what has no manifest is none, and in the way
		return Manifest{}, false, fmt.Errorf("remove incomplete template: %w", err)
	}
	b := build{store: s, dir: dir, recipe: recipe, kernel: k, rootPath: req.RootFS.Path, level: req.Confinement, progress: progress}
	if m, err = b.run(ctx); err != nil {
		return Manifest{}, false, fmt.Errorf("build template of %s, %s: %w", req.Image, req.Shape, err)
	}
	return m, true, nil
}

// absent reports whether an error of load says that there is no template:
// nothing is there, or what is has no manifest.
func absent(err error) bool { return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) }

func (s *Store) recipe(ctx context.Context, req Request, k kernel.Kernel) (Recipe, error) {
	vmm, err := s.opts.VMM(ctx)
	if err != nil {
		return Recipe{}, err
	}
	boot, err := s.opts.Boot(ctx, req)
	if err != nil {
		return Recipe{}, err
	}
	path, err := filepath.Rel(s.opts.Dir, req.RootFS.Path)
	if err != nil {
		return Recipe{}, fmt.Errorf("locate root file system: %w", err)
	}
	return Recipe{
		Format: formatVersion,
		Image:  req.Image,
		RootFS: RootFSPart{Digest: req.RootFS.Digest, SizeBytes: req.RootFS.SizeBytes, Path: path},
		Kernel: KernelPart{
			Package: k.Package, Version: k.Version, Release: k.Release,
			Digest: "sha256:" + k.VMLinux.SHA256, Modules: "sha256:" + k.ModulesSHA256(),
		},
		Agent: s.agent(), VMM: vmm, Accel: req.Accel, Shape: req.Shape,
		CPU: boot.CPU, HostCPU: boot.HostCPU, Cmdline: boot.Cmdline, Devices: boot.Devices,
	}, nil
}

// sweep removes what killed builds left. The caller has the lock of ours.
func (s *Store) sweep(ours string) error {
	left, err := filepath.Glob(filepath.Join(s.opts.Dir, "*"+buildSuffix))
	if err != nil {
		return fmt.Errorf("look for killed builds: %w", err)
	}
	for _, dir := range left {
		if dir != ours {
			held, err := durable.TryAcquire(strings.TrimSuffix(dir, buildSuffix) + lockSuffix)
			if err != nil {
				return err
			}
			if held == nil {
				continue // it is still alive
			}
			defer held.Close()
		}
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("remove killed build: %w", err)
		}
	}
	return nil
}

// keys are the names of the templates that are there, whole or not.
func (s *Store) keys() ([]string, error) {
	entries, err := os.ReadDir(s.opts.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // none was ever built
	}
	if err != nil {
		return nil, fmt.Errorf("list templates: %w; `rm -r %s` mends it, and templates are built again", err, s.opts.Dir)
	}
	var keys []string
	for _, e := range entries {
		if e.IsDir() && e.Name() != stampsName && !strings.HasSuffix(e.Name(), buildSuffix) && len(e.Name()) == 32 {
			keys = append(keys, e.Name())
		}
	}
	return keys, nil
}

// List returns the manifests of all templates, the newest first. Damaged ones
// are in the error, beside the manifests of the others.
func (s *Store) List(ctx context.Context) ([]Manifest, error) {
	keys, err := s.keys()
	if err != nil {
		return nil, err
	}
	var all []Manifest
	var errs []error
	for _, key := range keys {
		m, err := load(s.path(key))
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed meanwhile
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		all = append(all, m)
	}
	slices.SortFunc(all, func(a, b Manifest) int { return b.Created.Compare(a.Created) })
	return all, errors.Join(errs...)
}

// Inspect finds a template by its digest or the beginning of it.
func (s *Store) Inspect(ctx context.Context, ref string) (Manifest, error) {
	key, err := s.find(ctx, ref)
	if err != nil {
		return Manifest{}, err
	}
	return load(s.path(key))
}

// find returns the key of the one template that ref is meant for: the
// beginning of its digest, with or without "sha256:", or of its key.
func (s *Store) find(ctx context.Context, ref string) (string, error) {
	const least = 4
	want := strings.TrimPrefix(ref, "sha256:")
	if len(want) < least {
		return "", fmt.Errorf("template %q: give at least %d digits; `creel template ls` shows them", ref, least)
	}
	keys, err := s.keys()
	if err != nil {
		return "", err
	}
	found := map[string]bool{}
	for _, key := range keys {
		if strings.HasPrefix(key, want) {
			found[key] = true
		}
	}
	manifests, _ := s.List(ctx) // damaged ones are found by key
	for _, m := range manifests {
		if strings.HasPrefix(strings.TrimPrefix(m.Digest, "sha256:"), want) {
			found[m.key()] = true
		}
	}
	switch len(found) {
	case 0:
		return "", fmt.Errorf("no template %q; `creel template ls` shows them", ref)
	case 1:
		for key := range found {
			return key, nil
		}
	}
	return "", fmt.Errorf("template %q: %d begin so; give more digits", ref, len(found))
}

// Remove deletes a template. Clones that run keep their parts; the holder ends
// with the last of them.
func (s *Store) Remove(ctx context.Context, ref string) error {
	key, err := s.find(ctx, ref)
	if err != nil {
		return err
	}
	held, err := durable.Acquire(ctx, s.path(key)+lockSuffix)
	if err != nil {
		return err
	}
	defer held.Close()
	m, damaged := load(s.path(key))
	trash := s.path(key) + buildSuffix
	if err := errors.Join(os.RemoveAll(trash), os.Rename(s.path(key), trash), os.RemoveAll(trash)); err != nil {
		return fmt.Errorf("remove template %s: %w", ref, err)
	}
	if damaged != nil {
		return nil // no digest to know its holder by; it ends when idle
	}
	return s.client().Retire(ctx, m.Digest)
}

// Check is what [Store.Verify] found about one part.
type Check struct {
	Part  string
	Bytes int64
	Err   error // nil: it is what the manifest says
}

// Verify hashes every part of a template that a clone is made of, and compares.
// The error joins those of the parts.
func (s *Store) Verify(ctx context.Context, ref string) ([]Check, error) {
	m, err := s.Inspect(ctx, ref)
	if err != nil {
		return []Check{{Part: "manifest", Err: err}}, err
	}
	info := int64(len(compact(m)))
	dir := s.path(m.key())
	hash := func(path, want string, sum func(context.Context, *os.File, *os.File) (string, error)) error {
		f, err := content.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		got, err := sum(ctx, f, nil)
		if err == nil && got != want {
			err = &content.MismatchError{Path: path, Want: want, Got: got}
		}
		return err
	}
	vmm, vmmErr := s.opts.VMM(ctx)
	if vmmErr == nil && vmm != m.VMM {
		vmmErr = fmt.Errorf("the one installed is %s %s (%s)", vmm.Name, vmm.Version, vmm.Digest)
	}
	checks := []Check{
		{"manifest", info, nil},
		{"memory", m.Memory.SizeBytes, hash(filepath.Join(dir, memoryName), m.Memory.Digest, content.Memory)},
		{"state", m.State.SizeBytes, hash(filepath.Join(dir, stateName), m.State.Digest, content.File)},
		{"rootfs", m.RootFS.SizeBytes, hash(filepath.Join(s.opts.Dir, m.RootFS.Path), m.RootFS.Digest, content.File)},
		{"vmm", 0, vmmErr},
	}
	var errs []error
	for _, c := range checks {
		if c.Err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", c.Part, c.Err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return checks, fmt.Errorf("template %s: %w; "+mend, shortDigest(m.Digest), err, shortDigest(m.Digest))
	}
	return checks, nil
}

const mend = "remove it with `creel template rm %s`, the next run builds it again; where the root file system is damaged, load its image again first"

func shortDigest(digest string) string {
	return strings.TrimPrefix(digest, "sha256:")[:12]
}

func (s *Store) client() *holder.Client {
	return &holder.Client{Dir: s.opts.RuntimeDir, Command: func(digest string) []string {
		return append(slices.Clone(s.opts.Holder), holderArgs(s.opts, digest)...)
	}}
}
