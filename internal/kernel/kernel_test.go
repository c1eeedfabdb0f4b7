package kernel

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/ulikunitz/xz"
)

// elfWith makes a 64-bit ELF with one PT_NOTE segment and, where modinfo is
// given, a .modinfo section.
func elfWith(note, modinfo []byte) []byte {
	le := binary.LittleEndian
	const ehdr, phdr, shdr = 64, 56, 64
	names := []byte("\x00.modinfo\x00.shstrtab\x00")
	noteAt := ehdr + phdr
	infoAt := noteAt + len(note)
	namesAt := infoAt + len(modinfo)
	shAt := namesAt + len(names)
	b := make([]byte, shAt+3*shdr)
	copy(b, "\x7fELF\x02\x01\x01")
	le.PutUint16(b[16:], 2)  // executable
	le.PutUint16(b[18:], 62) // x86-64
	le.PutUint32(b[20:], 1)
	le.PutUint64(b[32:], ehdr)
	le.PutUint64(b[40:], uint64(shAt))
	for i, v := range []uint16{ehdr, phdr, 1, shdr, 3, 2} {
		le.PutUint16(b[52+2*i:], v)
	}
	le.PutUint32(b[ehdr:], 4) // PT_NOTE
	le.PutUint64(b[ehdr+8:], uint64(noteAt))
	le.PutUint64(b[ehdr+32:], uint64(len(note)))
	copy(b[noteAt:], note)
	copy(b[infoAt:], modinfo)
	copy(b[namesAt:], names)
	section := func(i int, name, kind uint32, at, size int) {
		s := b[shAt+i*shdr:]
		le.PutUint32(s, name)
		le.PutUint32(s[4:], kind)
		le.PutUint64(s[24:], uint64(at))
		le.PutUint64(s[32:], uint64(size))
	}
	section(1, 1, 1, infoAt, len(modinfo))
	section(2, 10, 3, namesAt, len(names))
	return b
}

func pvhNote() []byte {
	b := binary.LittleEndian.AppendUint32(nil, 4)
	b = binary.LittleEndian.AppendUint32(b, 4)
	b = binary.LittleEndian.AppendUint32(b, notePhys32Entry)
	return append(b, "Xen\x00\x00\x00\x00\x01"...)
}

func module(depends string) []byte {
	return elfWith(nil, []byte("license=GPL\x00depends="+depends+"\x00name=x\x00"))
}

// bzImage puts a payload behind a boot sector and two setup sectors.
func bzImage(payload []byte) []byte {
	const payloadOffset = 100
	b := make([]byte, 3*sectorBytes+payloadOffset)
	b[offSetupSects] = 2
	copy(b[offHeaderMagic:], "HdrS")
	binary.LittleEndian.PutUint32(b[offPayloadOffset:], payloadOffset)
	binary.LittleEndian.PutUint32(b[offPayloadLength:], uint32(len(payload)))
	return append(append(b, payload...), "trailing signature"...)
}

var compressors = map[string]func(t *testing.T, data []byte) []byte{
	"lz4": func(t *testing.T, data []byte) []byte {
		block := make([]byte, lz4.CompressBlockBound(len(data)))
		n, err := lz4.CompressBlock(data, block, nil)
		must(t, err)
		out := binary.LittleEndian.AppendUint32([]byte(lz4Legacy), uint32(n))
		return append(out, block[:n]...)
	},
	"gzip": func(t *testing.T, data []byte) []byte {
		var b bytes.Buffer
		w := gzip.NewWriter(&b)
		w.Write(data)
		must(t, w.Close())
		return b.Bytes()
	},
	"xz": func(t *testing.T, data []byte) []byte {
		var b bytes.Buffer
		w, err := xz.NewWriter(&b)
		must(t, err)
		w.Write(data)
		must(t, w.Close())
		return b.Bytes()
	},
	"zstd": func(t *testing.T, data []byte) []byte {
		w, err := zstd.NewWriter(nil)
		must(t, err)
		return w.EncodeAll(data, nil)
	},
	"none": func(_ *testing.T, data []byte) []byte { return data },
}

// withSize appends the size, as the kernel's build does.
func withSize(payload, data []byte) []byte {
	return binary.LittleEndian.AppendUint32(payload, uint32(len(data)))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func kernelELF() []byte { return append(elfWith(pvhNote(), nil), make([]byte, 100_000)...) }

func TestExtractELF(t *testing.T) {
	want := kernelELF()
	for name, compress := range compressors {
		payload := compress(t, want)
		if name != "gzip" && name != "none" {
			payload = withSize(payload, want)
		}
		got, err := extractELF(bzImage(payload))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes, %v; want %d", name, len(got), err, len(want))
		}
	}
}

func TestExtractELFRefuses(t *testing.T) {
	good := bzImage(withSize(compressors["lz4"](t, kernelELF()), kernelELF()))
	edit := func(at int, v uint32) []byte {
		b := bytes.Clone(good)
		binary.LittleEndian.PutUint32(b[at:], v)
		return b
	}
	payload := 3*sectorBytes + 100
	for want, bz := range map[string][]byte{
		"not a bzImage":    []byte("short"),
		"no HdrS":          edit(offHeaderMagic, 0),
		"outside the file": edit(offPayloadLength, 1<<31),
		"payload at":       edit(offPayloadOffset, 1<<31),
		"lz4 block of":     edit(payload+4, 1<<30),
		"lz4 block: ":      edit(payload+8, 0xffffffff),
		"no PVH entry":     bzImage(elfWith([]byte("a note of 12"), nil)),
		"read kernel ELF":  bzImage([]byte("no ELF at all")),
	} {
		if _, err := extractELF(bz); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

func TestDecompressIsBounded(t *testing.T) {
	for name, compress := range compressors {
		if name == "none" {
			continue
		}
		if _, err := decompress(compress(t, make([]byte, 1<<20)), 1<<20-1); err == nil {
			t.Errorf("%s: more than the limit came out", name)
		}
	}
}

func TestLoadOrder(t *testing.T) {
	graph := map[string][]string{
		"a": {"c", "b"}, "b": {"c"}, "c": nil,
		"loop1": {"loop2"}, "loop2": {"loop1"},
		"needy": {"absent"},
	}
	has := func(n string) bool { _, ok := graph[n]; return ok }
	depends := func(n string) ([]string, error) { return graph[n], nil }
	builtin := map[string]bool{"inside": true}

	got, err := loadOrder([]string{"inside", "a", "b"}, has, builtin, depends)
	if diff := cmp.Diff([]string{"c", "b", "a"}, got); diff != "" || err != nil {
		t.Errorf("%v\n%s", err, diff)
	}
	for _, bad := range []string{"absent", "loop1", "needy"} {
		if _, err := loadOrder([]string{bad}, has, builtin, depends); err == nil {
			t.Errorf("%s was accepted", bad)
		}
	}
}

// deb makes a small kernel package, with the modules given by file name.
func deb(t *testing.T, modules map[string][]byte) string {
	t.Helper()
	if _, err := exec.LookPath("dpkg-deb"); err != nil {
		t.Skip("dpkg-deb is not here: not a Debian machine")
	}
	root := t.TempDir()
	must(t, os.Chmod(root, 0o755))
	write := func(name string, data []byte) {
		must(t, os.MkdirAll(filepath.Dir(filepath.Join(root, name)), 0o755))
		must(t, os.WriteFile(filepath.Join(root, name), data, 0o644))
	}
	write("DEBIAN/control", []byte("Package: linux-image-9.9-test\nVersion: 9.9-1\nArchitecture: amd64\nMaintainer: x <x@example.org>\nDescription: test\n"))
	write("boot/vmlinuz-9.9-test", bzImage(withSize(compressors["lz4"](t, kernelELF()), kernelELF())))
	write("lib/modules/9.9-test/modules.builtin", []byte("kernel/fs/fuse/fuse.ko\n"))
	for name, data := range modules {
		write("lib/modules/9.9-test/kernel/"+name, data)
	}
	path := filepath.Join(t.TempDir(), "kernel.deb")
	out, err := exec.Command("dpkg-deb", "-Zgzip", "--root-owner-group", "-b", root, path).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return path
}

func testModules(t *testing.T) map[string][]byte {
	return map[string][]byte{
		"drivers/virtio/virtio.ko":             module(""),
		"drivers/virtio/virtio_mmio.ko":        module("virtio"),
		"drivers/char/virtio_console.ko.xz":    compressors["xz"](t, module("virtio")),
		"drivers/block/virtio_blk.ko.zst":      compressors["zstd"](t, module("virtio")),
		"drivers/net/virtio_net.ko":            module("net_failover,virtio"),
		"net/net-failover.ko":                  module(""),
		"drivers/char/hw_random/virtio-rng.ko": module("virtio"),
		"fs/overlayfs/overlay.ko":              module(""),
		"sound/unwanted.ko":                    []byte("never looked into"),
	}
}

func TestImport(t *testing.T) {
	store := filepath.Join(t.TempDir(), "kernels")
	if _, err := Latest(store); err == nil || !strings.Contains(err.Error(), "creel kernel fetch") {
		t.Errorf("Latest of no store: %v", err)
	}
	must(t, os.MkdirAll(filepath.Join(store, stagingPrefix+"killed"), 0o700))
	for range 2 { // the second replaces the first
		if _, err := Import(t.Context(), deb(t, testModules(t)), store); err != nil {
			t.Fatal(err)
		}
	}
	entries, err := os.ReadDir(store)
	must(t, err)
	if len(entries) != 1 {
		t.Errorf("the store holds %v, want one kernel", entries)
	}
	k, err := Latest(store)
	must(t, err)
	if k.Package != "linux-image-9.9-test" || k.Version != "9.9-1" || k.Release != "9.9-test" {
		t.Errorf("got %s %s %s", k.Package, k.Version, k.Release)
	}
	var names []string
	for _, m := range k.Modules {
		names = append(names, m.Name)
	}
	want := []string{
		"modules/virtio.ko", "modules/virtio_mmio.ko", "modules/virtio_console.ko", "modules/virtio_blk.ko",
		"modules/net_failover.ko", "modules/virtio_net.ko", "modules/virtio_rng.ko", "modules/overlay.ko",
	}
	if diff := cmp.Diff(want, names); diff != "" {
		t.Error(diff)
	}
	image, err := k.ReadVMLinux()
	if err != nil || !bytes.Equal(image, kernelELF()) {
		t.Errorf("vmlinux differs from what was packed: %v", err)
	}
	console, err := os.ReadFile(filepath.Join(k.Dir, "modules/virtio_console.ko"))
	if err != nil || !bytes.Equal(console, module("virtio")) {
		t.Errorf("the module is not stored uncompressed: %v", err)
	}
}

func TestImportRefusesAndLeavesNothing(t *testing.T) {
	lacking := testModules(t)
	delete(lacking, "fs/overlayfs/overlay.ko")
	notELF := testModules(t)
	notELF["fs/overlayfs/overlay.ko"] = []byte("no ELF")
	garbage := filepath.Join(t.TempDir(), "garbage.deb")
	must(t, os.WriteFile(garbage, []byte("!<arch>\ngarbage"), 0o600))
	for want, path := range map[string]string{
		"module overlay is neither there": deb(t, lacking),
		"module overlay: read ELF":        deb(t, notELF),
		"read kernel package":             garbage,
	} {
		store := t.TempDir()
		if _, err := Import(t.Context(), path, store); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
		if entries, _ := os.ReadDir(store); len(entries) != 0 {
			t.Errorf("%s: left %v", want, entries)
		}
	}
}

func TestTamperedFilesAreRefused(t *testing.T) {
	k, err := Import(t.Context(), deb(t, testModules(t)), t.TempDir())
	must(t, err)
	flip := func(name string) {
		path := filepath.Join(k.Dir, name)
		data, err := os.ReadFile(path)
		must(t, err)
		data[len(data)/2] ^= 1
		must(t, os.WriteFile(path, data, 0o600))
	}
	flip(vmlinuxName)
	if _, err := k.ReadVMLinux(); err == nil || !strings.Contains(err.Error(), "vmlinux does not match") {
		t.Errorf("got %v", err)
	}
	flip("modules/overlay.ko")
	if err := k.WriteInitramfs(&bytes.Buffer{}, nil); err == nil || !strings.Contains(err.Error(), "overlay.ko does not match") {
		t.Errorf("got %v", err)
	}
	must(t, os.Remove(filepath.Join(k.Dir, "modules/overlay.ko")))
	if err := k.WriteInitramfs(&bytes.Buffer{}, nil); err == nil || !strings.Contains(err.Error(), "is missing") {
		t.Errorf("got %v", err)
	}
}

// readCPIO lists a newc archive: names with mode and device, and contents.
func readCPIO(t *testing.T, b []byte) (names []string, contents map[string]string) {
	t.Helper()
	contents = map[string]string{}
	for at := 0; ; {
		field := func(i int) int {
			n, err := strconv.ParseUint(string(b[at+6+8*i:at+14+8*i]), 16, 32)
			must(t, err)
			return int(n)
		}
		if string(b[at:at+6]) != "070701" {
			t.Fatalf("no entry at %d", at)
		}
		nameSize, size := field(11), field(6)
		name := string(b[at+110 : at+110+nameSize-1])
		if name == "TRAILER!!!" {
			return names, contents
		}
		names = append(names, fmt.Sprintf("%06o %d:%d %s", field(1), field(9), field(10), name))
		data := (at + 110 + nameSize + 3) &^ 3
		contents[name] = string(b[data : data+size])
		at = (data + size + 3) &^ 3
	}
}

func TestInitramfs(t *testing.T) {
	k, err := Import(t.Context(), deb(t, testModules(t)), t.TempDir())
	must(t, err)
	var first, second bytes.Buffer
	must(t, k.WriteInitramfs(&first, []byte("agent")))
	must(t, k.WriteInitramfs(&second, []byte("agent")))
	if !bytes.Equal(first.Bytes(), second.Bytes()) {
		t.Error("the same parts gave other bytes")
	}
	names, contents := readCPIO(t, first.Bytes())
	want := []string{"040755 0:0 dev", "020600 5:1 dev/console", "100755 0:0 init", "040755 0:0 modules", "100644 0:0 modules/virtio.ko"}
	if diff := cmp.Diff(want, names[:len(want)]); diff != "" {
		t.Error(diff)
	}
	if contents["init"] != "agent" || contents["modules/virtio_console.ko"] != string(module("virtio")) {
		t.Error("contents differ from what was put in")
	}
	const order = "virtio.ko\nvirtio_mmio.ko\nvirtio_console.ko\nvirtio_blk.ko\nnet_failover.ko\nvirtio_net.ko\nvirtio_rng.ko\noverlay.ko\n"
	if diff := cmp.Diff(order, contents["modules/order"]); diff != "" {
		t.Error(diff)
	}
}

// TestRealPackage unpacks a kernel package of Debian's, where one is named.
func TestRealPackage(t *testing.T) {
	path := os.Getenv("CREEL_TEST_KERNEL_DEB")
	if path == "" {
		t.Skip("CREEL_TEST_KERNEL_DEB names no kernel package")
	}
	k, err := Import(t.Context(), path, t.TempDir())
	must(t, err)
	if !slices.ContainsFunc(k.Modules, func(f File) bool { return f.Name == "modules/virtio_console.ko" }) {
		t.Errorf("modules are %v", k.Modules)
	}
	var b bytes.Buffer
	must(t, k.WriteInitramfs(&b, nil))
	t.Logf("%s %s: vmlinux %d bytes, initramfs %d bytes, %d modules", k.Package, k.Version, k.VMLinux.SizeBytes, b.Len(), len(k.Modules))
}
