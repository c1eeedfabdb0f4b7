package image

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"

	"creel/internal/undo"
)

// Tag gives an image one more name, which moves from the image that had it.
func (s *Store) Tag(ctx context.Context, ref, name string) error {
	named, err := normalize(name)
	if err != nil {
		return err
	}
	if _, ok := named.(reference.Tagged); !ok {
		return fmt.Errorf("tag %q: %w: a digest cannot be chosen; write name or name:tag", name, errdefs.ErrInvalidArgument)
	}
	return s.change(ctx, func(x *storeIndex, _ *undo.Stack) error {
		m, err := x.find(ref)
		if err != nil {
			return err
		}
		return x.setNames(x.Images[m.image].ID, []string{named.String()})
	})
}

// Details is all that the store knows of one image.
type Details struct {
	Image
	RootFS        RootFS          `json:"rootFS,omitzero"` // zero: to be built when it is needed
	Manifest      json.RawMessage `json:"manifest"`        // as its digest covers it
	Configuration json.RawMessage `json:"configuration"`   // as its id covers it
}

// Inspect finds an image like [Store.Resolve] and returns all of it.
func (s *Store) Inspect(ctx context.Context, ref string) (Details, error) {
	img, err := s.Resolve(ctx, ref)
	if err != nil {
		return Details{}, err
	}
	d := Details{Image: img}
	if d.Manifest, err = s.blobs.Read(img.Digest); err != nil {
		return Details{}, fmt.Errorf("read manifest: %w", err)
	}
	if d.Configuration, err = s.blobs.Read(img.ID); err != nil {
		return Details{}, fmt.Errorf("read image configuration: %w", err)
	}
	d.RootFS, _, err = s.haveRoot(img.Layers)
	return d, err
}
