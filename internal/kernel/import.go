package kernel

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"creel/internal/durable"
	"creel/internal/environ"
	"creel/internal/undo"

	"golang.org/x/sys/unix"
)

const (
	stagingPrefix = ".import-"

	maxModule  = 64 << 20
	maxPackage = 1 << 30 // all files together that are looked at
)

// Package names and versions as Debian policy has them; they name directories.
var (
	packagePattern = regexp.MustCompile(`^[a-z0-9][a-z0-9+.-]{1,127}$`)
	versionPattern = regexp.MustCompile(`^[0-9][A-Za-z0-9.+:~-]{0,127}$`)
)

// Import unpacks the kernel package at debPath into the store dir. Nothing of
// the package is run or installed. A kernel that the store already has, by
// package and version, is replaced. It takes about two seconds.
func Import(ctx context.Context, debPath, dir string) (Kernel, error) {
	k, err := identify(ctx, debPath)
	if err != nil {
		return Kernel{}, err
	}
	files, err := unpack(ctx, debPath)
	if err != nil {
		return Kernel{}, fmt.Errorf("unpack kernel package %q: %w", debPath, err)
	}
	image, err := extractELF(files.vmlinuz)
	if err != nil {
		return Kernel{}, fmt.Errorf("kernel of package %q: %w", debPath, err)
	}
	return add(ctx, k, dir, image, files)
}

// add puts a kernel with the modules that a guest needs into the store dir. k
// has its package and version.
func add(ctx context.Context, k Kernel, dir string, image []byte, files *packageFiles) (Kernel, error) {
	order, err := loadOrder(wanted, files.has, files.builtin, files.depends)
	if err != nil {
		return Kernel{}, fmt.Errorf("modules of kernel %s: %w", files.release, err)
	}
	k.Format, k.Imported, k.Release = formatVersion, time.Now().UTC(), files.release
	unlock, err := lockStore(ctx, dir)
	if err != nil {
		return Kernel{}, err
	}
	defer unlock()
	if err := store(&k, dir, image, order, files); err != nil {
		return Kernel{}, fmt.Errorf("store kernel %s: %w", k.Package, err)
	}
	return k, nil
}

func identify(ctx context.Context, debPath string) (Kernel, error) {
	fields := map[string]string{}
	for _, name := range []string{"Package", "Version"} {
		cmd := exec.CommandContext(ctx, "dpkg-deb", "--field", debPath, name)
		cmd.Env = environ.Helper()
		out, err := output(cmd)
		if err != nil {
			return Kernel{}, fmt.Errorf("read kernel package %q: %w", debPath, err)
		}
		fields[name] = strings.TrimSpace(string(out))
	}
	k := Kernel{Package: fields["Package"], Version: fields["Version"]}
	if !packagePattern.MatchString(k.Package) || !versionPattern.MatchString(k.Version) {
		return Kernel{}, fmt.Errorf("kernel package %q calls itself %q %q, which is no Debian name and version", debPath, k.Package, k.Version)
	}
	return k, nil
}

// packageFiles are the parts of a kernel package that matter.
type packageFiles struct {
	release string
	vmlinuz []byte
	modules map[string][]byte // by module name, as in the package
	paths   map[string]string // the same where they are files
	builtin map[string]bool
}

func (p *packageFiles) has(name string) bool { return p.modules[name] != nil || p.paths[name] != "" }

func (p *packageFiles) module(name string) ([]byte, error) {
	data := p.modules[name]
	if path := p.paths[name]; path != "" {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		if data, err = readLimited(f, maxModule); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
	}
	return decompress(data, maxModule)
}

func (p *packageFiles) depends(name string) ([]string, error) {
	data, err := p.module(name)
	if err != nil {
		return nil, err
	}
	return moduleDepends(data, p.release)
}

func unpack(ctx context.Context, debPath string) (*packageFiles, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cmd := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", debPath)
	cmd.Env = environ.Helper()
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("make pipe: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start dpkg-deb: %w", err)
	}
	files, readErr := readPackage(bufio.NewReaderSize(out, 1<<20))
	if readErr != nil {
		cancel() // it may still be writing
	}
	if err := cmd.Wait(); err != nil && readErr == nil {
		return nil, fmt.Errorf("dpkg-deb: %w: %s", err, bytes.TrimSpace(stderr.Bytes()))
	}
	return files, readErr
}

func readPackage(r io.Reader) (*packageFiles, error) {
	files := &packageFiles{modules: map[string][]byte{}, builtin: map[string]bool{}}
	left := int64(maxPackage)
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		name := path.Clean("/" + h.Name)
		take, ok := files.taker(name)
		if !ok || h.Typeflag != tar.TypeReg {
			continue
		}
		data, err := readLimited(tr, min(left, maxModule))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		left -= int64(len(data))
		take(data)
	}
	// dpkg-deb may write padding behind the archive's end; let it finish.
	if _, err := io.Copy(io.Discard, r); err != nil {
		return nil, err
	}
	if files.vmlinuz == nil || files.release == "" {
		return nil, errors.New("no /boot/vmlinuz-* in it; want a linux-image package")
	}
	return files, nil
}

// taker says what to do with a file's content, if anything.
func (p *packageFiles) taker(name string) (func([]byte), bool) {
	dir, base := path.Split(name)
	switch {
	case dir == "/boot/" && strings.HasPrefix(base, "vmlinuz-"):
		p.release = strings.TrimPrefix(base, "vmlinuz-")
		return func(data []byte) { p.vmlinuz = data }, true
	case !strings.Contains(dir, "/lib/modules/"):
		return nil, false
	case base == "modules.builtin":
		return p.addBuiltin, true
	case isModule(base):
		return func(data []byte) { p.modules[moduleName(base)] = data }, true
	}
	return nil, false
}

func (p *packageFiles) addBuiltin(list []byte) {
	for line := range strings.Lines(string(list)) {
		p.builtin[moduleName(line)] = true
	}
}

func isModule(file string) bool {
	return strings.HasSuffix(file, ".ko") || strings.Contains(file, ".ko.")
}

// store writes the kernel beside its place and renames it there when it is
// whole, so that a kernel in the store is always complete.
func store(k *Kernel, dir string, image []byte, order []string, files *packageFiles) error {
	staging, err := os.MkdirTemp(dir, stagingPrefix)
	if err != nil {
		return err
	}
	var steps undo.Stack
	defer steps.Unwind()
	steps.Push("staging directory", func() error { return os.RemoveAll(staging) })
	if err := os.Mkdir(filepath.Join(staging, modulesName), 0o700); err != nil {
		return err
	}
	if k.VMLinux, err = put(staging, vmlinuxName, image); err != nil {
		return err
	}
	for _, name := range order {
		data, err := files.module(name)
		if err != nil {
			return fmt.Errorf("module %s: %w", name, err)
		}
		f, err := put(staging, path.Join(modulesName, name+".ko"), data)
		if err != nil {
			return err
		}
		k.Modules = append(k.Modules, f)
	}
	record, err := json.MarshalIndent(k, "", "  ")
	if err != nil {
		return err
	}
	if _, err := put(staging, recordName, append(record, '\n')); err != nil {
		return err
	}
	k.Dir = filepath.Join(dir, k.Package+"_"+k.Version)
	// Exchanged, where one is there, so that no reader misses it; the old one
	// is then in the staging directory's place and goes with it.
	err = unix.Renameat2(unix.AT_FDCWD, staging, unix.AT_FDCWD, k.Dir, unix.RENAME_EXCHANGE)
	if errors.Is(err, unix.ENOENT) {
		err = os.Rename(staging, k.Dir)
	}
	return errors.Join(err, durable.Sync(dir))
}

// lockStore makes the store where absent, holds up other imports, and removes
// what killed ones left.
func lockStore(ctx context.Context, dir string) (unlock func() error, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make kernel store: %w", err)
	}
	lock, err := durable.OpenExisting(dir)
	if err != nil {
		return nil, fmt.Errorf("open kernel store: %w", err)
	}
	if err := lock.Lock(ctx); err != nil {
		lock.Close()
		return nil, fmt.Errorf("lock kernel store: %w", err)
	}
	left, err := filepath.Glob(filepath.Join(dir, stagingPrefix+"*"))
	for _, l := range left {
		err = errors.Join(err, os.RemoveAll(l))
	}
	if err != nil {
		lock.Close()
		return nil, fmt.Errorf("clean kernel store: %w", err)
	}
	return lock.Close, nil
}

func put(dir, name string, data []byte) (File, error) {
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return File{}, err
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Sync(), f.Close())
	return File{Name: name, SHA256: digest(data), SizeBytes: int64(len(data))}, err
}

func sortNewestFirst(kernels []Kernel) {
	slices.SortFunc(kernels, func(a, b Kernel) int { return b.Imported.Compare(a.Imported) })
}

// output runs a program in the C locale; its error carries what it said.
func output(cmd *exec.Cmd) ([]byte, error) {
	cmd.Env = append(cmd.Env, "LC_ALL=C")
	out, err := cmd.Output()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return nil, fmt.Errorf("%s: %w: %s", cmd.Path, err, bytes.TrimSpace(exit.Stderr))
	}
	return out, err
}
