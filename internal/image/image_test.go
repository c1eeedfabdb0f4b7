package image

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"creel/internal/image/blobs"
	"creel/internal/image/imagetest"
)

var ctx = context.Background()

func open(t testing.TB) *Store {
	t.Helper()
	s, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// snapshot is every file of a store with its content's digest. Lock files,
// which stay, are left out.
func snapshot(t testing.TB, s *Store) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(s.dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(s.dir, p)
		switch {
		case d.IsDir():
			files[name+"/"] = ""
		case filepath.Ext(name) != ".lock" && name != "lock":
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			files[name] = fmt.Sprintf("%x", sha256.Sum256(b))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func same(t testing.TB, want, got map[string]string) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the store differs (-before +after):\n%s", diff)
	}
}

func base(t testing.TB) []byte {
	return imagetest.MakeLayer(t, imagetest.Dir("bin/"), imagetest.Reg("bin/sh", "#!", 0o755))
}

func top(t testing.TB) []byte {
	return imagetest.MakeLayer(t, imagetest.Reg("etc/x", "y", 0o644), imagetest.Whiteout("bin/", "sh"))
}

// content reads a file out of an image with debugfs, for want of a mount.
func content(t testing.TB, rootfs, name string) string {
	t.Helper()
	out, err := exec.Command("debugfs", "-R", "cat "+name, rootfs).Output()
	if errors.Is(err, exec.ErrNotFound) {
		t.Skip("debugfs (e2fsprogs) is not installed")
	}
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

func TestLoadForms(t *testing.T) {
	config := v1.Config{Entrypoint: []string{"/bin/sh"}, Cmd: []string{"-c", "true"}, Env: []string{"A=b"}, User: "1:2",
		WorkingDir: "/w", StopSignal: "SIGINT", Labels: map[string]string{"l": "v"},
		ExposedPorts: map[string]struct{}{"80/tcp": {}, "53/udp": {}}, Volumes: map[string]struct{}{"/data": {}}}
	img := imagetest.Image{Name: "team/app:v1", Config: config, Layers: [][]byte{base(t), top(t)}}
	packed := imagetest.Image{Name: "team/app:v1", Config: config, Layers: [][]byte{imagetest.PackGzip(t, base(t)), imagetest.PackZstd(t, top(t))}}
	want := Image{Names: []string{"team/app:v1"}, Created: imagetest.Epoch, Platform: "linux/amd64",
		Layers: []string{blobs.Digest(base(t)), blobs.Digest(top(t))},
		Config: Config{Entrypoint: []string{"/bin/sh"}, Cmd: []string{"-c", "true"}, Env: []string{"A=b"}, User: "1:2",
			WorkingDir: "/w", StopSignal: "SIGINT", Labels: map[string]string{"l": "v"},
			ExposedPorts: []string{"53/udp", "80/tcp"}, Volumes: []string{"/data"}}}
	both := imagetest.Layout(t, img)
	both["index.json"] = bytes.ReplaceAll(both["index.json"], []byte("team/app:v1"), []byte("v1")) // only a tag
	both["manifest.json"] = []byte(fmt.Sprintf(`[{"Config":%q,"RepoTags":["team/app:v1"],"Layers":[]}]`, blobName(blobs.Digest(imagetest.Config(t, img)))))
	tests := map[string][]byte{
		"docker archive":                  imagetest.DockerArchive(t, img),
		"docker archive, packed layers":   imagetest.DockerArchive(t, packed),
		"docker archive, packed":          imagetest.PackGzip(t, imagetest.DockerArchive(t, img)),
		"layout":                          imagetest.Tar(t, imagetest.Layout(t, img)),
		"layout, packed layers":           imagetest.Tar(t, imagetest.Layout(t, packed)),
		"layout, packed":                  imagetest.PackZstd(t, imagetest.Tar(t, imagetest.Layout(t, packed))),
		"docker archive that is a layout": imagetest.Tar(t, both),
	}
	var digests []string
	for name, archive := range tests {
		t.Run(name, func(t *testing.T) {
			s := open(t)
			got, err := s.Load(ctx, bytes.NewReader(archive))
			if err != nil {
				t.Fatal(err)
			}
			want := want
			want.ID = blobs.Digest(imagetest.Config(t, img))
			if diff := cmp.Diff([]Image{want}, got, cmpopts.IgnoreFields(Image{}, "SizeBytes", "Digest"), cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("image (-want +got):\n%s", diff)
			}
			listed, err := s.List(ctx)
			if diff := cmp.Diff(got, listed); diff != "" || err != nil {
				t.Errorf("listed (-loaded +listed): %v\n%s", err, diff)
			}
			root, err := s.RootFS(ctx, got[0])
			if err != nil {
				t.Fatal(err)
			}
			if root.SizeBytes != got[0].SizeBytes || root.SizeBytes == 0 {
				t.Errorf("size of root file system: %d, of image: %d", root.SizeBytes, got[0].SizeBytes)
			}
			b, err := os.ReadFile(root.Path)
			if err != nil || blobs.Digest(b) != root.Digest {
				t.Errorf("root file system has digest %s, said to be %s (%v)", blobs.Digest(b), root.Digest, err)
			}
			if c := content(t, root.Path, "/etc/x"); c != "y" {
				t.Errorf("/etc/x holds %q", c)
			}
			digests = append(digests, root.Digest)
			if left, _ := os.ReadDir(filepath.Join(s.dir, "tmp")); len(left) != 0 {
				t.Errorf("left in tmp: %v", left)
			}
		})
	}
	if len(slices.Compact(digests)) != 1 {
		t.Errorf("root file systems differ between forms of one image: %v", digests)
	}
}

func TestLoadLayoutDirectory(t *testing.T) {
	dir := t.TempDir()
	for name, b := range imagetest.Layout(t, imagetest.Image{Name: "x:1", Layers: [][]byte{base(t)}}) {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, b, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	s := open(t)
	got, err := s.LoadPath(ctx, dir)
	if err != nil || len(got) != 1 || !slices.Equal(got[0].Names, []string{"x:1"}) {
		t.Fatalf("got %v, %v", got, err)
	}
	// A link out of the layout is not followed.
	secret := filepath.Join(t.TempDir(), "index.json")
	if err := errors.Join(os.WriteFile(secret, []byte("{}"), 0o600), os.Remove(filepath.Join(dir, "index.json")), os.Symlink(secret, filepath.Join(dir, "index.json"))); err != nil {
		t.Fatal(err)
	}
	if _, err := s.LoadPath(ctx, dir); err == nil || !strings.Contains(err.Error(), "escapes") {
		t.Errorf("got %v, want the link to be refused", err)
	}
}

// TestPlatforms takes the image for this machine out of an index of several.
func TestPlatforms(t *testing.T) {
	foreign := imagetest.Layout(t, imagetest.Image{Architecture: "s390x", Layers: [][]byte{base(t)}})
	native := imagetest.Layout(t, imagetest.Image{Layers: [][]byte{base(t)}})
	describe := func(layout map[string][]byte, arch string) string {
		m, err := v1.ParseIndexManifest(bytes.NewReader(layout["index.json"]))
		if err != nil {
			t.Fatal(err)
		}
		d := m.Manifests[0]
		return fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":%d,"platform":{"os":"linux","architecture":%q}}`, d.MediaType, d.Digest, d.Size, arch)
	}
	files := map[string][]byte{}
	for _, l := range []map[string][]byte{foreign, native} {
		for name, b := range l {
			files[name] = b
		}
	}
	inner := []byte(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[` +
		describe(foreign, "s390x") + "," + describe(native, "amd64") + `]}`)
	files[blobName(blobs.Digest(inner))] = inner
	files["index.json"] = []byte(fmt.Sprintf(`{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.index.v1+json","digest":%q,"size":%d,"annotations":{"io.containerd.image.name":"multi:1"}}]}`, blobs.Digest(inner), len(inner)))
	got, err := open(t).Load(ctx, bytes.NewReader(imagetest.Tar(t, files)))
	if err != nil || len(got) != 1 || got[0].Platform != "linux/amd64" || !slices.Equal(got[0].Names, []string{"multi:1"}) {
		t.Errorf("got %+v, %v", got, err)
	}
}

// TestDamagedArchives: each is refused, and the store with an image in it stays
// as it was.
func TestDamagedArchives(t *testing.T) {
	img := imagetest.Image{Name: "app:1", Layers: [][]byte{base(t), imagetest.PackGzip(t, top(t))}}
	edit := func(f func(files map[string][]byte)) []byte {
		files := imagetest.Layout(t, img)
		f(files)
		return imagetest.Tar(t, files)
	}
	layer := blobName(blobs.Digest(img.Layers[0]))
	archive := imagetest.DockerArchive(t, img)
	lying := imagetest.Layout(t, img)
	config := imagetest.Config(t, img)
	lie := bytes.ReplaceAll(config, []byte(strings.TrimPrefix(blobs.Digest(base(t)), "sha256:")), []byte(strings.Repeat("ab", 32)))
	tests := map[string]struct {
		archive []byte
		want    string
	}{
		"truncated":          {archive[:len(archive)/2], "EOF"},
		"truncated gzip":     {imagetest.PackGzip(t, archive)[:200], "EOF"},
		"bad sum of gzip":    {func() []byte { b := imagetest.PackGzip(t, archive); b[len(b)-6] ^= 1; return b }(), "checksum"},
		"empty":              {nil, "neither"},
		"a root file system": {base(t), "creel image import"},
		"wrong digest":       {edit(func(f map[string][]byte) { f[layer] = append(bytes.Clone(f[layer]), 0) }), "is damaged"},
		"missing layer":      {edit(func(f map[string][]byte) { delete(f, layer) }), "is missing"},
		"index is no JSON":   {edit(func(f map[string][]byte) { f["index.json"] = []byte("{") }), "index.json"},
		"no image":           {edit(func(f map[string][]byte) { f["index.json"] = []byte(`{"schemaVersion":2}`) }), "no image"},
		"hostile digest": {edit(func(f map[string][]byte) {
			f["index.json"] = []byte(`{"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:../../../../etc/passwd"}]}`)
		}), "non-hex"},
		"hostile name": {imagetest.DockerArchive(t, imagetest.Image{Name: "../../x:1", Layers: img.Layers}), "image name"},
		"layer not in config": {edit(func(f map[string][]byte) {
			clear(f)
			for k, v := range lying {
				f[k] = v
			}
			relabel(t, f, config, lie)
		}), "the image's configuration says"},
		"layers link in a ring": {imagetest.MakeLayer(t, imagetest.Symlink("manifest.json", "other"), imagetest.Symlink("other", "manifest.json")), "neither"},
		"escape in a layer":     {imagetest.Archive(t, imagetest.MakeLayer(t, imagetest.Reg("../x", "", 0))), "leaves the root"},
	}
	s := open(t)
	if _, err := s.Load(ctx, bytes.NewReader(imagetest.Archive(t, base(t)))); err != nil {
		t.Fatal(err)
	}
	before := snapshot(t, s)
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := s.Load(ctx, bytes.NewReader(tt.archive))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got error %v, want one with %q", err, tt.want)
			}
			same(t, before, snapshot(t, s))
		})
	}
}

// relabel puts another configuration into a layout, with digests that fit.
func relabel(t *testing.T, files map[string][]byte, config, other []byte) {
	t.Helper()
	x, err := v1.ParseIndexManifest(bytes.NewReader(files["index.json"]))
	if err != nil {
		t.Fatal(err)
	}
	old := x.Manifests[0].Digest.String()
	m := bytes.ReplaceAll(files[blobName(old)], []byte(blobs.Digest(config)), []byte(blobs.Digest(other)))
	files[blobName(blobs.Digest(other))], files[blobName(blobs.Digest(m))] = other, m
	files["index.json"] = bytes.ReplaceAll(files["index.json"], []byte(old), []byte(blobs.Digest(m)))
}

// TestFullDisk fills a small file system at every point of a load.
func TestFullDisk(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting a small tmpfs needs root")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=6m"); err != nil {
		t.Skipf("no tmpfs here: %v", err)
	}
	defer unix.Unmount(dir, 0)
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Load(ctx, bytes.NewReader(imagetest.Archive(t, base(t)))); err != nil {
		t.Fatal(err)
	}
	before := snapshot(t, s)
	failed := 0
	for _, mib := range []int{1, 2, 3, 4, 5, 6, 8} {
		body := strings.Repeat("0123456789abcdef", mib<<16)
		for _, pack := range []func(testing.TB, []byte) []byte{imagetest.PackGzip, func(_ testing.TB, b []byte) []byte { return b }} {
			layer := pack(t, imagetest.MakeLayer(t, imagetest.Reg("big", body, 0o644)))
			_, err := s.Load(ctx, bytes.NewReader(imagetest.DockerArchive(t, imagetest.Image{Name: "big:1", Layers: [][]byte{layer}})))
			if err == nil {
				if _, err := s.Remove(ctx, "big:1"); err != nil {
					t.Fatal(err)
				}
			} else if failed++; !errors.Is(err, unix.ENOSPC) {
				t.Errorf("%d MiB: got error %v, want ENOSPC", mib, err)
			}
			same(t, before, snapshot(t, s))
		}
	}
	if failed == 0 {
		t.Error("nothing filled the disk")
	}
}

func TestImport(t *testing.T) {
	s := open(t)
	changes := Config{Cmd: []string{"sh"}, Env: []string{"A=b"}, ExposedPorts: []string{"1/tcp"}}
	img, err := s.Import(ctx, bytes.NewReader(imagetest.PackGzip(t, base(t))), "demo", changes)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(changes, img.Config, cmpopts.EquateEmpty()); diff != "" || !slices.Equal(img.Names, []string{"demo:latest"}) {
		t.Errorf("config (-want +got):\n%s, names %v", diff, img.Names)
	}
	root, err := s.RootFS(ctx, img)
	if err != nil {
		t.Fatal(err)
	}
	if c := content(t, root.Path, "/bin/sh"); c != "#!" {
		t.Errorf("/bin/sh holds %q", c)
	}
	before := snapshot(t, s)
	if _, err := s.Import(ctx, strings.NewReader("no tar at all"), "bad", Config{}); err == nil {
		t.Error("imported what is no tar")
	}
	if _, err := s.Import(ctx, bytes.NewReader(base(t)), "Bad Name", Config{}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("bad name: got %v", err)
	}
	same(t, before, snapshot(t, s))
}

// The same content taken in by several at once, and again, packed or not and
// under other names, is one image.
func TestSameContentIsOneImage(t *testing.T) {
	when := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	late := imagetest.Reg("late", "x", 0o644)
	late.Header.ModTime = when
	rootfs := imagetest.MakeLayer(t, imagetest.Dir("bin/"), late, imagetest.Reg("bin/sh", "#!", 0o755))
	archive := imagetest.DockerArchive(t, imagetest.Image{Name: "saved:1", Layers: [][]byte{base(t), top(t)}})
	for name, take := range map[string]func(s *Store, n int) (Image, error){
		"import": func(s *Store, n int) (Image, error) {
			data := rootfs
			if n%2 == 1 {
				data = imagetest.PackGzip(t, rootfs)
			}
			img, err := s.Import(ctx, bytes.NewReader(data), fmt.Sprintf("copy:%d", n), Config{Cmd: []string{"sh"}, Labels: map[string]string{"a": "b", "c": "d"}})
			if err == nil && !img.Created.Equal(when) {
				err = fmt.Errorf("it was made at %v, want the time of its newest file, %v", img.Created, when)
			}
			return img, err
		},
		"load": func(s *Store, _ int) (Image, error) {
			all, err := s.Load(ctx, bytes.NewReader(archive))
			if err != nil {
				return Image{}, err
			}
			return all[0], nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t)
			const copies = 5
			ids := make([]string, copies+1)
			errs := make([]error, copies+1)
			one := func(n int) {
				another, err := Open(s.dir) // as another process has it
				if err != nil {
					errs[n] = err
					return
				}
				img, err := take(another, n)
				ids[n], errs[n] = img.ID, err
			}
			var all sync.WaitGroup
			for n := range copies {
				all.Go(func() { one(n) })
			}
			all.Wait()
			one(copies)
			if err := errors.Join(errs...); err != nil {
				t.Fatal(err)
			}
			if ids = slices.Compact(ids); len(ids) != 1 {
				t.Errorf("%d images: %v", len(ids), ids)
			}
			images, err := s.List(ctx)
			if err != nil || len(images) != 1 {
				t.Fatalf("%d images in the store, %v", len(images), err)
			}
			if want := map[string]int{"import": copies + 1, "load": 1}[name]; len(images[0].Names) != want {
				t.Errorf("its names are %v", images[0].Names)
			}
			if roots, _ := filepath.Glob(filepath.Join(s.dir, "rootfs", "sha256", "*")); len(roots) != 1 {
				t.Errorf("root file systems: %v", roots)
			}
		})
	}
}

// Other content, or another configuration, is another image.
func TestOtherContentIsAnotherImage(t *testing.T) {
	s := open(t)
	seen := map[string]bool{}
	for _, tc := range []struct {
		rootfs []byte
		config Config
	}{{base(t), Config{}}, {top(t), Config{}}, {base(t), Config{Cmd: []string{"sh"}}}} {
		img, err := s.Import(ctx, bytes.NewReader(tc.rootfs), "same", tc.config)
		if err != nil || seen[img.ID] {
			t.Errorf("image %s, seen before: %v, error %v", img.ID, seen[img.ID], err)
		}
		seen[img.ID] = true
	}
}

// A time that no configuration can hold does not keep a tar from being an image.
func TestImportOfImpossibleTimes(t *testing.T) {
	s := open(t)
	f := imagetest.Reg("f", "x", 0o644)
	f.Header.ModTime = time.Unix(1<<40, 0)
	if img, err := s.Import(ctx, bytes.NewReader(imagetest.MakeLayer(t, f)), "late", Config{}); err != nil || img.Created.Unix() != 0 {
		t.Errorf("made at %v, error %v", img.Created, err)
	}
}

func fully(t testing.TB, name string) string {
	t.Helper()
	named, err := normalize(name)
	if err != nil {
		t.Fatal(err)
	}
	return named.String()
}

func TestResolve(t *testing.T) {
	s := open(t)
	var images []Image
	for i, name := range []string{"one:1", "example.test:5000/team/two:2", "three"} {
		layer := imagetest.MakeLayer(t, imagetest.Reg("n", fmt.Sprint(i), 0o644))
		got, err := s.Load(ctx, bytes.NewReader(imagetest.DockerArchive(t, imagetest.Image{Name: name, Layers: [][]byte{layer}})))
		if err != nil {
			t.Fatal(err)
		}
		images = append(images, got...)
	}
	hex := strings.TrimPrefix(images[1].ID, "sha256:")
	tests := map[string]struct {
		ref  string
		want int // -1: error
		is   func(error) bool
	}{
		"name and tag":          {"one:1", 0, nil},
		"fully qualified":       {fully(t, "one:1"), 0, nil},
		"other host":            {"example.test:5000/team/two:2", 1, nil},
		"tag is latest":         {"three", 2, nil},
		"id":                    {images[1].ID, 1, nil},
		"id without algorithm":  {hex, 1, nil},
		"beginning of id":       {hex[:12], 1, nil},
		"name and digest":       {"one@" + images[0].Digest, 0, nil},
		"other name and digest": {"three@" + images[0].Digest, -1, errdefs.IsNotFound},
		"other tag":             {"one:2", -1, errdefs.IsNotFound},
		"unknown":               {"nothing", -1, errdefs.IsNotFound},
		"no reference":          {"A B", -1, errdefs.IsInvalidArgument},
		"empty":                 {"", -1, errdefs.IsInvalidArgument},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := s.Resolve(ctx, tt.ref)
			if tt.want < 0 {
				if !tt.is(err) {
					t.Errorf("got %v, %v", got.ID, err)
				}
				return
			}
			if err != nil || got.ID != images[tt.want].ID {
				t.Errorf("got %v, %v; want image %d", got.ID, err, tt.want)
			}
		})
	}
	if err := func() error { _, err := s.Resolve(ctx, "nothing"); return err }(); !strings.Contains(err.Error(), "creel image pull") {
		t.Errorf("error does not say what to do: %v", err)
	}
}

func TestRemove(t *testing.T) {
	s := open(t)
	empty := snapshot(t, s)
	shared := base(t)
	load := func(name string, layers ...[]byte) Image {
		t.Helper()
		got, err := s.Load(ctx, bytes.NewReader(imagetest.DockerArchive(t, imagetest.Image{Name: name, Layers: layers})))
		if err != nil {
			t.Fatal(err)
		}
		return got[0]
	}
	one := load("one:1", shared)
	afterOne := snapshot(t, s)
	two := load("two:2", shared, top(t))
	load("two:other", shared, top(t))
	if _, err := s.Remove(ctx, two.ID); !errdefs.IsConflict(err) {
		t.Errorf("by id with two names: got %v, want Conflict", err)
	}
	got, err := s.Remove(ctx, "two:other")
	if diff := cmp.Diff(Removed{Untagged: []string{"two:other"}}, got); diff != "" || err != nil {
		t.Errorf("first name: %v\n%s", err, diff)
	}
	got, err = s.Remove(ctx, two.ID[7:19])
	if diff := cmp.Diff(Removed{Untagged: []string{"two:2"}, Deleted: []string{two.ID}}, got); diff != "" || err != nil {
		t.Errorf("last name: %v\n%s", err, diff)
	}
	same(t, afterOne, snapshot(t, s)) // the shared layer is still there
	// A name moves to the image that was loaded last; the other keeps its id.
	three := load("one:1", top(t))
	if got, err := s.Resolve(ctx, "one:1"); err != nil || got.ID != three.ID {
		t.Errorf("one:1 is %v, %v", got.ID, err)
	}
	if got, err := s.Resolve(ctx, one.ID); err != nil || len(got.Names) != 0 {
		t.Errorf("the former one:1: %v, %v", got.Names, err)
	}
	for _, ref := range []string{one.ID, three.ID} {
		if _, err := s.Remove(ctx, ref); err != nil {
			t.Error(err)
		}
	}
	if _, err := s.Remove(ctx, three.ID); !errdefs.IsNotFound(err) {
		t.Errorf("removed twice: %v", err)
	}
	after := snapshot(t, s)
	delete(after, "index.json")
	same(t, empty, after)
}

// TestRootFSIsRebuilt when its file is gone, to the same bytes, and by one of
// many who ask.
func TestRootFSIsRebuilt(t *testing.T) {
	s := open(t)
	images, err := s.Load(ctx, bytes.NewReader(imagetest.Archive(t, imagetest.PackGzip(t, base(t)), top(t))))
	if err != nil {
		t.Fatal(err)
	}
	first, err := s.RootFS(ctx, images[0])
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := os.Remove(first.Path); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				other, err := Open(s.dir) // as another process would
				if err != nil {
					t.Error(err)
					return
				}
				if got, err := other.RootFS(ctx, images[0]); err != nil || got != first {
					t.Errorf("got %+v, %v; want %+v", got, err, first)
				}
			})
		}
		wg.Wait()
	}
	blob := s.blobs.Path(images[0].Layers[1])
	if err := errors.Join(os.Remove(first.Path), os.Remove(blob), os.WriteFile(blob, []byte("damage"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.RootFS(ctx, images[0]); err == nil || !strings.Contains(err.Error(), "damaged") {
		t.Errorf("got error %v, want the damaged blob to be found", err)
	}
}

func TestManyAtOnce(t *testing.T) {
	dir := t.TempDir()
	var wg sync.WaitGroup
	for i := range 12 {
		archive := imagetest.DockerArchive(t, imagetest.Image{Name: fmt.Sprintf("n:%d", i%4),
			Layers: [][]byte{base(t), imagetest.MakeLayer(t, imagetest.Reg("n", fmt.Sprint(i%4), 0o644))}})
		wg.Go(func() {
			s, err := Open(dir)
			if err != nil {
				t.Error(err)
				return
			}
			img, err := s.Load(ctx, bytes.NewReader(archive))
			if err != nil {
				t.Error(err)
				return
			}
			if i >= 8 {
				if _, err := s.Remove(ctx, img[0].ID); err != nil && !errdefs.IsNotFound(err) {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	images, err := s.List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, img := range images {
		if err := os.Remove(s.rootPath(rootDigest(t, s, img))); err != nil {
			t.Error(err)
		}
		if _, err := s.RootFS(ctx, img); err != nil { // all parts are there
			t.Error(err)
		}
	}
}

func rootDigest(t *testing.T, s *Store, img Image) string {
	t.Helper()
	root, err := s.RootFS(ctx, img)
	if err != nil {
		t.Fatal(err)
	}
	return root.Digest
}

func TestVersions(t *testing.T) {
	tests := map[string]struct{ index, want string }{
		"newer":       {`{"version":2,"images":[],"future":1}`, "newer creel"},
		"unknown key": {`{"version":1,"imagse":[]}`, "unknown field"},
		"damaged":     {`{"version":`, "load the images again"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, "index.json"), []byte(tt.index), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := Open(dir); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want an error with %q", err, tt.want)
			}
		})
	}
}

// TestLeftovers: what a killed process left in tmp is cleared by the next one,
// what a living one has there is not; and looking at the store is enough, unless
// somebody is at work on it who does so himself.
func TestLeftovers(t *testing.T) {
	for name, next := range map[string]func(*Store) error{
		"begin": func(s *Store) error {
			w, err := s.begin(ctx)
			if err == nil {
				w.End()
			}
			return err
		},
		"open": func(s *Store) error {
			unlock, err := s.blobs.Lock(ctx, blobs.MainLock)
			if err != nil {
				return err
			}
			if _, err := Open(s.dir); err != nil { // does not wait
				return err
			}
			if _, err := os.Stat(filepath.Join(s.dir, "tmp", "work-dead")); err != nil {
				return fmt.Errorf("it was cleared beside somebody who changes the store: %w", err)
			}
			unlock()
			_, err = Open(s.dir)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) { leftovers(t, next) })
	}
}

func leftovers(t *testing.T, next func(*Store) error) {
	s := open(t)
	alive, err := s.begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer alive.End()
	dead := filepath.Join(s.dir, "tmp", "work-dead")
	if err := errors.Join(os.Mkdir(dead, 0o700), os.WriteFile(filepath.Join(dead, "000001"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := next(s); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dead); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("leftover: %v", err)
	}
	if _, err := os.Stat(alive.Dir()); err != nil {
		t.Errorf("session in use: %v", err)
	}
}

func TestCancelled(t *testing.T) {
	s := open(t)
	unlock, err := s.blobs.Lock(ctx, blobs.MainLock)
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	stop, cancel := context.WithCancelCause(ctx)
	r, w := io.Pipe()
	defer w.Close()
	cancel(errors.New("asked to stop"))
	if _, err := s.Load(stop, r); err == nil || !strings.Contains(err.Error(), "asked to stop") {
		t.Errorf("got %v", err)
	}
}
