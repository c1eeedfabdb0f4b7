package image

import (
	"context"
	"slices"

	"creel/internal/image/blobs"
	"creel/internal/undo"
)

// session is the unfinished work of taking images in.
type session struct {
	*blobs.Work
	store *Store
	tell  Progress
}

// begin opens a session; the caller calls End.
func (s *Store) begin(ctx context.Context) (*session, error) {
	w, err := s.blobs.Begin(ctx)
	if err != nil {
		return nil, err
	}
	return &session{Work: w, store: s}, nil
}

// pending is an image ready to enter the store.
type pending struct {
	parsed  *parsed
	names   []string
	digests []string
	root    rootRecord
	file    string // the root file system in the session; "" where the store has it
}

// finish builds what root file systems are missing, which also verifies the
// layers, and makes the images part of the store.
func (w *session) finish(ctx context.Context, images []pending) ([]Image, error) {
	x, err := w.store.readIndex()
	if err != nil {
		return nil, err
	}
	synced := w.Sync()
	defer synced()
	out := make([]Image, len(images))
	for i := range images {
		p := &images[i]
		w.tell.send(Event{Kind: Converting, ID: p.parsed.digest})
		if root := w.verified(x, p.parsed); root != nil {
			p.root = *root
		} else if err := w.buildRoot(ctx, p); err != nil {
			return nil, err
		}
		p.names = merge(p.names, nil)
		out[i] = p.parsed.image(familiar(p.names), familiar(p.digests), p.root.SizeBytes)
	}
	if err := synced(); err != nil {
		return nil, err
	}
	return out, w.commit(ctx, images)
}

// verified returns the root file system of an image that the store has already
// with the same manifest: its layers were checked then.
func (w *session) verified(x *storeIndex, p *parsed) *rootRecord {
	if !slices.ContainsFunc(x.Images, func(r imageRecord) bool { return r.Manifest == p.digest }) {
		return nil
	}
	if root := x.root(p.diffIDs()); root != nil && w.store.rootThere(root) {
		return root
	}
	return nil
}

// commit makes images part of the store: all of them, or on error none.
func (w *session) commit(ctx context.Context, images []pending) error {
	return w.store.change(ctx, func(x *storeIndex, steps *undo.Stack) error {
		for _, p := range images {
			digests := []string{p.parsed.digest, p.parsed.manifest.Config.Digest.String()}
			for _, l := range p.parsed.manifest.Layers {
				digests = append(digests, l.Digest.String())
			}
			if err := w.Place(digests, steps); err != nil {
				return err
			}
			if p.file != "" {
				if err := blobs.Move(p.file, w.store.rootPath(p.root.Digest), steps); err != nil {
					return err
				}
			}
			if err := x.add(p); err != nil {
				return err
			}
		}
		return nil
	})
}

// change edits the index as one step: on error the index, and what edit pushed
// to the steps, are as before.
func (s *Store) change(ctx context.Context, edit func(*storeIndex, *undo.Stack) error) error {
	unlock, err := s.blobs.Lock(ctx, blobs.MainLock)
	if err != nil {
		return err
	}
	defer unlock()
	x, err := s.readIndex()
	if err != nil {
		return err
	}
	var steps undo.Stack
	defer steps.Unwind()
	if err := edit(x, &steps); err != nil {
		return err
	}
	if err := s.writeIndex(x); err != nil {
		return err
	}
	steps.Release()
	return nil
}

func (x *storeIndex) add(p pending) error {
	id := p.parsed.manifest.Config.Digest.String()
	i := slices.IndexFunc(x.Images, func(r imageRecord) bool { return r.ID == id })
	if i < 0 {
		x.Images = append(x.Images, imageRecord{ID: id})
		i = len(x.Images) - 1
	}
	x.Images[i].Manifest = p.parsed.digest
	x.Images[i].Digests = merge(x.Images[i].Digests, p.digests)
	x.RootFS = slices.DeleteFunc(x.RootFS, func(r rootRecord) bool { return slices.Equal(r.Layers, p.root.Layers) })
	x.RootFS = append(x.RootFS, p.root)
	return x.setNames(id, p.names)
}

// merge adds names to a sorted list.
func merge(list, more []string) []string {
	list = append(list, more...)
	slices.Sort(list)
	return slices.Compact(list)
}
