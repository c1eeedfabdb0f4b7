package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"creel/internal/image/blobs"
	"creel/internal/image/registry"
)

// EventKind is what happens to a part of an image.
type EventKind string

const (
	Waiting     EventKind = "waiting"     // a layer that is fetched later
	Downloading EventKind = "downloading" // Current bytes of Total
	Exists      EventKind = "exists"      // the store, or the registry, has it
	Done        EventKind = "done"        // there and checked
	Converting  EventKind = "converting"  // the root file system is built
	Pushing     EventKind = "pushing"     // Current bytes of Total, all parts together
)

// Event is one step of a pull or push.
type Event struct {
	Kind           EventKind
	ID             string // digest of the layer or manifest, or the name that is pushed
	Current, Total int64  // bytes
}

// Progress is told of each step, by several goroutines at once. It may be nil.
type Progress func(Event)

func (p Progress) send(e Event) {
	if p != nil {
		p(e)
	}
}

// PullOptions say from where and what to pull.
type PullOptions struct {
	Registry registry.Options
	Platform string // os, architecture or os/architecture[/variant]; "": this machine's
	Progress Progress
}

// parallelBlobs is how many layers are fetched at once.
const parallelBlobs = 4

// Pull fetches an image from its registry: layers side by side, each stored
// once by digest, and one that breaks off is continued by this or the next
// pull. On error the store is as it was, but for partial downloads.
func (s *Store) Pull(ctx context.Context, ref string, o PullOptions) (Image, error) {
	named, err := normalize(ref)
	if err != nil {
		return Image{}, err
	}
	platform := hostPlatform()
	if o.Platform != "" {
		if platform, err = parsePlatform(o.Platform); err != nil {
			return Image{}, err
		}
	}
	repo, err := registry.New(o.Registry).Repository(named)
	if err != nil {
		return Image{}, err
	}
	w, err := s.begin(ctx)
	if err != nil {
		return Image{}, err
	}
	defer w.End()
	w.tell = o.Progress
	p := &puller{w: w, repo: repo, named: named, platform: platform}
	defer p.release()
	ready, err := p.pull(ctx)
	if err != nil {
		return Image{}, fmt.Errorf("pull %s: %w", reference.FamiliarString(named), err)
	}
	images, err := w.finish(ctx, []pending{ready})
	if err != nil {
		return Image{}, fmt.Errorf("pull %s: %w", reference.FamiliarString(named), err)
	}
	return images[0], nil
}

type puller struct {
	w        *session
	repo     *registry.Repository
	named    reference.Named
	platform v1.Platform
	held     []*os.File // locked downloads, until the image is in the store
}

func (p *puller) pull(ctx context.Context) (pending, error) {
	ready := pending{}
	id := ""
	switch n := p.named.(type) {
	case reference.Digested:
		id = n.Digest().String()
	case reference.Tagged:
		id, ready.names = n.Tag(), []string{p.named.String()}
	}
	m, err := p.repo.Manifest(ctx, id)
	if err != nil {
		return ready, err
	}
	ready.digests = []string{p.named.Name() + "@" + m.Digest}
	for depth := 0; m.MediaType.IsIndex(); depth++ {
		child, err := p.choose(m)
		if err == nil && depth == maxIndexDepth {
			err = errors.New("too many indexes in each other")
		}
		if err != nil {
			return ready, err
		}
		if m, err = p.repo.Manifest(ctx, child); err != nil {
			return ready, err
		}
	}
	ready.parsed, err = p.fetch(ctx, m)
	if err != nil {
		return ready, err
	}
	has, err := v1.ParsePlatform(platformOf(ready.parsed.config))
	if err != nil || !has.Satisfies(v1.Platform{OS: p.platform.OS, Architecture: p.platform.Architecture}) {
		return ready, fmt.Errorf("the image is for %s, not for %s: %w; ask for it with --platform", has, p.platform, errdefs.ErrNotFound)
	}
	return ready, nil
}

// choose picks from an index the image for the platform.
func (p *puller) choose(m registry.Manifest) (string, error) {
	index, err := v1.ParseIndexManifest(bytes.NewReader(m.Raw))
	if err != nil {
		return "", fmt.Errorf("parse index: %w", err)
	}
	var have []string
	for _, d := range forPlatform(index.Manifests, p.platform) {
		if d.Platform == nil || d.Platform.Satisfies(p.platform) {
			return d.Digest.String(), nil
		}
		have = append(have, d.Platform.String())
	}
	return "", fmt.Errorf("no image for %s: %w; there is one for: %s", p.platform, errdefs.ErrNotFound, strings.Join(have, ", "))
}

// fetch takes manifest, configuration and layers into the session.
func (p *puller) fetch(ctx context.Context, m registry.Manifest) (*parsed, error) {
	manifest, err := v1.ParseManifest(bytes.NewReader(m.Raw))
	if err != nil {
		return nil, fmt.Errorf("parse manifest: %w", err)
	}
	if n := len(manifest.Layers); n > maxLayers || manifest.Config.Size > blobs.MaxSmall {
		return nil, fmt.Errorf("image has %d layers and %d bytes of configuration, want at most %d and %d", n, manifest.Config.Size, maxLayers, blobs.MaxSmall)
	}
	if _, err := p.w.Write(ctx, bytes.NewReader(m.Raw), blobs.MaxSmall); err != nil {
		return nil, err
	}
	err = p.fetchBlobs(ctx, []v1.Descriptor{manifest.Config})
	p.release() // it is in no order with the layers
	if err != nil {
		return nil, err
	}
	config, err := p.w.Open(manifest.Config.Digest.String())
	if err != nil {
		return nil, err
	}
	defer config.Close()
	raw, err := io.ReadAll(io.LimitReader(config, blobs.MaxSmall))
	if err != nil {
		return nil, err
	}
	parsed, err := parseImage(m.Raw, raw)
	if err != nil {
		return nil, err
	}
	return parsed, p.fetchBlobs(ctx, manifest.Layers)
}

// fetchBlobs takes into the session what the store lacks.
func (p *puller) fetchBlobs(ctx context.Context, list []v1.Descriptor) error {
	list = slices.CompactFunc(slices.SortedFunc(slices.Values(list), byDigest), func(a, b v1.Descriptor) bool { return a.Digest == b.Digest })
	var total int64
	for _, d := range list {
		if total += d.Size; d.Size < 0 || total < 0 || total > p.w.store.limits.Bytes {
			return fmt.Errorf("image is larger than %d MiB, the most that Creel accepts", p.w.store.limits.Bytes>>20)
		}
		p.w.tell.send(Event{Kind: Waiting, ID: d.Digest.String(), Total: d.Size})
	}
	files, err := p.reserve(ctx, list)
	defer func() { p.held = append(p.held, files...) }()
	if err != nil {
		return err
	}
	if err := p.download(ctx, list, files); err != nil {
		return err
	}
	for i, f := range files {
		if f == nil {
			continue // in the store
		}
		if err := p.w.Adopt(f.Name(), list[i].Digest.String(), list[i].Size); err != nil {
			return err
		}
	}
	return nil
}

// release lets other pulls at the blobs that this one was fetching.
func (p *puller) release() {
	for _, f := range p.held {
		f.Close()
	}
	p.held = nil
}

// reserve opens the downloads of what the store lacks. The list is in order of
// digests, so that pulls of overlapping lists cannot wait for each other.
func (p *puller) reserve(ctx context.Context, list []v1.Descriptor) ([]*os.File, error) {
	files := make([]*os.File, len(list))
	for i, d := range list {
		digest := d.Digest.String()
		have := p.w.store.blobs.Intact(ctx, digest, d.Size)
		if !have {
			f, err := p.w.store.blobs.Partial(ctx, digest)
			if err != nil {
				return files, err
			}
			files[i] = f
			// Another pull may have brought it while we waited.
			if have = p.w.store.blobs.Intact(ctx, digest, d.Size); have {
				files[i] = nil
				if err := errors.Join(os.Remove(f.Name()), f.Close()); err != nil {
					return files, err
				}
			}
		}
		if have {
			p.w.tell.send(Event{Kind: Exists, ID: digest, Current: d.Size, Total: d.Size})
		}
	}
	return files, nil
}

// download completes the files, several at once.
func (p *puller) download(ctx context.Context, list []v1.Descriptor, files []*os.File) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	slots := make(chan struct{}, parallelBlobs)
	var wg sync.WaitGroup
	for i, d := range list {
		if files[i] == nil {
			continue
		}
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			e := Event{Kind: Downloading, ID: d.Digest.String(), Total: d.Size}
			err := p.repo.Download(ctx, d, files[i], func(have int64) {
				e.Current = have
				p.w.tell.send(e)
			})
			if err != nil {
				cancel(err)
				return
			}
			e.Kind, e.Current = Done, d.Size
			p.w.tell.send(e)
		})
	}
	wg.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}

func byDigest(a, b v1.Descriptor) int { return strings.Compare(a.Digest.Hex, b.Digest.Hex) }
