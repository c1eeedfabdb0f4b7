package template

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"creel/internal/guest/api"
	"creel/internal/kernel"
	"creel/internal/sandbox"
	"creel/internal/template/content"
	"creel/internal/vm"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// The test binary is also the holder, and the other processes that build.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 {
		switch os.Args[1] {
		case "holder":
			if err := HolderMain(context.Background(), os.Args[2:]); err != nil {
				os.Exit(1)
			}
			return
		case "build", "build-and-hang":
			buildInChild(os.Args[1], os.Args[2])
			return
		}
	}
	os.Exit(m.Run())
}

// buildInChild calls For on the store below dir; it prints "built", "found" or
// an error, and "booted" first where it is to hang there.
func buildInChild(mode, dir string) {
	f := newFixture(dir)
	if mode == "build-and-hang" {
		f.guest.freeze = func(context.Context) error {
			fmt.Println("booted")
			select {}
		}
	}
	s, err := Open(f.options())
	if err != nil {
		fmt.Println(err)
		return
	}
	_, built, err := s.For(context.Background(), f.request(), func(string) {})
	fmt.Println(map[bool]string{true: "built", false: "found"}[built], err)
}

// fixture is a directory with a kernel and a root file system, and a fake
// machine. Nothing in it depends on the process.
type fixture struct {
	dir    string
	driver fakeDriver
	guest  fakeGuest
	vmm    VMM
	bootIn time.Duration
	idle   time.Duration
}

func newFixture(dir string) *fixture {
	return &fixture{
		dir: dir,
		vmm: VMM{Name: "fake", Version: "1", Digest: content.Bytes([]byte("fake"))},
	}
}

func (f *fixture) path(name string) string { return filepath.Join(f.dir, name) }

func (f *fixture) options() Options {
	return Options{
		Dir: f.path("templates"), RuntimeDir: f.path("run"), Driver: &f.driver,
		VMM:         func(context.Context) (VMM, error) { return f.vmm, nil },
		Boot:        bootOf(Boot{"quiet", "fake-cpu", "", "fake-devices"}),
		Kernel:      func() (kernel.Kernel, error) { return kernel.Open(f.path("kernel")) },
		Agent:       []byte("agent"),
		Guest:       func(net.Conn) Guest { return &f.guest },
		Confinement: func(_ sandbox.Confinement, dir string) vm.Confinement { return vm.Confinement{Dir: dir} },
		Holder:      []string{"/proc/self/exe", "holder"},
		Log:         slog.New(slog.DiscardHandler), HolderIdle: f.idle, BootDeadline: f.bootIn,
	}
}

const rootContent = "a root file system"

func (f *fixture) request() Request {
	return Request{
		Image:  "sha256:1mage",
		RootFS: RootFS{Digest: content.Bytes([]byte(rootContent)), Path: f.path("root.img"), SizeBytes: int64(len(rootContent))},
		Shape:  vm.Shape{MemoryMiB: 256, VCPUs: 1}, Accel: sandbox.AccelTCG,
	}
}

// store makes the fixture's files and opens its store.
func store(t *testing.T) (*fixture, *Store) {
	t.Helper()
	f := newFixture(t.TempDir())
	f.idle = time.Minute
	must(t, os.MkdirAll(f.path("kernel"), 0o700))
	sum := strings.TrimPrefix(content.Bytes([]byte("vmlinux")), "sha256:")
	must(t, os.WriteFile(f.path("kernel/vmlinux"), []byte("vmlinux"), 0o600))
	must(t, os.WriteFile(f.path("kernel/kernel.json"), fmt.Appendf(nil,
		`{"format":1,"imported":"2026-01-01T00:00:00Z","package":"linux","version":"1","release":"1-fake","vmlinux":{"name":"vmlinux","sha256":%q,"sizeBytes":7},"modules":[]}`, sum), 0o600))
	must(t, os.WriteFile(f.path("root.img"), []byte(rootContent), 0o600))
	s, err := Open(f.options())
	must(t, err)
	return f, s
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func built(t *testing.T, f *fixture, s *Store) Manifest {
	t.Helper()
	m, isNew, err := s.For(t.Context(), f.request(), func(string) {})
	must(t, err)
	if !isNew {
		t.Error("the template was there already")
	}
	t.Cleanup(func() { s.client().Retire(context.Background(), m.Digest) })
	return m
}

type fakeDriver struct {
	starts  int
	dies    error // the VMM ends at once
	refuses error // the VMM does not start
	machine *fakeMachine

	lateDeath chan struct{} // where not nil, it ends once this is closed
}

func (d *fakeDriver) Start(_ context.Context, c vm.Config) (vm.Machine, error) {
	d.starts++
	if d.refuses != nil {
		return nil, d.refuses
	}
	if len(c.Disks) != 5 || c.Disks[0].File == nil || c.Disks[1].File != nil {
		return nil, errors.New("disks are not a template's")
	}
	for _, f := range []*os.File{c.Kernel, c.Initrd} {
		if !content.Sealed(f) {
			return nil, fmt.Errorf("%s could be changed while it is used", f.Name())
		}
	}
	for _, at := range []int64{0, 64 << 20, 200 << 20} {
		if _, err := c.Memory.WriteAt([]byte("guest memory"), at); err != nil {
			return nil, err
		}
	}
	host, guest := net.Pipe()
	guest.Close()
	d.machine = &fakeMachine{Conn: host, done: make(chan struct{}), err: d.dies}
	switch {
	case d.lateDeath != nil:
		go func() { <-d.lateDeath; close(d.machine.done) }()
	case d.dies != nil:
		close(d.machine.done)
	}
	return d.machine, nil
}

type fakeMachine struct {
	net.Conn
	done   chan struct{}
	err    error
	closed bool
}

func (m *fakeMachine) Control() net.Conn     { return m.Conn }
func (m *fakeMachine) Share() net.Conn       { return nil }
func (m *fakeMachine) Network() net.Conn     { return nil }
func (m *fakeMachine) PID() int              { return 0 }
func (m *fakeMachine) Done() <-chan struct{} { return m.done }
func (m *fakeMachine) Err() error            { return m.err }
func (m *fakeMachine) Close() error          { m.closed = true; return nil }
func (m *fakeMachine) Snapshot(_ context.Context, f *os.File) error {
	_, err := f.WriteString("device state")
	return err
}

type fakeGuest struct {
	hello  func(context.Context) (api.HelloReply, error)
	freeze func(context.Context) error
}

func (g *fakeGuest) Hello(ctx context.Context) (api.HelloReply, error) {
	if g.hello != nil {
		return g.hello(ctx)
	}
	return api.HelloReply{Version: api.Version, Kernel: "1-fake"}, nil
}

func (g *fakeGuest) Freeze(ctx context.Context, _ api.FreezeRequest) error {
	if g.freeze != nil {
		return g.freeze(ctx)
	}
	return nil
}

func (g *fakeGuest) Close() error { return nil }

func TestForBuildsOnce(t *testing.T) {
	f, s := store(t)
	m := built(t, f, s)
	again, isNew, err := s.For(t.Context(), f.request(), func(string) {})
	if err != nil || isNew || f.driver.starts != 1 {
		t.Errorf("again: built %v, %d starts, %v", isNew, f.driver.starts, err)
	}
	if diff := cmp.Diff(m, again); diff != "" {
		t.Error(diff)
	}
	if !f.driver.machine.closed {
		t.Error("the machine was left running")
	}
	checks, err := s.Verify(t.Context(), m.Digest)
	if err != nil || len(checks) != 5 {
		t.Errorf("verify: %v, %v", checks, err)
	}
	entries, err := os.ReadDir(s.path(m.key()))
	must(t, err)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if diff := cmp.Diff([]string{"manifest.json", "memory", "state"}, names); diff != "" {
		t.Error(diff)
	}
	var st unix.Stat_t
	must(t, unix.Stat(filepath.Join(s.path(m.key()), memoryName), &st))
	if st.Size != 256<<20 || st.Blocks*512 > 1<<20 {
		t.Errorf("memory: %d bytes, %d on disk; want 256 MiB of holes with three pages", st.Size, st.Blocks*512)
	}
}

func TestEachChangeOfTheRecipeIsAnotherTemplate(t *testing.T) {
	f, s := store(t)
	keys := map[string]string{}
	add := func(what string, o Options, r Request) {
		s, err := Open(o)
		must(t, err)
		k, err := s.opts.Kernel()
		must(t, err)
		recipe, err := s.recipe(t.Context(), r, k)
		must(t, err)
		if other, same := keys[recipe.key()]; same {
			t.Errorf("%s: the same template as %s", what, other)
		}
		keys[recipe.key()] = what
	}
	add("base", s.opts, f.request())
	for what, change := range map[string]func(*Options, *Request){
		"image":          func(_ *Options, r *Request) { r.Image = "other" },
		"rootfs":         func(_ *Options, r *Request) { r.RootFS.Digest = "other" },
		"memory":         func(_ *Options, r *Request) { r.Shape.MemoryMiB++ },
		"vcpus":          func(_ *Options, r *Request) { r.Shape.VCPUs++ },
		"accel":          func(_ *Options, r *Request) { r.Accel = sandbox.AccelKVM },
		"agent":          func(o *Options, _ *Request) { o.Agent = []byte("other") },
		"cmdline":        func(o *Options, _ *Request) { o.Boot = bootOf(Boot{"other", "fake-cpu", "", "fake-devices"}) },
		"cpu":            func(o *Options, _ *Request) { o.Boot = bootOf(Boot{"quiet", "other", "", "fake-devices"}) },
		"host's cpu":     func(o *Options, _ *Request) { o.Boot = bootOf(Boot{"quiet", "fake-cpu", "sha256:1", "fake-devices"}) },
		"another host's": func(o *Options, _ *Request) { o.Boot = bootOf(Boot{"quiet", "fake-cpu", "sha256:2", "fake-devices"}) },
		"devices":        func(o *Options, _ *Request) { o.Boot = bootOf(Boot{"quiet", "fake-cpu", "", "other"}) },
		"vmm":            func(o *Options, _ *Request) { o.VMM = func(context.Context) (VMM, error) { return VMM{}, nil } },
		"kernel": func(o *Options, _ *Request) {
			o.Kernel = kernelOf(func(k *kernel.Kernel) { k.VMLinux.SHA256 = "other" }, f)
		},
		"modules": func(o *Options, _ *Request) {
			o.Kernel = kernelOf(func(k *kernel.Kernel) { k.Modules = []kernel.File{{Name: "m", SHA256: "x"}} }, f)
		},
	} {
		o, r := s.opts, f.request()
		change(&o, &r)
		add(what, o, r)
	}
}

func bootOf(b Boot) func(context.Context, Request) (Boot, error) {
	return func(context.Context, Request) (Boot, error) { return b, nil }
}

func kernelOf(change func(*kernel.Kernel), f *fixture) func() (kernel.Kernel, error) {
	return func() (kernel.Kernel, error) {
		k, err := kernel.Open(f.path("kernel"))
		change(&k)
		return k, err
	}
}

// TestDigestIsTheDocumentedOne makes the template digest from the manifest's
// file as docs/format/template.md says, without our types.
func TestDigestIsTheDocumentedOne(t *testing.T) {
	f, s := store(t)
	m := built(t, f, s)
	data, err := os.ReadFile(filepath.Join(s.path(m.key()), manifestName))
	must(t, err)
	data = regexp.MustCompile(`(?m)^  "(digest|created)": .*\n`).ReplaceAll(data, nil)
	var b bytes.Buffer
	must(t, json.Compact(&b, data))
	sum := sha256.Sum256(b.Bytes())
	if want := "sha256:" + hex.EncodeToString(sum[:]); m.Digest != want {
		t.Errorf("digest is %s, by hand %s", m.Digest, want)
	}
}

func TestBuildFailuresLeaveNothing(t *testing.T) {
	broken := errors.New("broken")
	for name, c := range map[string]struct {
		spoil    func(*fixture)
		want     string
		deadline bool
	}{
		"deaf guest": {func(f *fixture) {
			f.bootIn = 10 * time.Millisecond
			f.guest.hello = func(ctx context.Context) (api.HelloReply, error) {
				<-ctx.Done()
				return api.HelloReply{}, ctx.Err()
			}
		}, "no answer from its agent within 10ms", true},
		"vmm dies": {func(f *fixture) {
			f.driver.dies = errors.New("SIGABRT")
			f.guest.hello = func(ctx context.Context) (api.HelloReply, error) {
				<-ctx.Done()
				return api.HelloReply{}, ctx.Err()
			}
		}, "SIGABRT", true},
		"vmm dies, and its ports first": {func(f *fixture) {
			f.driver.dies = errors.New("SIGABRT")
			f.driver.lateDeath = make(chan struct{})
			f.guest.hello = func(context.Context) (api.HelloReply, error) {
				defer close(f.driver.lateDeath)
				return api.HelloReply{}, io.EOF
			}
		}, "SIGABRT", true},
		"vmm does not start": {func(f *fixture) { f.driver.refuses = errors.New("no /dev/kvm") }, "no /dev/kvm", true},
		"hello": {func(f *fixture) {
			f.guest.hello = func(context.Context) (api.HelloReply, error) { return api.HelloReply{}, broken }
		}, "greet agent: broken", false},
		"other kernel": {func(f *fixture) {
			f.guest.hello = func(context.Context) (api.HelloReply, error) { return api.HelloReply{Kernel: "2"}, nil }
		}, `kernel "2", want "1-fake"`, false},
		"freeze": {func(f *fixture) {
			f.guest.freeze = func(context.Context) error { return broken }
		}, "freeze: broken", false},
		"root differs": {func(f *fixture) { os.WriteFile(f.path("root.img"), []byte("X root file system"), 0o600) }, "root file system: ", false},
		"root missing": {func(f *fixture) { os.Remove(f.path("root.img")) }, "root file system: ", false},
		"kernel":       {func(f *fixture) { os.WriteFile(f.path("kernel/vmlinux"), []byte("VMLINUX"), 0o600) }, "vmlinux does not match", false},
	} {
		t.Run(name, func(t *testing.T) {
			f, _ := store(t)
			c.spoil(f)
			s, err := Open(f.options())
			must(t, err)
			_, _, err = s.For(t.Context(), f.request(), func(string) {})
			if err == nil || !strings.Contains(err.Error(), c.want) || errors.Is(err, ErrDeadline) != c.deadline {
				t.Errorf("got %v, want %q, deadline %v", err, c.want, c.deadline)
			}
			if f.driver.machine != nil && !f.driver.machine.closed {
				t.Error("the machine was left running")
			}
			left, err := filepath.Glob(filepath.Join(s.opts.Dir, "*"))
			must(t, err)
			for _, l := range left {
				if !strings.HasSuffix(l, lockSuffix) && filepath.Base(l) != stampsName {
					t.Errorf("left %s", l)
				}
			}
		})
	}
}

func child(t *testing.T, mode, dir string) (*exec.Cmd, io.Reader) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", mode, dir)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	return cmd, out
}

func TestManyProcessesBuildOnce(t *testing.T) {
	f, s := store(t)
	var mu sync.Mutex
	said := map[string]int{}
	var wg sync.WaitGroup
	for range 6 {
		cmd, out := child(t, "build", f.dir)
		wg.Go(func() {
			text, err := io.ReadAll(out)
			err = errors.Join(err, cmd.Wait())
			mu.Lock()
			defer mu.Unlock()
			said[strings.TrimSpace(string(text))]++
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if diff := cmp.Diff(map[string]int{"built <nil>": 1, "found <nil>": 5}, said); diff != "" {
		t.Error(diff)
	}
	if all, err := s.List(t.Context()); err != nil || len(all) != 1 {
		t.Errorf("the store has %d templates, %v", len(all), err)
	}
}

func TestKilledBuildIsSweptAway(t *testing.T) {
	f, s := store(t)
	cmd, out := child(t, "build-and-hang", f.dir)
	if _, err := io.ReadFull(out, make([]byte, len("booted"))); err != nil {
		t.Fatal(err)
	}
	left := func() []string {
		dirs, err := filepath.Glob(filepath.Join(s.opts.Dir, "*"+buildSuffix))
		must(t, err)
		return dirs
	}
	if len(left()) != 1 {
		t.Fatal("the child builds nothing")
	}
	// Another template may be built meanwhile, and leaves a living build alone.
	other := f.request()
	other.Shape.VCPUs = 2
	_, _, err := s.For(t.Context(), other, func(string) {})
	must(t, err)
	if len(left()) != 1 {
		t.Error("a living build was swept away")
	}
	must(t, cmd.Process.Kill())
	cmd.Wait()
	if all, err := s.List(t.Context()); err != nil || len(all) != 1 {
		t.Errorf("the half-built template is listed: %v, %v", all, err)
	}
	built(t, f, s)
	if len(left()) != 0 {
		t.Errorf("left %v", left())
	}
}

// What is in a template's place and has no manifest keeps nobody from building.
func TestIncompleteTemplateIsReplaced(t *testing.T) {
	f, s := store(t)
	m := built(t, f, s)
	dir := s.path(m.key())
	for name, spoil := range map[string]func() error{
		"no manifest": func() error { return os.Remove(filepath.Join(dir, manifestName)) },
		"empty":       func() error { return errors.Join(os.RemoveAll(dir), os.Mkdir(dir, 0o700)) },
		"a file":      func() error { return errors.Join(os.RemoveAll(dir), os.WriteFile(dir, nil, 0o600)) },
		"a lost link": func() error { return errors.Join(os.RemoveAll(dir), os.Symlink("nowhere", dir)) },
	} {
		must(t, spoil())
		again, isNew, err := s.For(t.Context(), f.request(), func(string) {})
		if err != nil || !isNew || again.Digest != m.Digest {
			t.Errorf("%s: built %v, %v", name, isNew, err)
		}
		if _, err := s.Verify(t.Context(), m.Digest); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestInspectAndRemove(t *testing.T) {
	f, s := store(t)
	m := built(t, f, s)
	for _, ref := range []string{m.Digest, m.Digest[7:], m.Digest[7:19], m.key()[:12]} {
		if got, err := s.Inspect(t.Context(), ref); err != nil || got.Digest != m.Digest {
			t.Errorf("%s: %v", ref, err)
		}
	}
	for _, ref := range []string{"", "abc", "ffffffffffff", "../.."} {
		if _, err := s.Inspect(t.Context(), ref); err == nil {
			t.Errorf("%q was found", ref)
		}
	}
	must(t, s.Remove(t.Context(), m.Digest[7:19]))
	if _, err := s.Inspect(t.Context(), m.Digest); err == nil {
		t.Error("it is still there")
	}
	if _, err := s.Open(t.Context(), m); err == nil {
		t.Error("a removed template was opened")
	}
}

func TestDamagedManifestIsNamedAndRemovable(t *testing.T) {
	f, s := store(t)
	m := built(t, f, s)
	path := filepath.Join(s.path(m.key()), manifestName)
	good, err := os.ReadFile(path)
	must(t, err)
	for want, bad := range map[string]string{
		"format 2":       strings.Replace(string(good), `"format": 1`, `"format": 2`, 1),
		"names itself":   strings.Replace(string(good), "fake-cpu", "evil-cpu", 1),
		"unknown field":  strings.Replace(string(good), `"image"`, `"more": 1, "image"`, 1),
		"read manifest:": "{",
	} {
		must(t, os.WriteFile(path, []byte(bad), 0o600))
		_, _, err := s.For(t.Context(), f.request(), func(string) {})
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "creel template rm") {
			t.Errorf("%s: %v", want, err)
		}
		if _, err := s.List(t.Context()); err == nil {
			t.Errorf("%s: List says nothing", want)
		}
	}
	// A manifest that is whole, in another template's place.
	other := f.request()
	other.Shape.VCPUs = 2
	m2, _, err := s.For(t.Context(), other, func(string) {})
	must(t, err)
	data, err := os.ReadFile(filepath.Join(s.path(m2.key()), manifestName))
	must(t, err)
	must(t, os.WriteFile(path, data, 0o600))
	if _, _, err := s.For(t.Context(), f.request(), func(string) {}); err == nil || !strings.Contains(err.Error(), "another template's") {
		t.Errorf("swapped: %v", err)
	}
	must(t, s.Remove(t.Context(), m.key()[:12]))
	if _, isNew, err := s.For(t.Context(), f.request(), func(string) {}); err != nil || !isNew {
		t.Errorf("after its removal: %v, %v", isNew, err)
	}
}
