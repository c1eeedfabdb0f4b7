package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"

	"creel/internal/image/blobs"
)

// Removed says what a removal did.
type Removed struct {
	Untagged []string `json:"untagged,omitempty"` // names as people write them
	Deleted  []string `json:"deleted,omitempty"`  // image ids
	// FreedBytes is known after a prune only.
	FreedBytes int64 `json:"freedBytes,omitempty"`
}

// Remove takes a name from its image, and with the last name the image itself
// with every part that no other image has. By id it removes an image with at
// most one name; with more the error is of class Conflict. Whoever uses a root
// file system keeps it open, or linked, past its removal.
func (s *Store) Remove(ctx context.Context, ref string) (Removed, error) {
	var done Removed
	err := s.shrink(ctx, func(x *storeIndex) error {
		m, err := x.find(ref)
		if err != nil {
			return err
		}
		r := &x.Images[m.image]
		switch {
		case len(r.Names) > 1 && m.name == "":
			return fmt.Errorf("image %q: %w: it has the names %v; remove each name", ref, errdefs.ErrConflict, familiar(r.Names))
		case len(r.Names) > 1:
			r.Names = slices.DeleteFunc(r.Names, func(n string) bool { return n == m.name })
			done.Untagged = familiar([]string{m.name})
		default:
			done = Removed{Untagged: familiar(r.Names), Deleted: []string{r.ID}}
			x.Images = slices.Delete(x.Images, m.image, m.image+1)
		}
		return nil
	})
	if err != nil {
		return Removed{}, err
	}
	return done, nil
}

// PruneOptions say what may go.
type PruneOptions struct {
	// All takes images with names too, where InUse does not hold them.
	All bool
	// InUse tells which images something runs from; nil: none. It must not use
	// the store.
	InUse func(Image) bool
}

// Prune removes images without a name, parts that no image has, and downloads
// that were broken off.
func (s *Store) Prune(ctx context.Context, o PruneOptions) (Removed, error) {
	var done Removed
	var before int64
	err := s.shrink(ctx, func(x *storeIndex) error {
		before = s.size()
		x.Images = slices.DeleteFunc(x.Images, func(r imageRecord) bool {
			img, err := s.describe(x, r)
			if err != nil { // damaged: of no use with or without a name
				img = Image{ID: r.ID, Names: familiar(r.Names)}
			}
			if err == nil && len(r.Names) > 0 && !o.All || o.InUse != nil && o.InUse(img) {
				return false
			}
			done.Untagged = append(done.Untagged, img.Names...)
			done.Deleted = append(done.Deleted, r.ID)
			return true
		})
		return s.blobs.DropPartials()
	})
	if err != nil {
		return Removed{}, err
	}
	done.FreedBytes = max(0, before-s.size())
	return done, nil
}

// size is what the store's files take, in bytes. It is for people: what cannot
// be read counts nothing.
func (s *Store) size() (total int64) {
	for _, dir := range []string{"blobs/sha256", "rootfs/sha256", "partial"} {
		entries, _ := os.ReadDir(filepath.Join(s.dir, dir))
		for _, e := range entries {
			if fi, err := e.Info(); err == nil {
				total += fi.Size()
			}
		}
	}
	return total
}

// shrink edits the index and then deletes what it does not reach any more.
func (s *Store) shrink(ctx context.Context, edit func(*storeIndex) error) error {
	unlock, err := s.blobs.Lock(ctx, blobs.MainLock)
	if err != nil {
		return err
	}
	defer unlock()
	x, err := s.readIndex()
	if err != nil {
		return err
	}
	if err := edit(x); err != nil {
		return err
	}
	keep, known := s.reach(x)
	if !known {
		return s.writeIndex(x)
	}
	x.RootFS = slices.DeleteFunc(x.RootFS, func(r rootRecord) bool { return !keep[r.Digest] })
	if err := s.writeIndex(x); err != nil {
		return err
	}
	return errors.Join(s.blobs.Drop(keep), blobs.Clear(filepath.Join(s.dir, "rootfs", "sha256"), func(name string) bool {
		return keep["sha256:"+strings.TrimSuffix(name, ".ext4")]
	}))
}

// reach returns the digests of all parts that images have. It is not known
// where an image is damaged.
func (s *Store) reach(x *storeIndex) (keep map[string]bool, known bool) {
	keep = map[string]bool{}
	for _, r := range x.Images {
		p, err := s.parsed(r)
		if err != nil {
			return nil, false
		}
		keep[r.ID], keep[r.Manifest] = true, true
		for _, l := range p.manifest.Layers {
			keep[l.Digest.String()] = true
		}
		for _, root := range x.RootFS {
			if slices.Equal(root.Layers, p.diffIDs()) {
				keep[root.Digest] = true
			}
		}
	}
	return keep, true
}
