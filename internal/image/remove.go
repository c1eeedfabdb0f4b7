package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/containerd/errdefs"
)

// Removed says what a removal did.
type Removed struct {
	Untagged []string `json:"untagged,omitempty"` // names as people write them
	Deleted  []string `json:"deleted,omitempty"`  // image ids
}

// Remove takes a name from its image, and with the last name the image itself
// with every part that no other image has. By id it removes an image with at
// most one name; with more the error is of class Conflict. Whoever uses a root
// file system keeps it open, or linked, past its removal.
func (s *Store) Remove(ctx context.Context, ref string) (Removed, error) {
	unlock, err := s.lock(ctx, "lock")
	if err != nil {
		return Removed{}, err
	}
	defer unlock()
	x, err := s.readIndex()
	if err != nil {
		return Removed{}, err
	}
	m, err := x.find(ref)
	if err != nil {
		return Removed{}, err
	}
	r := &x.Images[m.image]
	if m.name == "" && len(r.Names) > 1 {
		return Removed{}, fmt.Errorf("image %q: %w: it has the names %v; remove each name", ref, errdefs.ErrConflict, familiar(r.Names))
	}
	var done Removed
	if m.name != "" && len(r.Names) > 1 {
		r.Names = slices.DeleteFunc(r.Names, func(n string) bool { return n == m.name })
		done.Untagged = familiar([]string{m.name})
		return done, s.writeIndex(x)
	}
	done.Untagged, done.Deleted = familiar(r.Names), []string{r.ID}
	x.Images = slices.Delete(x.Images, m.image, m.image+1)
	return done, s.dropUnused(x)
}

// dropUnused writes the index and then deletes what it does not reach. The
// caller holds the store's lock.
func (s *Store) dropUnused(x *storeIndex) error {
	keep := map[string]bool{}
	roots := x.RootFS
	x.RootFS = nil
	for _, r := range x.Images {
		p, err := s.parsed(r)
		if err != nil {
			// Which parts a damaged image has is unknown, so all are kept.
			x.RootFS = roots
			return s.writeIndex(x)
		}
		keep[s.blobPath(r.ID)], keep[s.blobPath(r.Manifest)] = true, true
		for _, l := range p.manifest.Layers {
			keep[s.blobPath(l.Digest.String())] = true
		}
		for _, root := range roots {
			if slices.Equal(root.Layers, p.diffIDs()) && !keep[s.rootPath(root.Digest)] {
				keep[s.rootPath(root.Digest)] = true
				x.RootFS = append(x.RootFS, root)
			}
		}
	}
	if err := s.writeIndex(x); err != nil {
		return err
	}
	var errs []error
	for _, dir := range []string{"blobs/sha256", "rootfs/sha256"} {
		entries, err := os.ReadDir(filepath.Join(s.dir, dir))
		errs = append(errs, err)
		for _, e := range entries {
			path := filepath.Join(s.dir, dir, e.Name())
			if keep[path] {
				continue
			}
			if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, fmt.Errorf("delete unused part: %w", err))
			}
		}
	}
	return errors.Join(errs...)
}
