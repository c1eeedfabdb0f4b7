package image

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"creel/internal/image/registry"
	"creel/internal/undo"
)

// PushOptions say how to push.
type PushOptions struct {
	Registry registry.Options
	Progress Progress
}

// Push sends an image to the registry that its name tells. It returns
// name@sha256:… of what is there now.
func (s *Store) Push(ctx context.Context, ref string, o PushOptions) (string, error) {
	named, err := normalize(ref)
	if err != nil {
		return "", err
	}
	tagged, ok := named.(reference.NamedTagged)
	if !ok {
		return "", fmt.Errorf("push %q: %w: a digest cannot be chosen; push a name with a tag", ref, errdefs.ErrInvalidArgument)
	}
	x, err := s.readIndex()
	if err != nil {
		return "", err
	}
	m, ok := x.byName(named)
	if !ok {
		return "", fmt.Errorf("%w; or give an image this name with 'creel image tag'", notFound(ref))
	}
	p, err := s.parsed(x.Images[m.image])
	if err != nil {
		return "", err
	}
	img, err := partial.CompressedToImage(&storedImage{s, p})
	if err != nil {
		return "", err
	}
	err = registry.New(o.Registry).Push(ctx, tagged, img, func(done, total int64) {
		o.Progress.send(Event{Kind: Pushing, ID: reference.FamiliarString(tagged), Current: done, Total: total})
	})
	if err != nil {
		return "", err
	}
	digest := named.Name() + "@" + p.digest
	return familiar([]string{digest})[0], s.change(ctx, func(x *storeIndex, _ *undo.Stack) error {
		for i := range x.Images { // it may have been removed meanwhile
			if x.Images[i].Manifest == p.digest {
				x.Images[i].Digests = merge(x.Images[i].Digests, []string{digest})
			}
		}
		return nil
	})
}

// storedImage is an image of the store as go-containerregistry wants it.
type storedImage struct {
	store  *Store
	parsed *parsed
}

func (i *storedImage) RawConfigFile() ([]byte, error) { return i.parsed.configRaw, nil }
func (i *storedImage) RawManifest() ([]byte, error)   { return i.parsed.manifestRaw, nil }

func (i *storedImage) MediaType() (types.MediaType, error) {
	if m := i.parsed.manifest.MediaType; m != "" {
		return m, nil
	}
	return types.OCIManifestSchema1, nil // OCI leaves it optional
}

func (i *storedImage) LayerByDigest(h v1.Hash) (partial.CompressedLayer, error) {
	n := slices.IndexFunc(i.parsed.manifest.Layers, func(d v1.Descriptor) bool { return d.Digest == h })
	if n < 0 {
		return nil, fmt.Errorf("layer %s: %w", h, errdefs.ErrNotFound)
	}
	return &storedLayer{i.store, i.parsed.manifest.Layers[n], i.parsed.config.RootFS.DiffIDs[n]}, nil
}

type storedLayer struct {
	store *Store
	desc  v1.Descriptor
	diff  v1.Hash
}

func (l *storedLayer) Digest() (v1.Hash, error)            { return l.desc.Digest, nil }
func (l *storedLayer) DiffID() (v1.Hash, error)            { return l.diff, nil }
func (l *storedLayer) Size() (int64, error)                { return l.desc.Size, nil }
func (l *storedLayer) MediaType() (types.MediaType, error) { return l.desc.MediaType, nil }
func (l *storedLayer) Compressed() (io.ReadCloser, error) {
	return os.Open(l.store.blobs.Path(l.desc.Digest.String()))
}
