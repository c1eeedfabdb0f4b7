package image

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"creel/internal/image/blobs"
	"creel/internal/image/flatten"
)

// layoutVersion is of the store's files, described in
// docs/format/image-store.md.
const layoutVersion = 1

const maxLayers = 512 // of one image

// Store is an image store in a directory. Any number of processes may use one
// store, and any number of goroutines one Store. It holds nothing open.
type Store struct {
	dir    string
	blobs  *blobs.Dir
	limits flatten.Limits
}

// Open opens the store in dir and makes it where it is missing, and clears away
// what killed processes left unfinished. A store that a newer Creel wrote is
// refused.
func Open(dir string) (*Store, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	content, err := blobs.Open(dir)
	if err == nil {
		err = os.MkdirAll(filepath.Join(dir, "rootfs", "sha256"), 0o700)
	}
	if err != nil {
		return nil, fmt.Errorf("make image store: %w", err)
	}
	// One that cannot be cleared is met again by the next change, which says so.
	_ = content.Reclaim()
	s := &Store{dir: dir, blobs: content, limits: flatten.DefaultLimits()}
	if _, err := s.readIndex(); err != nil {
		return nil, err
	}
	return s, nil
}

// storeIndex is index.json: which images there are. Everything else in the
// store is reachable from it, or rubbish.
type storeIndex struct {
	Version int           `json:"version"`
	Images  []imageRecord `json:"images"`
	RootFS  []rootRecord  `json:"rootfs"`
}

type imageRecord struct {
	ID       string   `json:"id"`       // digest of the configuration
	Manifest string   `json:"manifest"` // digest
	Names    []string `json:"names"`    // fully qualified, each in one record only
	Digests  []string `json:"digests"`  // fully qualified, with the digest that the registry knows
}

// rootRecord is one root file system and the layers that it was made of.
type rootRecord struct {
	Layers    []string `json:"layers"` // diff ids, lowest first
	Flattener int      `json:"flattener"`
	Digest    string   `json:"digest"`
	SizeBytes int64    `json:"sizeBytes"`
}

func (s *Store) readIndex() (*storeIndex, error) {
	path := filepath.Join(s.dir, "index.json")
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return &storeIndex{Version: layoutVersion}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read image index: %w", err)
	}
	var head struct{ Version int }
	if err := json.Unmarshal(b, &head); err != nil {
		return nil, fmt.Errorf("read %s: %w; remove the file and load the images again", path, err)
	}
	if head.Version != layoutVersion {
		return nil, fmt.Errorf("image store %s has version %d, this creel knows version %d; use the newer creel that wrote it, or another directory", s.dir, head.Version, layoutVersion)
	}
	x := &storeIndex{}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(x); err != nil {
		return nil, fmt.Errorf("read %s: %w; remove the file and load the images again", path, err)
	}
	return x, nil
}

// writeIndex replaces the index. The caller holds the main lock.
func (s *Store) writeIndex(x *storeIndex) error {
	b, err := json.MarshalIndent(x, "", "  ")
	if err != nil {
		return err
	}
	if err := s.blobs.Replace("index.json", append(b, '\n')); err != nil {
		return fmt.Errorf("write image index: %w", err)
	}
	return nil
}

func (s *Store) rootPath(digest string) string {
	return filepath.Join(s.dir, "rootfs", "sha256", strings.TrimPrefix(digest, "sha256:")+".ext4")
}

// parsed reads the manifest and configuration of a record.
func (s *Store) parsed(r imageRecord) (*parsed, error) {
	m, err := s.blobs.Read(r.Manifest)
	if err != nil {
		return nil, fmt.Errorf("read manifest: %w", err)
	}
	c, err := s.blobs.Read(r.ID)
	if err != nil {
		return nil, fmt.Errorf("read image configuration: %w", err)
	}
	return parseImage(m, c)
}

func (s *Store) describe(x *storeIndex, r imageRecord) (Image, error) {
	p, err := s.parsed(r)
	if err != nil {
		return Image{}, fmt.Errorf("image %s: %w", r.ID, err)
	}
	var size int64
	if root := x.root(p.diffIDs()); root != nil {
		size = root.SizeBytes
	}
	return p.image(familiar(r.Names), familiar(r.Digests), size), nil
}

func (x *storeIndex) root(layers []string) *rootRecord {
	i := slices.IndexFunc(x.RootFS, func(r rootRecord) bool {
		return r.Flattener == flatten.Version && slices.Equal(r.Layers, layers)
	})
	if i < 0 {
		return nil
	}
	return &x.RootFS[i]
}

// List returns every image, newest first.
func (s *Store) List(ctx context.Context) ([]Image, error) {
	x, err := s.readIndex()
	if err != nil {
		return nil, err
	}
	images := make([]Image, 0, len(x.Images))
	for _, r := range x.Images {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		img, err := s.describe(x, r)
		if err != nil {
			return nil, err
		}
		images = append(images, img)
	}
	slices.SortFunc(images, func(a, b Image) int {
		if c := b.Created.Compare(a.Created); c != 0 {
			return c
		}
		return strings.Compare(a.ID, b.ID)
	})
	return images, nil
}

// Resolve finds an image by name, name:tag, name@sha256:…, id, or the beginning
// of an id where only one image has it. The error is of class NotFound where
// there is none, InvalidArgument where ref is no reference or ambiguous.
func (s *Store) Resolve(ctx context.Context, ref string) (Image, error) {
	if err := ctx.Err(); err != nil {
		return Image{}, err
	}
	x, err := s.readIndex()
	if err != nil {
		return Image{}, err
	}
	m, err := x.find(ref)
	if err != nil {
		return Image{}, err
	}
	return s.describe(x, x.Images[m.image])
}
