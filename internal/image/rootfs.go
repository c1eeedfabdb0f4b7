package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"creel/internal/image/blobs"
	"creel/internal/image/flatten"
)

// RootFS returns the image's root file system. It was built when the image
// came in; where the file is missing, or an older Creel built it, it is built
// now: by one process, while others wait.
func (s *Store) RootFS(ctx context.Context, img Image) (RootFS, error) {
	if root, ok, err := s.haveRoot(img.Layers); ok || err != nil {
		return root, err
	}
	unlock, err := s.blobs.Lock(ctx, "build.lock")
	if err != nil {
		return RootFS{}, err
	}
	defer unlock()
	if root, ok, err := s.haveRoot(img.Layers); ok || err != nil {
		return root, err // built while we waited
	}
	x, err := s.readIndex()
	if err != nil {
		return RootFS{}, err
	}
	m, err := x.find(img.ID)
	if err != nil {
		return RootFS{}, err
	}
	p, err := s.parsed(x.Images[m.image])
	if err != nil {
		return RootFS{}, err
	}
	w, err := s.begin(ctx)
	if err != nil {
		return RootFS{}, err
	}
	defer w.End()
	ready := pending{parsed: p}
	if err := w.buildRoot(ctx, &ready); err != nil {
		return RootFS{}, err
	}
	if err := w.commit(ctx, []pending{ready}); err != nil {
		return RootFS{}, err
	}
	root, ok, err := s.haveRoot(img.Layers)
	if err == nil && !ok {
		err = fmt.Errorf("image %s was removed meanwhile; load it again", img.ID)
	}
	return root, err
}

// haveRoot finds a root file system that is there in full length. Whether its
// content is still the same is for its user to check against Digest.
func (s *Store) haveRoot(layers []string) (RootFS, bool, error) {
	x, err := s.readIndex()
	if err != nil {
		return RootFS{}, false, err
	}
	r := x.root(layers)
	if r == nil {
		return RootFS{}, false, nil
	}
	return RootFS{Digest: r.Digest, Path: s.rootPath(r.Digest), SizeBytes: r.SizeBytes}, s.rootThere(r), nil
}

func (s *Store) rootThere(r *rootRecord) bool {
	fi, err := os.Stat(s.rootPath(r.Digest))
	return err == nil && fi.Size() == r.SizeBytes
}

// buildRoot flattens the layers of p into a file of the session, which also
// checks each layer against the configuration.
func (w *session) buildRoot(ctx context.Context, p *pending) error {
	ids := p.parsed.diffIDs()
	layers := make([]flatten.Layer, len(ids))
	for i, l := range p.parsed.manifest.Layers {
		layers[i] = flatten.Layer{
			Name: l.Digest.String(), DiffID: ids[i],
			Open: func() (*os.File, error) { return w.Open(l.Digest.String()) },
		}
	}
	out, err := os.OpenFile(w.NewPath(), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	if err := flatten.Ext4(ctx, layers, w.Dir(), out, w.store.limits); err != nil {
		return fmt.Errorf("build root file system: %w", err)
	}
	if _, err := out.Seek(0, io.SeekStart); err != nil {
		return err
	}
	var syncErr error
	var wg sync.WaitGroup
	wg.Go(func() { syncErr = out.Sync() }) // the disk works while we hash
	digest, n, err := blobs.DigestReader(ctx, out)
	wg.Wait()
	if err = errors.Join(err, syncErr); err != nil {
		return fmt.Errorf("hash root file system: %w", err)
	}
	p.file = out.Name()
	p.root = rootRecord{Layers: ids, Flattener: flatten.Version, Digest: digest, SizeBytes: n}
	return nil
}
