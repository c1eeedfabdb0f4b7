// Package registry speaks to image registries: [Client] finds a [Repository],
// which gives manifests and, with resumption, blobs, and takes images. Whatever
// it returns was checked against its digest.
//
// Plain HTTP, and TLS with a certificate that nobody signed, are for registries
// on the loopback interface only, whatever redirects or token services say. The
// package must not know where images are kept.
package registry

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// Options say how registries are reached.
type Options struct {
	// Keychain gives credentials; nil is the user's Docker login (config file
	// and credential helpers).
	Keychain authn.Keychain
	// Mirrors are tried in order before the registry itself: registry host, as
	// in a fully qualified name, to host[:port][/path] of each.
	Mirrors map[string][]string
}

// Client reaches registries. It holds idle connections only.
type Client struct {
	options Options
	base    http.RoundTripper
}

// New returns a client.
func New(o Options) *Client {
	if o.Keychain == nil {
		o.Keychain = authn.DefaultKeychain
	}
	return &Client{options: o, base: newGuard()}
}

// Repository is where an image's parts can be had: the mirrors and the
// registry of one name.
type Repository struct {
	named     reference.Named
	endpoints []*endpoint
}

// Repository returns the repository of a fully qualified name.
func (c *Client) Repository(named reference.Named) (*Repository, error) {
	r := &Repository{named: named}
	for _, mirror := range c.options.Mirrors[reference.Domain(named)] {
		repo, err := name.NewRepository(strings.TrimSuffix(mirror, "/")+"/"+reference.Path(named), name.StrictValidation)
		if err != nil {
			return nil, fmt.Errorf("mirror %q of %s: %w: %w; write it as host[:port][/path]", mirror, reference.Domain(named), err, errdefs.ErrInvalidArgument)
		}
		r.endpoints = append(r.endpoints, &endpoint{repo: repo, client: c})
	}
	repo, err := name.NewRepository(named.Name())
	if err != nil {
		return nil, fmt.Errorf("repository %q: %w: %w", named.Name(), err, errdefs.ErrInvalidArgument)
	}
	r.endpoints = append(r.endpoints, &endpoint{repo: repo, client: c})
	return r, nil
}

// Push sends an image to the registry of a name with a tag; what the registry
// has is not sent again. report, which may be nil, gets bytes done of all.
func (c *Client) Push(ctx context.Context, tagged reference.NamedTagged, img v1.Image, report func(done, total int64)) error {
	tag, err := name.NewTag(tagged.String())
	if err != nil {
		return fmt.Errorf("image name %q: %w: %w", tagged, err, errdefs.ErrInvalidArgument)
	}
	updates := make(chan v1.Update, 16)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for u := range updates {
			if report != nil && u.Error == nil {
				report(u.Complete, u.Total)
			}
		}
	}()
	err = remote.Write(tag, img, remote.WithContext(ctx), remote.WithAuthFromKeychain(c.options.Keychain),
		remote.WithTransport(c.base), remote.WithProgress(updates)) // closes updates
	<-done
	if err != nil {
		return explain(fmt.Errorf("push %s: %w", reference.FamiliarString(tagged), err), tag.RegistryStr())
	}
	return nil
}

// explain gives an error of a registry its class, and the user what to do.
func explain(err error, host string) error {
	te, ok := errors.AsType[*transport.Error](err)
	if !ok {
		return err
	}
	switch te.StatusCode {
	case http.StatusNotFound:
		return fmt.Errorf("%w: %w; check name, tag and platform", err, errdefs.ErrNotFound)
	case http.StatusUnauthorized, http.StatusForbidden:
		return fmt.Errorf("%w: %w; check the name, or log in with 'docker login %s'", err, errdefs.ErrPermissionDenied, host)
	case http.StatusTooManyRequests:
		return fmt.Errorf("%w: %w; wait, or log in with 'docker login %s'", err, errdefs.ErrResourceExhausted, host)
	}
	return err
}

// permanent tells errors that another try, of the same place, would repeat.
func permanent(err error) bool {
	if errors.Is(err, errRefused) || errors.Is(err, errMismatch) {
		return true
	}
	if _, ok := errors.AsType[*fs.PathError](err); ok {
		return true // of our own file: a full disk stays full
	}
	te, ok := errors.AsType[*transport.Error](err)
	return ok && te.StatusCode >= 400 && te.StatusCode < 500 &&
		te.StatusCode != http.StatusTooManyRequests && te.StatusCode != http.StatusRequestTimeout
}

var errRefused = errors.New("refused")

const headerTimeout = 60 * time.Second

// guard is the transport under everything, token services and redirects too.
// It lets plain HTTP pass to the loopback interface only, and does not ask for
// a signed certificate there, as Docker does.
type guard struct{ verified, loopback http.RoundTripper }

func newGuard() *guard {
	verified := http.DefaultTransport.(*http.Transport).Clone()
	verified.ResponseHeaderTimeout = headerTimeout
	loopback := verified.Clone()
	loopback.TLSClientConfig = &tls.Config{InsecureSkipVerify: true} // #nosec G402 -- loopback only
	return &guard{verified, loopback}
}

func (g *guard) RoundTrip(req *http.Request) (*http.Response, error) {
	switch host := req.URL.Hostname(); {
	case isLoopback(host):
		return g.loopback.RoundTrip(req)
	case req.URL.Scheme != "https":
		return nil, fmt.Errorf("%w: %s is asked for over plain HTTP, which is for registries on this machine; give the registry a certificate", errRefused, host)
	}
	return g.verified.RoundTrip(req)
}

func isLoopback(host string) bool {
	if host == "localhost" {
		return true
	}
	a, err := netip.ParseAddr(host)
	return err == nil && a.Unmap().IsLoopback()
}

// checkRedirect keeps a registry elsewhere from sending requests to this
// machine or its network.
func checkRedirect(req *http.Request, via []*http.Request) error {
	const maxRedirects = 10
	if len(via) >= maxRedirects {
		return fmt.Errorf("%w: more than %d redirects", errRefused, maxRedirects)
	}
	from, to := via[0].URL.Hostname(), req.URL.Hostname()
	if from == to || isLoopback(from) {
		return nil
	}
	a, err := netip.ParseAddr(to)
	if isLoopback(to) || err == nil && (a.Unmap().IsPrivate() || a.Unmap().IsLinkLocalUnicast() || a.IsUnspecified()) {
		return fmt.Errorf("%w: redirect from %s to the private address %s", errRefused, from, to)
	}
	return nil
}
