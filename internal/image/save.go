package image

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"

	"github.com/distribution/reference"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"creel/internal/image/blobs"
)

// Save writes images as one archive that is both an OCI layout and what docker
// save gives, so that docker load of any age, and [Store.Load], take it. A
// reference by name saves that name, one by id saves none.
func (s *Store) Save(ctx context.Context, refs []string, w io.Writer) error {
	a := &archive{ctx: ctx, store: s, tw: tar.NewWriter(w), have: map[string]bool{}}
	x, err := s.readIndex()
	if err != nil {
		return err
	}
	index := v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex}
	byImage := map[int]int{} // images of the store to entries
	var entries []dockerEntry
	for _, ref := range refs {
		m, err := x.find(ref)
		if err != nil {
			return err
		}
		p, err := s.parsed(x.Images[m.image])
		if err != nil {
			return fmt.Errorf("save %q: %w", ref, err)
		}
		if err := a.parts(p); err != nil {
			return fmt.Errorf("save %q: %w", ref, err)
		}
		if _, ok := byImage[m.image]; !ok {
			byImage[m.image] = len(entries)
			entries = append(entries, p.dockerEntry())
		}
		d, err := p.descriptor(m.name)
		if err != nil {
			return err
		}
		index.Manifests = append(index.Manifests, d)
		if m.name != "" {
			e := &entries[byImage[m.image]]
			e.RepoTags = append(e.RepoTags, familiar([]string{m.name})...)
		}
	}
	if err := a.json("index.json", index); err != nil {
		return err
	}
	if err := a.json("manifest.json", entries); err != nil {
		return err
	}
	if err := a.json("oci-layout", map[string]string{"imageLayoutVersion": "1.0.0"}); err != nil {
		return err
	}
	return a.tw.Close()
}

func (p *parsed) dockerEntry() dockerEntry {
	e := dockerEntry{Config: blobName(p.manifest.Config.Digest.String())}
	for _, l := range p.manifest.Layers {
		e.Layers = append(e.Layers, blobName(l.Digest.String()))
	}
	return e
}

func (p *parsed) descriptor(name string) (v1.Descriptor, error) {
	h, err := v1.NewHash(p.digest)
	d := v1.Descriptor{MediaType: p.manifest.MediaType, Digest: h, Size: int64(len(p.manifestRaw))}
	if d.MediaType == "" {
		d.MediaType = types.OCIManifestSchema1
	}
	if name != "" {
		d.Annotations = map[string]string{annotationName: name}
		if named, err := reference.ParseNormalizedNamed(name); err == nil {
			if t, ok := named.(reference.Tagged); ok {
				d.Annotations[annotationRefName] = t.Tag()
			}
		}
	}
	return d, err
}

// archive writes files, each once.
type archive struct {
	ctx   context.Context // of the one call that made it
	store *Store
	tw    *tar.Writer
	have  map[string]bool
}

func (a *archive) parts(p *parsed) error {
	if err := a.file(blobName(p.digest), int64(len(p.manifestRaw)), bytes.NewReader(p.manifestRaw)); err != nil {
		return err
	}
	for _, d := range append([]v1.Descriptor{p.manifest.Config}, p.manifest.Layers...) {
		f, err := os.Open(a.store.blobs.Path(d.Digest.String()))
		if err != nil {
			return fmt.Errorf("%w; pull or load the image again", err)
		}
		err = a.file(blobName(d.Digest.String()), d.Size, f)
		f.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

func (a *archive) json(name string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return a.file(name, int64(len(b)), bytes.NewReader(b))
}

func (a *archive) file(name string, size int64, r io.Reader) error {
	if a.have[name] {
		return nil
	}
	a.have[name] = true
	if err := a.tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o444}); err != nil {
		return err
	}
	n, err := blobs.Copy(a.ctx, a.tw, r)
	if err == nil && n != size {
		err = fmt.Errorf("%s has %d bytes, want %d: it is damaged; pull or load the image again", name, n, size)
	}
	return err
}
