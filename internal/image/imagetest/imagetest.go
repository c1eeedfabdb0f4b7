// Package imagetest makes small images for tests: layers out of [File]s, and
// archives out of layers, as docker save or an OCI layout has them. It is for
// tests, and must not be imported by anything else.
package imagetest

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"runtime"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// Epoch is the modification time of files that say none.
var Epoch = time.Date(2024, 2, 29, 12, 34, 56, 0, time.UTC)

// File is one entry of a layer.
type File struct {
	tar.Header
	Body string
}

// Dir is a directory with mode 0755.
func Dir(name string) File {
	return File{Header: tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755}}
}

// Reg is a regular file.
func Reg(name, body string, mode int64) File {
	return File{Header: tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode}, Body: body}
}

// Symlink is a symbolic link to target.
func Symlink(name, target string) File {
	return File{Header: tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}}
}

// Link is a hard link to target.
func Link(name, target string) File {
	return File{Header: tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target}}
}

// Whiteout hides name of the layers below; name may have directories.
func Whiteout(dir, name string) File { return Reg(dir+".wh."+name, "", 0) }

// Opaque hides all that layers below have in dir, which ends in a slash.
func Opaque(dir string) File { return Reg(dir+".wh..wh..opq", "", 0) }

// MakeLayer is a tar of files.
func MakeLayer(t testing.TB, files ...File) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		h := f.Header
		h.Size = int64(len(f.Body))
		h.Format = tar.FormatPAX
		if h.ModTime.IsZero() {
			h.ModTime = Epoch
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatalf("layer entry %q: %v", h.Name, err)
		}
		if _, err := w.Write([]byte(f.Body)); err != nil {
			t.Fatalf("layer entry %q: %v", h.Name, err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// Image is what an archive is made of.
type Image struct {
	Name         string // name:tag, may be empty
	Config       v1.Config
	Architecture string   // "": this machine's
	Layers       [][]byte // tars, lowest first, packed or not
}

// Archive is an archive of one image as docker save wrote it up to version 24,
// with the name "test:latest".
func Archive(t testing.TB, layers ...[]byte) []byte {
	t.Helper()
	return DockerArchive(t, Image{Name: "test:latest", Layers: layers})
}

// DockerArchive is an archive as docker save wrote it up to version 24.
func DockerArchive(t testing.TB, images ...Image) []byte {
	t.Helper()
	var files []File
	var list []map[string]any
	for _, img := range images {
		config := Config(t, img)
		name := hex(config) + ".json"
		files = append(files, Reg(name, string(config), 0o644))
		entry := map[string]any{"Config": name, "Layers": []string{}, "RepoTags": []string{}}
		if img.Name != "" {
			entry["RepoTags"] = []string{img.Name}
		}
		for _, l := range img.Layers {
			files = append(files, Dir(hex(l)+"/"), Reg(hex(l)+"/layer.tar", string(l), 0o644))
			entry["Layers"] = append(entry["Layers"].([]string), hex(l)+"/layer.tar")
		}
		list = append(list, entry)
	}
	return MakeLayer(t, append(files, Reg("manifest.json", string(marshal(t, list)), 0o644))...)
}

// Layout is an OCI layout with one image: files by name.
func Layout(t testing.TB, img Image) map[string][]byte {
	t.Helper()
	files := map[string][]byte{"oci-layout": []byte(`{"imageLayoutVersion":"1.0.0"}`)}
	put := func(media types.MediaType, b []byte) v1.Descriptor {
		files["blobs/sha256/"+hex(b)] = b
		return v1.Descriptor{MediaType: media, Size: int64(len(b)), Digest: v1.Hash{Algorithm: "sha256", Hex: hex(b)}}
	}
	m := v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1, Config: put(types.OCIConfigJSON, Config(t, img))}
	for _, l := range img.Layers {
		media := types.OCIUncompressedLayer
		switch {
		case bytes.HasPrefix(l, []byte{0x1f, 0x8b}):
			media = types.OCILayer
		case bytes.HasPrefix(l, []byte{0x28, 0xb5, 0x2f, 0xfd}):
			media = types.OCILayerZStd
		}
		m.Layers = append(m.Layers, put(media, l))
	}
	d := put(types.OCIManifestSchema1, marshal(t, m))
	if img.Name != "" {
		d.Annotations = map[string]string{"org.opencontainers.image.ref.name": img.Name}
	}
	files["index.json"] = marshal(t, v1.IndexManifest{
		SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: []v1.Descriptor{d},
	})
	return files
}

// Tar is a tar of files by name, in no particular order.
func Tar(t testing.TB, files map[string][]byte) []byte {
	t.Helper()
	var list []File
	for name, body := range files {
		list = append(list, Reg(name, string(body), 0o644))
	}
	return MakeLayer(t, list...)
}

// Config is the configuration of img, as its bytes.
func Config(t testing.TB, img Image) []byte {
	t.Helper()
	c := v1.ConfigFile{OS: "linux", Architecture: img.Architecture, Config: img.Config, RootFS: v1.RootFS{Type: "layers"}}
	if c.Architecture == "" {
		c.Architecture = runtime.GOARCH
	}
	c.Created = v1.Time{Time: Epoch}
	for _, l := range img.Layers {
		c.RootFS.DiffIDs = append(c.RootFS.DiffIDs, v1.Hash{Algorithm: "sha256", Hex: hex(unpack(t, l))})
	}
	return marshal(t, c)
}

// PackGzip packs b.
func PackGzip(t testing.TB, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// PackZstd packs b.
func PackZstd(t testing.TB, b []byte) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return w.EncodeAll(b, nil)
}

func unpack(t testing.TB, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	switch {
	case bytes.HasPrefix(b, []byte{0x1f, 0x8b}):
		r, err := gzip.NewReader(bytes.NewReader(b))
		if err == nil {
			_, err = out.ReadFrom(r)
		}
		if err != nil {
			t.Fatal(err)
		}
	case bytes.HasPrefix(b, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		r, err := zstd.NewReader(bytes.NewReader(b))
		if err == nil {
			defer r.Close()
			_, err = out.ReadFrom(r)
		}
		if err != nil {
			t.Fatal(err)
		}
	default:
		return b
	}
	return out.Bytes()
}

func hex(b []byte) string { return fmt.Sprintf("%x", sha256.Sum256(b)) }

func marshal(t testing.TB, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
