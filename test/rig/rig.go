// Package rig prepares what tests of the built program share: a copy of it, a
// state directory with a guest kernel, ways to run commands there, and a view
// of the processes that they leave. [Rig] is one user's state directory,
// [Result] and [Running] are commands of it. The package must not import
// anything of the program under test: it looks from outside.
package rig

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

// Rig is one state directory, and the user whose it is.
type Rig struct {
	Creel string // a copy of the binary that every user may execute
	State string // CREEL_STATE_DIR
	Home  string

	user     *syscall.Credential // nil: this process's own
	dir      string              // all of the above lies in it
	careless *os.File            // left open to every command, as callers do
	env      []string            // of every command, beside what all have
}

// With is the same rig, whose commands have more variables.
func (r *Rig) With(entries ...string) *Rig {
	other := *r
	other.env = append(slices.Clone(r.env), entries...)
	return &other
}

// Lack says why no machine can be booted here, or is empty.
func Lack() string {
	for _, name := range []string{"CREEL_TEST_BIN", "CREEL_TEST_KERNEL"} {
		if os.Getenv(name) == "" {
			return name + " is not set; `make test` sets it"
		}
	}
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		return "there is no QEMU; `make deps` installs it"
	}
	return ""
}

// New makes a rig for this process's user. The caller closes it. Processes that
// lose their parent become children of this one from then on, so that none is
// lost sight of.
func New() (*Rig, error) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return nil, fmt.Errorf("become the reaper of orphans: %w", err)
	}
	return prepare(nil)
}

// As makes a rig of another user, which needs root. The caller closes it.
func As(uid uint32) (*Rig, error) {
	return prepare(&syscall.Credential{Uid: uid, Gid: uid, Groups: []uint32{}})
}

func prepare(user *syscall.Credential) (*Rig, error) {
	dir, err := os.MkdirTemp("", "creel-test-")
	if err != nil {
		return nil, fmt.Errorf("make test directory: %w", err)
	}
	r := &Rig{
		Creel: filepath.Join(dir, "creel"), State: filepath.Join(dir, "state"), Home: filepath.Join(dir, "home"),
		user: user, dir: dir,
	}
	if err := r.fill(); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return r, nil
}

func (r *Rig) fill() error {
	var err error
	if r.careless, err = os.Open("/dev/zero"); err != nil {
		return err
	}
	if err := os.Chmod(r.dir, 0o711); err != nil {
		return err
	}
	if err := copyFile(r.Creel, os.Getenv("CREEL_TEST_BIN"), 0o755); err != nil {
		return err
	}
	for _, dir := range []string{r.State, r.Home} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			return err
		}
	}
	kernels := filepath.Join(r.State, "kernels")
	if err := os.CopyFS(kernels, os.DirFS(os.Getenv("CREEL_TEST_KERNEL"))); err != nil {
		return fmt.Errorf("take the guest kernel from CREEL_TEST_KERNEL: %w", err)
	}
	if r.user == nil {
		return nil
	}
	return filepath.WalkDir(r.dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil || path == r.dir || path == r.Creel {
			return err
		}
		return os.Lchown(path, int(r.user.Uid), int(r.user.Gid))
	})
}

// Close ends every process of the rig and removes its directory.
func (r *Rig) Close() error {
	// Holders keep a template's memory for a while; nobody comes back for it.
	errs := []error{r.careless.Close()}
	for _, p := range r.Processes() {
		if err := unix.Kill(p.PID, unix.SIGKILL); err != nil && err != unix.ESRCH {
			errs = append(errs, fmt.Errorf("end %s: %w", p, err))
		}
	}
	return errors.Join(append(errs, os.RemoveAll(r.dir))...)
}

func copyFile(to, from string, mode os.FileMode) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	_, err = io.Copy(dst, src)
	return errors.Join(err, dst.Close())
}
