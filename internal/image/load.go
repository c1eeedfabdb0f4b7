package image

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"runtime"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"creel/internal/image/blobs"
	"creel/internal/image/flatten"
)

// Load takes in the images of an archive: from docker save, or an OCI layout
// as a tar, packed with gzip or zstd or not. Their names move from images that
// had them. On error the store is as it was.
func (s *Store) Load(ctx context.Context, r io.Reader) ([]Image, error) {
	return s.take(ctx, func(w *session) (source, error) { return readArchive(ctx, w, r) })
}

// LoadPath is [Store.Load] from an archive file or an OCI layout directory.
func (s *Store) LoadPath(ctx context.Context, path string) ([]Image, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	var images []Image
	if fi.IsDir() {
		root, openErr := os.OpenRoot(path)
		if openErr != nil {
			return nil, openErr
		}
		defer root.Close()
		images, err = s.take(ctx, func(w *session) (source, error) { return &dirSource{root, w}, nil })
	} else {
		images, err = s.Load(ctx, f)
	}
	if err != nil {
		return nil, fmt.Errorf("load %s: %w", path, err)
	}
	return images, nil
}

func (s *Store) take(ctx context.Context, open func(*session) (source, error)) ([]Image, error) {
	w, err := s.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer w.End()
	src, err := open(w)
	if err != nil {
		return nil, err
	}
	l := &loader{w: w, src: src, byDigest: map[string]int{}}
	if err := l.read(ctx); err != nil {
		return nil, err
	}
	return w.finish(ctx, l.images)
}

// loader finds the images of a source.
type loader struct {
	w        *session
	src      source
	images   []pending
	byDigest map[string]int // manifest to images
}

// dockerEntry is one image of a docker save archive's manifest.json.
type dockerEntry struct {
	Config   string
	RepoTags []string
	Layers   []string
}

func (l *loader) read(ctx context.Context) error {
	index, err := fetchSmall(ctx, l.src, "index.json")
	if err != nil {
		return err
	}
	list, err := fetchSmall(ctx, l.src, "manifest.json")
	if err != nil {
		return err
	}
	var entries []dockerEntry
	if list != nil {
		if err := json.Unmarshal(list, &entries); err != nil {
			return fmt.Errorf("parse manifest.json of the archive: %w", err)
		}
	}
	switch {
	case index != nil:
		err = l.readLayout(ctx, index, entries)
	case list != nil:
		err = l.readDocker(ctx, entries)
	default:
		return errors.New("neither an OCI layout nor an archive of docker save; a tar of a root file system is taken in by 'creel image import'")
	}
	if err == nil && len(l.images) == 0 {
		err = errors.New("no image in the archive")
	}
	return err
}

// add takes in one image of which the session or the store has all parts.
func (l *loader) add(manifestRaw []byte, names []string) error {
	var full []string
	for _, n := range names {
		named, err := normalize(n)
		if err != nil {
			return err
		}
		full = append(full, named.String())
	}
	d := blobs.Digest(manifestRaw)
	if i, ok := l.byDigest[d]; ok {
		l.images[i].names = append(l.images[i].names, full...)
		return nil
	}
	m, err := v1.ParseManifest(bytes.NewReader(manifestRaw))
	if err != nil {
		return fmt.Errorf("parse manifest: %w", err)
	}
	b, ok := l.w.Get(m.Config.Digest.String())
	if !ok {
		return fmt.Errorf("configuration %s is missing", m.Config.Digest)
	}
	configRaw, err := b.Read()
	if err != nil {
		return err
	}
	p, err := parseImage(manifestRaw, configRaw)
	if err != nil {
		return err
	}
	l.byDigest[d] = len(l.images)
	l.images = append(l.images, pending{parsed: p, names: full})
	return nil
}

const (
	annotationName    = "io.containerd.image.name"
	annotationRefName = "org.opencontainers.image.ref.name"
	annotationRefType = "vnd.docker.reference.type" // attestations
	maxIndexDepth     = 4
)

func (l *loader) readLayout(ctx context.Context, raw []byte, entries []dockerEntry) error {
	index, err := v1.ParseIndexManifest(bytes.NewReader(raw))
	if err != nil {
		return fmt.Errorf("parse index.json: %w", err)
	}
	for _, d := range forPlatform(index.Manifests, hostPlatform()) {
		if err := l.readDescriptor(ctx, d, layoutNames(d), maxIndexDepth); err != nil {
			return err
		}
	}
	for i := range l.images { // docker save gives names in its own list too
		for _, e := range entries {
			if e.Config != blobName(l.images[i].parsed.manifest.Config.Digest.String()) {
				continue
			}
			if err := l.add(l.images[i].parsed.manifestRaw, e.RepoTags); err != nil {
				return err
			}
		}
	}
	return nil
}

// layoutNames reads the name of an image from its descriptor. A reference name
// that is only a tag names nothing.
func layoutNames(d v1.Descriptor) []string {
	if n := d.Annotations[annotationName]; n != "" {
		return []string{n}
	}
	if n := d.Annotations[annotationRefName]; strings.ContainsAny(n, ":/") {
		return []string{n}
	}
	return nil
}

func hostPlatform() v1.Platform { return v1.Platform{OS: "linux", Architecture: runtime.GOARCH} }

// forPlatform leaves out what is no image, and images of other platforms unless
// there are no others.
func forPlatform(all []v1.Descriptor, want v1.Platform) []v1.Descriptor {
	var images, fit []v1.Descriptor
	for _, d := range all {
		if d.Annotations[annotationRefType] != "" || !(d.MediaType.IsImage() || d.MediaType.IsIndex()) {
			continue
		}
		images = append(images, d)
		if d.Platform == nil || d.Platform.Satisfies(want) {
			fit = append(fit, d)
		}
	}
	if len(fit) > 0 {
		return fit
	}
	return images
}

func (l *loader) readDescriptor(ctx context.Context, d v1.Descriptor, names []string, depth int) error {
	raw, err := l.fetchBlob(ctx, d)
	if err != nil {
		return err
	}
	content, err := raw.Read()
	if err != nil {
		return err
	}
	if d.MediaType.IsIndex() {
		index, err := v1.ParseIndexManifest(bytes.NewReader(content))
		if err != nil {
			return fmt.Errorf("parse index %s: %w", d.Digest, err)
		}
		fit := forPlatform(index.Manifests, hostPlatform())
		if len(fit) == 0 || depth == 0 {
			return fmt.Errorf("index %s has no image", d.Digest)
		}
		return l.readDescriptor(ctx, fit[0], names, depth-1)
	}
	m, err := v1.ParseManifest(bytes.NewReader(content))
	if err != nil {
		return fmt.Errorf("parse manifest %s: %w", d.Digest, err)
	}
	for _, part := range append([]v1.Descriptor{m.Config}, m.Layers...) {
		if _, err := l.fetchBlob(ctx, part); err != nil {
			return err
		}
	}
	return l.add(content, names)
}

// fetchBlob takes a blob into the session, where it is not yet, and checks it
// against its descriptor.
func (l *loader) fetchBlob(ctx context.Context, d v1.Descriptor) (blobs.Blob, error) {
	digest := d.Digest.String()
	b, ok := l.w.Get(digest)
	if !ok {
		var err error
		if b, err = l.src.fetch(ctx, blobName(digest)); errors.Is(err, fs.ErrNotExist) {
			return b, fmt.Errorf("blob %s is missing; fetch or save the archive again", digest)
		} else if err != nil {
			return b, fmt.Errorf("read blob %s: %w", digest, err)
		}
	}
	if b.Digest != digest {
		return b, fmt.Errorf("blob %s has digest %s: it is damaged; fetch or save the archive again", digest, b.Digest)
	}
	if b.Size != d.Size {
		return b, fmt.Errorf("blob %s has %d bytes, its descriptor says %d", digest, b.Size, d.Size)
	}
	return b, nil
}

// readDocker takes in images of a docker save archive without a layout. It has
// no manifests, so they are made.
func (l *loader) readDocker(ctx context.Context, entries []dockerEntry) error {
	for _, e := range entries {
		config, err := l.src.fetch(ctx, e.Config)
		if err != nil {
			return fmt.Errorf("image configuration: %w", err)
		}
		m := v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1}
		if m.Config, err = descriptor(config, types.OCIConfigJSON); err != nil {
			return err
		}
		if len(e.Layers) > maxLayers {
			return fmt.Errorf("image has %d layers, want at most %d", len(e.Layers), maxLayers)
		}
		for _, name := range e.Layers {
			b, err := l.src.fetch(ctx, name)
			if err != nil {
				return fmt.Errorf("layer: %w", err)
			}
			d, err := layerDescriptor(b)
			if err != nil {
				return err
			}
			m.Layers = append(m.Layers, d)
		}
		raw, err := json.Marshal(m)
		if err != nil {
			return err
		}
		if _, err := l.w.Write(ctx, bytes.NewReader(raw), blobs.MaxSmall); err != nil {
			return err
		}
		if err := l.add(raw, e.RepoTags); err != nil {
			return err
		}
	}
	return nil
}

func descriptor(b blobs.Blob, media types.MediaType) (v1.Descriptor, error) {
	h, err := v1.NewHash(b.Digest)
	return v1.Descriptor{MediaType: media, Size: b.Size, Digest: h}, err
}

func layerDescriptor(b blobs.Blob) (v1.Descriptor, error) {
	f, err := os.Open(b.Path)
	if err != nil {
		return v1.Descriptor{}, err
	}
	defer f.Close()
	zr, packed, err := flatten.Decompress(f)
	if err != nil {
		return v1.Descriptor{}, fmt.Errorf("layer %s: %w", b.Digest, err)
	}
	defer zr.Close()
	media := types.OCIUncompressedLayer
	switch packed {
	case flatten.Gzip:
		media = types.OCILayer
	case flatten.Zstd:
		media = types.OCILayerZStd
	}
	return descriptor(b, media)
}
