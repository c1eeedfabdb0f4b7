package kernel

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func bannerELF() []byte {
	return append(kernelELF(), "\x00Linux version 9.9_test (me@here) (gcc) #1\n\x00"...)
}

// moduleOf is a module of one release.
func moduleOf(release, depends string) []byte {
	return elfWith(nil, []byte("license=GPL\x00depends="+depends+"\x00vermagic="+release+" SMP mod_unload \x00"))
}

// modulesIn lays modules out as `make modules_install` does.
func modulesIn(t *testing.T, files map[string][]byte) string {
	t.Helper()
	dir := t.TempDir()
	for name, data := range files {
		path := filepath.Join(dir, "lib/modules/9.9_test", name)
		must(t, os.MkdirAll(filepath.Dir(path), 0o755))
		must(t, os.WriteFile(path, data, 0o644))
	}
	must(t, os.MkdirAll(filepath.Join(dir, "lib/modules/9.9_test"), 0o755))
	must(t, os.Symlink("/", filepath.Join(dir, "lib/modules/9.9_test/source")))
	return dir
}

func fileWith(t *testing.T, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image")
	must(t, os.WriteFile(path, data, 0o600))
	return path
}

func TestImportImage(t *testing.T) {
	modules := modulesIn(t, map[string][]byte{
		"modules.builtin":                          []byte("kernel/fs/fuse/fuse.ko\nkernel/drivers/virtio/virtio_mmio.ko\nkernel/fs/overlayfs/overlay.ko\n"),
		"kernel/drivers/virtio/virtio.ko":          moduleOf("9.9_test", ""),
		"kernel/drivers/char/virtio_console.ko.xz": compressors["xz"](t, moduleOf("9.9_test", "virtio")),
		"kernel/drivers/block/virtio_blk.ko":       moduleOf("9.9_test", "virtio"),
		"kernel/drivers/net/virtio_net.ko":         moduleOf("9.9_test", "virtio"),
		"kernel/drivers/hw/virtio-rng.ko":          moduleOf("9.9_test", "virtio"),
		"kernel/sound/unwanted.ko":                 []byte("never looked into"),
	})
	for name, c := range map[string]struct {
		image   []byte
		modules string
		want    []string
	}{
		"bzImage, modules": {bzImage(withSize(compressors["lz4"](t, bannerELF()), bannerELF())), modules,
			[]string{"modules/virtio.ko", "modules/virtio_console.ko", "modules/virtio_blk.ko", "modules/virtio_net.ko", "modules/virtio_rng.ko"}},
		"vmlinux, all built in": {bannerELF(), "", nil},
		"vmlinux.gz":            {compressors["gzip"](t, bannerELF()), "", nil},
	} {
		path := fileWith(t, c.image)
		if deb, err := IsPackage(path); deb || err != nil {
			t.Errorf("%s: taken for a package: %v", name, err)
		}
		store := filepath.Join(t.TempDir(), "kernels")
		if _, err := ImportImage(t.Context(), path, c.modules, store); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		k, err := Latest(store)
		must(t, err)
		if k.Release != "9.9_test" || k.Package != imagePackage || !strings.HasPrefix(k.Version, "9.9+test+") || !versionPattern.MatchString(k.Version) {
			t.Errorf("%s: %s %s %s", name, k.Package, k.Version, k.Release)
		}
		var names []string
		for _, m := range k.Modules {
			names = append(names, m.Name)
		}
		if diff := cmp.Diff(c.want, names); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
		if image, err := k.ReadVMLinux(); err != nil || !bytes.Equal(image, bannerELF()) {
			t.Errorf("%s: vmlinux differs: %v", name, err)
		}
		must(t, k.WriteInitramfs(&bytes.Buffer{}, nil))
	}
}

func TestImportImageRefusesAndLeavesNothing(t *testing.T) {
	good := fileWith(t, bannerELF())
	for want, c := range map[string][2]string{
		"neither a Debian package":         {fileWith(t, []byte("not a kernel")), ""},
		"names no Linux version":           {fileWith(t, kernelELF()), ""},
		"no PVH entry":                     {fileWith(t, append(elfWith([]byte("a note of 12"), nil), "Linux version 9.9 (x)"...)), ""},
		"no such file":                     {good, "/does/not/exist"},
		"virtio_mmio is neither there nor": {good, modulesIn(t, nil)},
		`it is of kernel "8.8"`:            {good, modulesIn(t, map[string][]byte{"kernel/virtio_mmio.ko": moduleOf("8.8", "")})},
		"is there twice":                   {good, modulesIn(t, map[string][]byte{"a/virtio_mmio.ko": moduleOf("9.9_test", ""), "b/virtio-mmio.ko": moduleOf("9.9_test", "")})},
	} {
		store := t.TempDir()
		if _, err := ImportImage(t.Context(), c[0], c[1], store); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
		if entries, _ := os.ReadDir(store); len(entries) != 0 {
			t.Errorf("%s: left %v", want, entries)
		}
	}
}
