package integration

import (
	"archive/tar"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"creel/internal/image/imagetest"
	"creel/test/rig"
)

// A file of each kind, with what is easily lost on the way.
func fidelity() []imagetest.File {
	setcap := imagetest.Reg("t/capable", "x", 0o755)
	// cap_net_raw=ep, as the kernel stores it: version 2, effective.
	setcap.PAXRecords = map[string]string{
		"SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
		"SCHILY.xattr.user.note":           "kept",
	}
	owned := imagetest.Reg("t/owned", "12345", 0o640)
	owned.Uid, owned.Gid = 4242, 70000
	sticky := imagetest.Dir("t/sticky/")
	sticky.Mode = 0o1777
	return []imagetest.File{
		imagetest.Dir("t/"), owned, sticky, setcap,
		imagetest.Reg("t/setuid", "x", 0o4755),
		imagetest.Link("t/hard", "t/owned"),
		imagetest.Symlink("t/soft", "../etc/passwd"),
		{Header: tar.Header{Typeflag: tar.TypeChar, Name: "t/char", Mode: 0o666, Devmajor: 1, Devminor: 3}},
		{Header: tar.Header{Typeflag: tar.TypeFifo, Name: "t/fifo", Mode: 0o600}},
		imagetest.Reg("t/"+strings.Repeat("long", 50), "x", 0o600),
		imagetest.Reg("t/gone", "x", 0o600),
		imagetest.Dir("t/opaque/"), imagetest.Reg("t/opaque/below", "x", 0o600),
	}
}

// upper hides some of it.
func upper() []imagetest.File {
	return []imagetest.File{
		imagetest.Dir("t/"), imagetest.Whiteout("t/", "gone"),
		imagetest.Dir("t/opaque/"), imagetest.Opaque("t/opaque/"), imagetest.Reg("t/opaque/above", "x", 0o600),
	}
}

// listProgram prints every file below /t: kind, mode, owner, links, size, time,
// name, target, device, and its attributes.
const listProgram = `
import os, stat
def show(path):
    s = os.lstat(path)
    out = [oct(s.st_mode), "%d:%d" % (s.st_uid, s.st_gid), str(int(s.st_mtime))]
    if stat.S_ISREG(s.st_mode): out += [str(s.st_nlink), open(path).read()]
    if stat.S_ISLNK(s.st_mode): out.append(os.readlink(path))
    if stat.S_ISCHR(s.st_mode): out.append("%d,%d" % (os.major(s.st_rdev), os.minor(s.st_rdev)))
    if not stat.S_ISLNK(s.st_mode):
        out += ["%s=%s" % (n, os.getxattr(path, n).hex()) for n in sorted(os.listxattr(path))]
    print(path, *out)
for dir, dirs, files in os.walk("/t"):
    for name in [""] + files + [d for d in dirs if os.path.islink(os.path.join(dir, d))]: show(os.path.join(dir, name).rstrip("/"))`

// wantListing is what listProgram has to print, from the tar's own headers.
func wantListing() []string {
	kinds := map[byte]int64{tar.TypeReg: 0o100000, tar.TypeDir: 0o040000, tar.TypeSymlink: 0o120000, tar.TypeChar: 0o020000, tar.TypeFifo: 0o010000}
	all := append(fidelity(), imagetest.Reg("t/opaque/above", "x", 0o600))
	links := map[string]int{}
	byName := map[string]imagetest.File{}
	for _, f := range all {
		byName[f.Name] = f
		if f.Typeflag == tar.TypeLink {
			links[f.Linkname]++
		}
	}
	var out []string
	for _, f := range all {
		name, first := f.Name, f.Name
		if name == "t/gone" || name == "t/opaque/below" {
			continue
		}
		if f.Typeflag == tar.TypeLink {
			first = f.Linkname
			f = byName[first]
		}
		line := fmt.Sprintf("/%s 0o%o %d:%d %d", strings.TrimSuffix(name, "/"), kinds[f.Typeflag]|f.Mode, f.Uid, f.Gid, imagetest.Epoch.Unix())
		switch f.Typeflag {
		case tar.TypeReg:
			line += fmt.Sprintf(" %d %s", 1+links[first], f.Body)
		case tar.TypeSymlink:
			line += " " + f.Linkname
		case tar.TypeChar:
			line += fmt.Sprintf(" %d,%d", f.Devmajor, f.Devminor)
		}
		var attributes []string
		for key, value := range f.PAXRecords {
			attributes = append(attributes, fmt.Sprintf(" %s=%x", strings.TrimPrefix(key, "SCHILY.xattr."), value))
		}
		slices.Sort(attributes)
		out = append(out, line+strings.Join(attributes, ""))
	}
	slices.Sort(out)
	return out
}

// What a VM sees is what the archive says, whatever kind of archive it is; and
// the image's configuration counts.
func TestImageArrivesWhole(t *testing.T) {
	r := machines(t)
	lowest := debianLayer(t)
	img := imagetest.Image{
		Name: "whole:v1",
		Config: v1.Config{
			Env: []string{"FROM=image", "BOTH=image"}, WorkingDir: "/t", User: "nobody",
			Entrypoint: []string{"/bin/sh", "-c"}, Cmd: []string{"pwd; id -un; echo $FROM $BOTH"}, StopSignal: "SIGUSR1",
		},
		Layers: [][]byte{lowest, imagetest.MakeLayer(t, fidelity()...), imagetest.MakeLayer(t, upper()...)},
	}
	var id string
	t.Run("docker save", func(t *testing.T) {
		got := r.RunIn(t, bytes.NewReader(imagetest.DockerArchive(t, img)), "image", "load")
		if id = loadedID(t, got); id == "" {
			return
		}
		checkWhole(t, r, "whole:v1")
	})
	t.Run("OCI layout", func(t *testing.T) {
		dir := t.TempDir()
		for name, data := range imagetest.Layout(t, img) {
			path := filepath.Join(dir, name)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, data, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if other := loadedID(t, r.Run(t, "image", "load", "-i", dir)); other != id {
			t.Errorf("the same image as a layout is %s, as an archive %s", other, id)
		}
		checkWhole(t, r, id)
	})
}

func loadedID(t *testing.T, got rig.Result) string {
	t.Helper()
	fields := strings.Fields(got.Out)
	if got.Code != 0 || len(fields) < 2 || fields[0] != "loaded" {
		t.Fatalf("load: %+v", got)
	}
	return fields[len(fields)-1]
}

func checkWhole(t *testing.T, r *rig.Rig, ref string) {
	t.Helper()
	got := r.Run(t, "run", "-q", "-u", "root", "--entrypoint", "python3", ref, "-c", listProgram)
	listing := lines(got.Out)
	slices.Sort(listing)
	if diff := cmp.Diff(wantListing(), listing); diff != "" || got.Code != 0 {
		t.Errorf("exit code %d, %s\n/t (-archive +VM):\n%s", got.Code, got.Err, diff)
	}
	if got := r.Run(t, "run", "-q", "-e", "BOTH=flag", ref); got.Out != "/t\nnobody\nimage flag\n" {
		t.Errorf("by its own configuration: %+v", got)
	}
}

// An archive that is cut short leaves the store as it was.
func TestDamagedArchiveIsRefused(t *testing.T) {
	r := machines(t)
	before := r.Snapshot(t)
	archive := imagetest.Archive(t, imagetest.MakeLayer(t, fidelity()...))
	for name, damage := range map[string]func([]byte) []byte{
		"cut short":  func(b []byte) []byte { return b[:len(b)/2] },
		"no archive": func(b []byte) []byte { return bytes.Repeat([]byte("no tar"), 1000) },
		"wrong digest": func(b []byte) []byte {
			return bytes.Replace(b, []byte("12345"), []byte("54321"), 1)
		},
	} {
		t.Run(name, func(t *testing.T) {
			got := r.RunIn(t, bytes.NewReader(damage(bytes.Clone(archive))), "image", "load")
			if got.Code != 1 || got.Out != "" || !strings.HasPrefix(got.Err, "creel: ") {
				t.Errorf("got %+v", got)
			}
			if diff := cmp.Diff(before, r.Snapshot(t)); diff != "" {
				t.Errorf("the store has changed (-before +after):\n%s", diff)
			}
		})
	}
}
