// Package scratch makes the writable disk of a sandbox: an ext4 in a sparse
// file, with nothing in it but the layer's directories and empty files for what
// every clone writes, cloned from one that is made once for each size. [New] is
// all of it. The package must not know sandboxes, and never opens a disk that a
// guest has written.
//
// A [Durable] disk has a journal and checksums: it is mounted again after its
// VM was killed, and there is nobody to run fsck. One that is thrown away has
// neither, waits for no flush, and is mounted in half the time under emulation.
package scratch

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"creel/internal/environ"

	"golang.org/x/sys/unix"
)

const (
	// MinBytes is the smallest disk that holds a file system with room in it.
	MinBytes = 64 << 20
	// layout names the cached disks; it changes with what [format] makes.
	layout = "ext4-v3"
)

// Kind is what a disk has to survive.
type Kind string

const (
	Disposable Kind = "disposable" // one run
	Durable    Kind = "durable"    // the end of its VM, in whatever way
)

// New makes an empty file system of size bytes, a multiple of 4096, in a new
// file at path. A pristine copy of that kind and size is kept in cacheDir, and
// made there where absent. On error nothing is left at path.
func New(ctx context.Context, cacheDir, path string, size int64, kind Kind) error {
	if size < MinBytes || size%4096 != 0 {
		return fmt.Errorf("make disk %q: %d bytes; want a multiple of 4096, at least %d", path, size, MinBytes)
	}
	pristine := filepath.Join(cacheDir, fmt.Sprintf("%s-%s-%d.img", layout, kind, size))
	src, err := openWhole(pristine, size)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, errDamaged) {
		if err := format(ctx, pristine, size, kind); err != nil {
			return fmt.Errorf("make disk %q: %w", path, explain(err))
		}
		src, err = openWhole(pristine, size)
	}
	if err != nil {
		return fmt.Errorf("open pristine disk: %w", err)
	}
	defer src.Close()
	dst, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("make disk %q: %w", path, explain(err))
	}
	err = errors.Join(fill(dst, src, size), dst.Close())
	if err != nil {
		os.Remove(path)
		return fmt.Errorf("make disk %q: %w", path, explain(err))
	}
	return nil
}

// errDamaged is of a pristine disk that has to be made again.
var errDamaged = errors.New("it is damaged")

// openWhole opens a pristine disk that is one, as far as can be seen without
// reading all of it.
func openWhole(path string, size int64) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ENODEV) {
		return nil, fmt.Errorf("%s: %w", path, errDamaged) // a link, a socket, a device
	}
	if err != nil {
		return nil, err
	}
	if err := whole(f, size); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func whole(f *os.File, size int64) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() || info.Size() != size {
		return fmt.Errorf("%s: %w", f.Name(), errDamaged)
	}
	super := make([]byte, superBytes)
	if _, err := f.ReadAt(super, superAt); err != nil {
		return fmt.Errorf("read superblock: %w", err)
	}
	le := binary.LittleEndian
	if le.Uint16(super[offMagic:]) != superMagic || le.Uint32(super[offCompat:])&hasSums != 0 && le.Uint32(super[offSum:]) != sumOf(super) {
		return fmt.Errorf("%s: %w", f.Name(), errDamaged)
	}
	return nil
}

// sumOf is a superblock's checksum. The kernel's crc32c starts from all ones and
// does not invert its result.
func sumOf(super []byte) uint32 {
	return ^crc32.Checksum(super[:offSum], crc32.MakeTable(crc32.Castagnoli))
}

func fill(dst, src *os.File, size int64) error {
	if err := clone(dst, src, size); err != nil {
		return err
	}
	return personalise(dst)
}

func explain(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fmt.Errorf("%w; free some space, or set CREEL_STATE_DIR to a larger disk", err)
	}
	return err
}

// format makes the pristine disk beside its place. Where several processes do
// so at once, the last one's stays; each of them is as good.
func format(ctx context.Context, path string, size int64, kind Kind) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	work, err := os.MkdirTemp(filepath.Dir(path), ".new-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	tree := filepath.Join(work, "tree")
	if err := plant(tree); err != nil {
		return err
	}
	tmp, err := os.Create(filepath.Join(work, "disk"))
	if err != nil {
		return err
	}
	defer tmp.Close()
	if err := tmp.Truncate(size); err != nil {
		return err
	}
	if err := run(ctx, "mke2fs", append(features(size, kind), "-d", tree, tmp.Name())...); err != nil {
		return err
	}
	script := filepath.Join(work, "script")
	if err := os.WriteFile(script, []byte(corrections(kind)), 0o600); err != nil {
		return err
	}
	if err := run(ctx, "debugfs", "-w", "-f", script, tmp.Name()); err != nil {
		return err
	}
	if err := tmp.Sync(); err != nil {
		return err
	}
	if info, err := os.Lstat(path); err == nil && info.IsDir() { // anything else is replaced
		if err := os.RemoveAll(path); err != nil {
			return err
		}
	}
	return os.Rename(tmp.Name(), path)
}

// planted is what a disk has from the start: the directories that the guest
// agent's overlay needs, and below the upper one empty files for those that
// every clone writes. To make them here costs a clone nothing; there, each of
// them would be copied up from the image first. The agent removes this /etc
// where the image's is another.
var planted = []struct {
	name string
	mode fs.FileMode
}{
	{"", fs.ModeDir | 0o755}, {"work", fs.ModeDir | 0o755}, {"upper", fs.ModeDir | 0o755}, {"upper/etc", fs.ModeDir | 0o755},
	{"upper/etc/hostname", 0o644}, {"upper/etc/hosts", 0o644}, {"upper/etc/machine-id", 0o444}, {"upper/etc/resolv.conf", 0o644},
}

// plant makes what is planted below a new directory.
func plant(tree string) error {
	for _, p := range planted {
		name := filepath.Join(tree, p.name)
		var err error
		if p.mode.IsDir() {
			err = os.Mkdir(name, p.mode.Perm())
		} else {
			err = os.WriteFile(name, nil, p.mode.Perm())
		}
		if err := errors.Join(err, os.Chmod(name, p.mode.Perm())); err != nil { // whatever the umask
			return err
		}
	}
	return nil
}

// corrections are debugfs's commands for what mke2fs cannot say: what was the
// calling user's is the guest's root's, and a disk that nobody will read after
// its VM is mounted without barriers.
func corrections(kind Kind) string {
	var b strings.Builder
	for _, p := range planted {
		fmt.Fprintf(&b, "set_inode_field /%s uid 0\nset_inode_field /%[1]s gid 0\n", p.name)
	}
	if kind == Disposable {
		fmt.Fprintf(&b, "set_super_value default_mount_opts %#x\n", mountXattrs|mountACLs|mountNoBarrier)
	}
	return b.String()
}

// features are mke2fs's arguments. assume_storage_prezeroed: the inode tables
// are holes already, and the guest's kernel need not write zeros all over the
// disk in its first minutes. metadata_csum_seed: the UUID can be changed in
// each clone.
func features(size int64, kind Kind) []string {
	args := []string{"-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0", "-E", "assume_storage_prezeroed=1,root_owner=0:0"}
	if kind == Disposable {
		return append(args, "-O", "^resize_inode,^has_journal,^metadata_csum,^64bit")
	}
	journal := "size=16" // MiB
	if size < 256<<20 {
		journal = "size=4"
	}
	return append(args, "-J", journal, "-O", "^resize_inode,metadata_csum,metadata_csum_seed")
}

// run runs one of e2fsprogs' programs, which Debian keeps where a user's PATH
// does not lead.
func run(ctx context.Context, name string, args ...string) error {
	path := ""
	for _, candidate := range []string{name, "/usr/sbin/" + name, "/sbin/" + name} {
		if found, err := exec.LookPath(candidate); err == nil {
			path = found
			break
		}
	}
	if path == "" {
		return fmt.Errorf("%s is not installed; run `apt-get install e2fsprogs`", name)
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = environ.Helper()
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, bytes.TrimSpace(out))
	}
	return nil
}

// clone shares the blocks where the file system can, else copies the data
// between the holes.
func clone(dst, src *os.File, size int64) error {
	if unix.IoctlFileClone(int(dst.Fd()), int(src.Fd())) == nil {
		return nil
	}
	if err := dst.Truncate(size); err != nil {
		return err
	}
	for end := int64(0); ; {
		start, err := unix.Seek(int(src.Fd()), end, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("seek data: %w", err)
		}
		if end, err = unix.Seek(int(src.Fd()), start, unix.SEEK_HOLE); err != nil {
			return fmt.Errorf("seek hole: %w", err)
		}
		if _, err := io.Copy(io.NewOffsetWriter(dst, start), io.NewSectionReader(src, start, end-start)); err != nil {
			return err
		}
	}
}

// Offsets in the superblock (Linux, Documentation/filesystems/ext4/super.rst).
const (
	superAt    = 1024
	superBytes = 1024
	offMagic   = 0x38
	offCompat  = 0x64 // read-only compatible features
	offUUID    = 0x68
	offHash    = 0xec  // seed of directory hashes
	offSum     = 0x3fc // CRC-32C over all before it
	superMagic = 0xef53
	hasSums    = 0x400 // metadata_csum

	// Of the default mount options. The first two are mke2fs's own.
	mountXattrs    = 0x4
	mountACLs      = 0x8
	mountNoBarrier = 0x100
)

// personalise gives the clone a UUID and a directory hash seed of its own: no
// two sandboxes share an identity.
func personalise(f *os.File) error {
	super := make([]byte, superBytes)
	if _, err := f.ReadAt(super, superAt); err != nil {
		return fmt.Errorf("read superblock: %w", err)
	}
	rand.Read(super[offUUID : offUUID+16])
	super[offUUID+6] = super[offUUID+6]&0x0f | 0x40 // RFC 9562, version 4
	super[offUUID+8] = super[offUUID+8]&0x3f | 0x80
	rand.Read(super[offHash : offHash+16])
	if binary.LittleEndian.Uint32(super[offCompat:])&hasSums != 0 {
		binary.LittleEndian.PutUint32(super[offSum:], sumOf(super))
	}
	if _, err := f.WriteAt(super, superAt); err != nil {
		return fmt.Errorf("write superblock: %w", err)
	}
	return nil
}
