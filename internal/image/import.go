package image

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"creel/internal/image/blobs"
	"creel/internal/image/flatten"
)

// Import makes an image of one layer out of a tar of a root file system,
// packed with gzip or zstd or not. ref may be empty: the image then has no
// name. The same tar with the same changes is the same image, wherever and
// whenever it is taken in. On error the store is as it was.
func (s *Store) Import(ctx context.Context, r io.Reader, ref string, changes Config) (Image, error) {
	var names []string
	if ref != "" {
		named, err := normalize(ref)
		if err != nil {
			return Image{}, err
		}
		names = []string{named.String()}
	}
	w, err := s.begin(ctx)
	if err != nil {
		return Image{}, err
	}
	defer w.End()
	zr, _, err := flatten.Decompress(r)
	if err != nil {
		return Image{}, fmt.Errorf("read root file system: %w", err)
	}
	defer zr.Close()
	layer, err := w.Write(ctx, zr, s.limits.Bytes)
	if err != nil {
		return Image{}, fmt.Errorf("read root file system: %w", err)
	}
	p, err := w.compose(ctx, layer, changes)
	if err != nil {
		return Image{}, err
	}
	images, err := w.finish(ctx, []pending{{parsed: p, names: names}})
	if err != nil {
		return Image{}, err
	}
	return images[0], nil
}

// compose writes the configuration and the manifest of an image with one
// uncompressed layer.
func (w *session) compose(ctx context.Context, layer blobs.Blob, c Config) (*parsed, error) {
	ld, err := descriptor(layer, types.OCIUncompressedLayer)
	if err != nil {
		return nil, err
	}
	made, err := newest(layer.Path)
	if err != nil {
		return nil, fmt.Errorf("read root file system: %w", err)
	}
	created := v1.Time{Time: made}
	config, err := json.Marshal(v1.ConfigFile{
		Architecture: runtime.GOARCH, OS: "linux", Created: created,
		RootFS:  v1.RootFS{Type: "layers", DiffIDs: []v1.Hash{ld.Digest}},
		History: []v1.History{{Created: created, CreatedBy: "creel image import"}},
		Config: v1.Config{
			Entrypoint: c.Entrypoint, Cmd: c.Cmd, Env: c.Env, User: c.User, WorkingDir: c.WorkingDir,
			StopSignal: c.StopSignal, Labels: c.Labels, ExposedPorts: set(c.ExposedPorts), Volumes: set(c.Volumes),
		},
	})
	if err != nil {
		return nil, err
	}
	cb, err := w.Write(ctx, bytes.NewReader(config), blobs.MaxSmall)
	if err != nil {
		return nil, err
	}
	cd, err := descriptor(cb, types.OCIConfigJSON)
	if err != nil {
		return nil, err
	}
	manifest, err := json.Marshal(v1.Manifest{
		SchemaVersion: 2, MediaType: types.OCIManifestSchema1, Config: cd, Layers: []v1.Descriptor{ld},
	})
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(ctx, bytes.NewReader(manifest), blobs.MaxSmall); err != nil {
		return nil, err
	}
	return parseImage(manifest, config)
}

// newest is the time of the last change of any file in a tar, which stands for
// when the image was made: the time of the import would make each import another
// image.
func newest(path string) (time.Time, error) {
	f, err := os.Open(path)
	if err != nil {
		return time.Time{}, err
	}
	defer f.Close()
	latest := time.Unix(0, 0)
	for tr := tar.NewReader(f); ; {
		h, err := tr.Next()
		if err != nil { // its end, or damage, which building the root file system finds and names
			return latest.UTC().Truncate(time.Second), nil
		}
		if h.ModTime.After(latest) && h.ModTime.Year() <= maxYear {
			latest = h.ModTime
		}
	}
}

const maxYear = 9000 // a later one is nonsense, and from 10000 on cannot be written

func set(list []string) map[string]struct{} {
	if len(list) == 0 {
		return nil
	}
	m := make(map[string]struct{}, len(list))
	for _, k := range list {
		m[k] = struct{}{}
	}
	return m
}
