package registry

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// maxManifest bounds manifests and indexes, in bytes.
const maxManifest = 16 << 20

// endpoint is one repository of one registry, logged in to on first use.
type endpoint struct {
	repo   name.Repository
	client *Client

	mu   sync.Mutex
	http *http.Client // nil: not yet
}

func (e *endpoint) connect(ctx context.Context) (*http.Client, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.http != nil {
		return e.http, nil
	}
	auth, err := authn.Resolve(ctx, e.client.options.Keychain, e.repo)
	if err != nil {
		return nil, fmt.Errorf("read login for %s: %w", e.repo.RegistryStr(), err)
	}
	rt, err := transport.NewWithContext(ctx, e.repo.Registry, auth, e.client.base, []string{e.repo.Scope(transport.PullScope)})
	if err != nil {
		return nil, err
	}
	e.http = &http.Client{Transport: rt, CheckRedirect: checkRedirect}
	return e.http, nil
}

// get asks for a part; the answer has one of the wanted codes.
func (e *endpoint) get(ctx context.Context, part string, header http.Header, codes ...int) (*http.Response, error) {
	client, err := e.connect(ctx)
	if err != nil {
		return nil, err
	}
	url := e.repo.Scheme() + "://" + e.repo.RegistryStr() + "/v2/" + e.repo.RepositoryStr() + "/" + part
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	req.Header = header
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	if err := transport.CheckError(resp, codes...); err != nil {
		resp.Body.Close()
		return nil, err
	}
	return resp, nil
}

// Manifest is a manifest or an index.
type Manifest struct {
	Raw       []byte
	Digest    string // sha256:…
	MediaType types.MediaType
}

// Manifest fetches the manifest that a tag or a digest names, from the first
// place that has it. That place is asked first for all that follows. Not to be
// called while a Download runs.
func (r *Repository) Manifest(ctx context.Context, tagOrDigest string) (Manifest, error) {
	var errs []error
	for i, e := range r.endpoints {
		m, err := e.manifest(ctx, tagOrDigest)
		if err == nil {
			r.endpoints = append(slices.Clone(r.endpoints[i:]), r.endpoints[:i]...)
			return m, nil
		}
		errs = append(errs, explain(fmt.Errorf("ask %s for %s: %w", e.repo.RegistryStr(), reference.FamiliarName(r.named), err), e.repo.RegistryStr()))
		if ctx.Err() != nil {
			break
		}
	}
	return Manifest{}, errors.Join(errs...)
}

func (e *endpoint) manifest(ctx context.Context, tagOrDigest string) (Manifest, error) {
	accept := []string{string(types.OCIManifestSchema1), string(types.OCIImageIndex), string(types.DockerManifestSchema2), string(types.DockerManifestList)}
	resp, err := e.get(ctx, "manifests/"+tagOrDigest, http.Header{"Accept": {strings.Join(accept, ",")}}, http.StatusOK)
	if err != nil {
		return Manifest{}, err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxManifest+1))
	if err != nil {
		return Manifest{}, fmt.Errorf("read manifest: %w", err)
	}
	m := Manifest{Raw: raw, Digest: fmt.Sprintf("sha256:%x", sha256.Sum256(raw)), MediaType: types.MediaType(resp.Header.Get("Content-Type"))}
	switch {
	case len(raw) > maxManifest:
		return Manifest{}, fmt.Errorf("manifest is larger than %d MiB", maxManifest>>20)
	case strings.Contains(tagOrDigest, ":") && m.Digest != tagOrDigest:
		return Manifest{}, fmt.Errorf("%w: manifest has digest %s, want %s: %w", errMismatch, m.Digest, tagOrDigest, errdefs.ErrDataLoss)
	case !m.MediaType.IsImage() && !m.MediaType.IsIndex():
		return Manifest{}, fmt.Errorf("%s is no image that Creel can run", m.MediaType)
	}
	return m, nil
}

const (
	maxTries     = 5   // one after the other that brought nothing
	otherTries   = 2   // the same, where another place is left to ask
	maxAllTries  = 100 // of one blob
	firstPause   = 100 * time.Millisecond
	maxPause     = 5 * time.Second
	stallTimeout = 60 * time.Second // without a byte
	chunk        = 256 << 10        // bytes between reports
)

var errMismatch = errors.New("content does not match its digest")

// Download completes f, which may hold the beginning of the blob already, and
// checks all of it. A connection that breaks or stalls is taken up again where
// it ended, there or at the next place that has the blob. report, which may be
// nil, gets the bytes in f. On error f keeps what is good for another try.
func (r *Repository) Download(ctx context.Context, d v1.Descriptor, f *os.File, report func(have int64)) error {
	dl := &download{ctx: ctx, want: d, f: f, report: report}
	if err := dl.resume(); err != nil {
		return err
	}
	var errs []error
	for i, e := range r.endpoints {
		tries := maxTries
		if i < len(r.endpoints)-1 {
			tries = otherTries
		}
		err := dl.from(e, tries)
		if err == nil {
			return nil
		}
		errs = append(errs, explain(fmt.Errorf("fetch %s from %s: %w", d.Digest, e.repo.RegistryStr(), err), e.repo.RegistryStr()))
		if ctx.Err() != nil {
			break
		}
	}
	return errors.Join(errs...)
}

// from tries one place until it has given all, or brings nothing any more.
func (dl *download) from(e *endpoint, tries int) error {
	pause, idle := firstPause, 0
	for try := 0; ; try++ {
		before := dl.have
		err := dl.fetch(e)
		if err == nil {
			err = dl.check()
		}
		switch {
		case err == nil:
			return nil
		case dl.ctx.Err() != nil:
			return context.Cause(dl.ctx)
		case errors.Is(err, errMismatch) && dl.resumed:
			dl.resumed = false // what was there before may have been the damage
			continue
		case permanent(err):
			return err
		}
		if idle++; dl.have > before {
			idle, pause = 0, firstPause
		}
		if idle >= tries || try >= maxAllTries {
			return fmt.Errorf("%w (tried %d times); check the connection and run the command again, it goes on from there", err, try+1)
		}
		timer := time.NewTimer(pause)
		select {
		case <-dl.ctx.Done():
			timer.Stop()
			return context.Cause(dl.ctx)
		case <-timer.C:
		}
		pause = min(2*pause, maxPause)
	}
}
