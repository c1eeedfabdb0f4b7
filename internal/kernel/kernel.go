// Package kernel keeps guest kernels: a Debian kernel package, or an image with
// its modules, is unpacked, never installed, into the ELF that a VMM enters by
// its PVH note and the few modules that a guest needs, and [Kernel.WriteInitramfs] makes the boot
// archive of them and the guest agent.
//
// The main type is [Kernel]. The package must not know VMs, templates or
// images, must not run anything of a package, and takes every byte of one as
// hostile.
package kernel

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

const (
	formatVersion = 1
	recordName    = "kernel.json"
	vmlinuxName   = "vmlinux"
	modulesName   = "modules"
)

// Kernel is one unpacked kernel in a store. Its files are checked against
// their digests by [Kernel.ReadVMLinux] and [Kernel.WriteInitramfs], each time.
type Kernel struct {
	Format   int       `json:"format"`
	Imported time.Time `json:"imported"`
	Package  string    `json:"package"` // Debian package name, or kernel-image
	Version  string    `json:"version"` // Debian package version, or release and digest of an image
	Release  string    `json:"release"` // uname -r
	VMLinux  File      `json:"vmlinux"`
	Modules  []File    `json:"modules"` // in the order in which they load

	Dir string `json:"-"` // where it lies
}

// File is one file of a kernel.
type File struct {
	Name      string `json:"name"`   // relative to the kernel's directory
	SHA256    string `json:"sha256"` // hexadecimal
	SizeBytes int64  `json:"sizeBytes"`
}

// Open reads the record of the kernel in dir. The files are not hashed yet.
func Open(dir string) (Kernel, error) {
	var k Kernel
	data, err := os.ReadFile(filepath.Join(dir, recordName))
	if err != nil {
		return k, fmt.Errorf("read kernel record: %w", err)
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&k); err != nil {
		return k, fmt.Errorf("read kernel record in %s: %w; remove that directory and run `creel kernel fetch`", dir, err)
	}
	if k.Format != formatVersion {
		return k, fmt.Errorf("kernel in %s has format %d, this creel knows %d; remove that directory and run `creel kernel fetch`", dir, k.Format, formatVersion)
	}
	k.Dir = dir
	return k, nil
}

// List returns the kernels of the store dir, the one imported last first. A
// store that does not exist is empty.
func List(dir string) ([]Kernel, error) {
	records, err := filepath.Glob(filepath.Join(dir, "*", recordName))
	if err != nil {
		return nil, fmt.Errorf("list kernels: %w", err)
	}
	var kernels []Kernel
	for _, r := range records {
		if strings.HasPrefix(filepath.Base(filepath.Dir(r)), stagingPrefix) {
			continue // an import that was killed between its last write and its rename
		}
		k, err := Open(filepath.Dir(r))
		if err != nil {
			return nil, err
		}
		kernels = append(kernels, k)
	}
	sortNewestFirst(kernels)
	return kernels, nil
}

// Latest is the kernel that was imported last.
func Latest(dir string) (Kernel, error) {
	kernels, err := List(dir)
	if err != nil {
		return Kernel{}, err
	}
	if len(kernels) == 0 {
		return Kernel{}, fmt.Errorf("no guest kernel in %s: run `creel kernel fetch`", dir)
	}
	return kernels[0], nil
}

// ModulesSHA256 is one digest over the modules, their names and their order.
func (k Kernel) ModulesSHA256() string {
	h := sha256.New()
	for _, m := range k.Modules {
		fmt.Fprintf(h, "%s  %s\n", m.SHA256, m.Name)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// ReadVMLinux returns the kernel's ELF, checked against its digest.
func (k Kernel) ReadVMLinux() ([]byte, error) { return k.read(k.VMLinux) }

func (k Kernel) read(f File) ([]byte, error) {
	if !filepath.IsLocal(f.Name) {
		return nil, fmt.Errorf("kernel file %q: not a path below %s", f.Name, k.Dir)
	}
	const mend = "remove %s and run `creel kernel fetch`"
	file, err := os.Open(filepath.Join(k.Dir, f.Name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("kernel file %s is missing; "+mend, f.Name, k.Dir)
	}
	if err != nil {
		return nil, fmt.Errorf("open kernel file: %w", err)
	}
	defer file.Close()
	data, err := readLimited(file, maxVMLinux)
	if err != nil {
		return nil, fmt.Errorf("read kernel file %s: %w", f.Name, err)
	}
	if digest(data) != f.SHA256 {
		return nil, fmt.Errorf("kernel file %s does not match its digest; "+mend, f.Name, k.Dir)
	}
	return data, nil
}

func digest(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// readLimited reads all of r, which must not hold more than limit bytes.
func readLimited(r io.Reader, limit int64) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("more than %d bytes", limit)
	}
	return data, nil
}
