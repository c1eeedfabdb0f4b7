package kernel

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

const (
	debMagic = "!<arch>\n"

	// imagePackage is the package name of a kernel that came without one.
	imagePackage = "kernel-image"
	maxImage     = 1 << 30 // of the file, a vmlinux with debug information too
)

// banner is what every kernel says first.
var banner = regexp.MustCompile(`Linux version ([0-9][A-Za-z0-9._+~-]{0,63}) \(`)

// IsPackage says whether the file is a Debian package, and not a kernel image.
func IsPackage(path string) (bool, error) {
	f, err := os.Open(path)
	if err != nil {
		return false, fmt.Errorf("open kernel: %w", err)
	}
	defer f.Close()
	head := make([]byte, len(debMagic))
	n, err := io.ReadFull(f, head)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return false, fmt.Errorf("read kernel %q: %w", path, err)
	}
	return string(head[:n]) == debMagic, nil
}

// ImportImage puts a kernel image, bzImage or ELF, into the store dir, with the
// modules of modulesDir: what `make modules_install` makes, lib/modules/RELEASE
// or a directory above it. Where modulesDir is "" the kernel is taken to have
// built in all that the guest needs; whether it has shows when a template
// boots. The kernel's version is its release and the beginning of its digest.
func ImportImage(ctx context.Context, path, modulesDir, dir string) (Kernel, error) {
	image, err := readImage(path)
	if err != nil {
		return Kernel{}, fmt.Errorf("kernel image %q: %w", path, err)
	}
	match := banner.FindSubmatch(image)
	if match == nil {
		return Kernel{}, fmt.Errorf("kernel image %q: it names no Linux version; want an x86-64 bzImage or vmlinux", path)
	}
	release := string(match[1])
	files := &packageFiles{release: release, builtin: map[string]bool{}, paths: map[string]string{}}
	if modulesDir == "" {
		for _, name := range wanted {
			files.builtin[name] = true
		}
	} else if err := files.look(ctx, modulesDir); err != nil {
		return Kernel{}, fmt.Errorf("modules in %q: %w", modulesDir, err)
	}
	k := Kernel{Package: imagePackage, Version: strings.ReplaceAll(release, "_", "+") + "+" + digest(image)[:12]}
	return add(ctx, k, dir, image, files)
}

// readImage is the kernel's ELF, uncompressed.
func readImage(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := readLimited(f, maxImage)
	if err != nil {
		return nil, err
	}
	if len(data) >= headerEnd && string(data[offHeaderMagic:offHeaderMagic+4]) == "HdrS" {
		return extractELF(data)
	}
	image, err := decompress(data, maxVMLinux)
	if err != nil {
		return nil, err
	}
	if !bytes.HasPrefix(image, []byte(elf.ELFMAG)) {
		return nil, errors.New("neither a Debian package nor a bzImage nor an ELF")
	}
	if len(image) > maxVMLinux {
		return nil, fmt.Errorf("more than %d MiB; `strip --strip-debug` a copy of it", maxVMLinux>>20)
	}
	return image, checkPVH(image)
}

// look notes where the modules of the release lie, and which are built in.
func (p *packageFiles) look(ctx context.Context, dir string) error {
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return err
	}
	return filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err = errors.Join(err, ctx.Err()); err != nil || !e.Type().IsRegular() {
			return err
		}
		base := filepath.Base(path)
		switch {
		case base == "modules.builtin":
			list, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			p.addBuiltin(list)
		case isModule(base):
			name := moduleName(base)
			if other, twice := p.paths[name]; twice {
				return fmt.Errorf("module %s is there twice, %s and %s; give the directory of one kernel", name, other, path)
			}
			p.paths[name] = path
		}
		return nil
	})
}
