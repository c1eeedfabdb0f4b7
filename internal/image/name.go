package image

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
)

// normalize completes a name to host/path:tag or host/path@digest as Docker
// does.
func normalize(name string) (reference.Named, error) {
	named, err := reference.ParseDockerRef(name)
	if err != nil {
		return nil, fmt.Errorf("image name %q: %w: %w; write name, name:tag or name@sha256:…", name, err, errdefs.ErrInvalidArgument)
	}
	return named, nil
}

// familiar shortens fully qualified names for people.
func familiar(names []string) []string {
	out := make([]string, 0, len(names))
	for _, n := range names {
		if named, err := reference.ParseNormalizedNamed(n); err == nil {
			n = reference.FamiliarString(named)
		}
		out = append(out, n)
	}
	slices.Sort(out)
	return out
}

// match is where a reference led: an image, and its name where it was one.
type match struct {
	image int
	name  string // "": found by id
}

var idPrefix = regexp.MustCompile(`^[0-9a-f]{1,64}$`)

// find looks a reference up. Names go before ids, as with Docker.
func (x *storeIndex) find(ref string) (match, error) {
	named, nameErr := normalize(ref)
	if nameErr == nil {
		if m, ok := x.byName(named); ok {
			return m, nil
		}
	}
	hex := strings.TrimPrefix(ref, "sha256:")
	if !idPrefix.MatchString(hex) {
		if nameErr != nil {
			return match{}, nameErr
		}
		return match{}, notFound(ref)
	}
	found := match{image: -1}
	for i, r := range x.Images {
		if !strings.HasPrefix(strings.TrimPrefix(r.ID, "sha256:"), hex) {
			continue
		}
		if found.image >= 0 {
			return match{}, fmt.Errorf("image id %q is the beginning of several: %w; write more digits", ref, errdefs.ErrInvalidArgument)
		}
		found.image = i
	}
	if found.image < 0 {
		return match{}, notFound(ref)
	}
	return found, nil
}

func notFound(ref string) error {
	return fmt.Errorf("image %q: %w in the local store; see what is there with 'creel image ls', take it in with 'creel image pull', 'creel image load' or 'creel image import'", ref, errdefs.ErrNotFound)
}

// byName finds an exact name, or name@digest where the image came under it, or
// has that name with any tag and its manifest that digest.
func (x *storeIndex) byName(named reference.Named) (match, bool) {
	for i, r := range x.Images {
		if slices.Contains(r.Names, named.String()) {
			return match{i, named.String()}, true
		}
	}
	d, ok := named.(reference.Digested)
	if !ok {
		return match{}, false
	}
	for i, r := range x.Images {
		if slices.Contains(r.Digests, named.String()) {
			return match{image: i}, true
		}
		if r.Manifest != d.Digest().String() {
			continue
		}
		for _, n := range r.Names {
			if other, err := reference.ParseNormalizedNamed(n); err == nil && other.Name() == named.Name() {
				return match{image: i}, true
			}
		}
	}
	return match{}, false
}

// setNames gives names to the image and takes them from every other.
func (x *storeIndex) setNames(id string, names []string) error {
	for i := range x.Images {
		r := &x.Images[i]
		r.Names = slices.DeleteFunc(r.Names, func(n string) bool { return slices.Contains(names, n) })
		if r.ID == id {
			r.Names = merge(r.Names, names)
		}
	}
	if !slices.ContainsFunc(x.Images, func(r imageRecord) bool { return r.ID == id }) {
		return errors.New("image vanished")
	}
	return nil
}
