package store

import (
	"context"
	"errors"
	"fmt"
	"os"

	"creel/internal/secret"
)

// Resolve gets the values of secrets for the launch of one sandbox, each with a
// stand-in of its own where it is used as one. Every fault is returned at once,
// and then no grant.
func (s *Store) Resolve(ctx context.Context, names []string) ([]secret.Grant, error) {
	grants := []secret.Grant{}
	var errs []error
	seen := map[string]bool{}
	for _, name := range names {
		if seen[name] {
			continue
		}
		seen[name] = true
		e, err := s.Get(name)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		g, err := s.grant(ctx, e)
		if err != nil {
			errs = append(errs, fmt.Errorf("secret %q: %w", name, err))
			continue
		}
		grants = append(grants, g)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return grants, nil
}

func (s *Store) grant(ctx context.Context, e Entry) (secret.Grant, error) {
	if err := CheckBinding(&e.Binding); err != nil {
		return secret.Grant{}, fmt.Errorf("its binding is not usable: %w; bind it again with `creel secret set %s`", err, e.Name)
	}
	if e.Over(s.now()) {
		return secret.Grant{}, fmt.Errorf("its value is from %s and may be used for %s; give it a new one with `creel secret rotate %s`",
			e.Rotated.Format("2006-01-02"), e.MaxAge, e.Name)
	}
	v, err := s.value(ctx, e)
	if err != nil {
		return secret.Grant{}, err
	}
	g := secret.Grant{Name: e.Name, Value: v, Binding: e.Binding}
	if e.Binding.Use.As == secret.AsStandIn {
		g.StandIn = secret.StandIn(v)
	}
	return g, g.Validate()
}

// Finding is what [Store.Check] says of one secret. Without faults it is right.
type Finding struct {
	Name   string
	Faults []string
}

// Check tries every secret as a launch would, and looks at who else could read
// it. Findings are by name; what is about none of the secrets has the name "".
func (s *Store) Check(ctx context.Context) ([]Finding, error) {
	entries, err := s.List()
	var found []Finding
	if err != nil {
		found = append(found, Finding{"", []string{err.Error()}})
	}
	for _, e := range entries {
		f := Finding{Name: e.Name, Faults: s.readers(e)}
		if _, err := s.grant(ctx, e); err != nil {
			f.Faults = append(f.Faults, err.Error())
		}
		found = append(found, f)
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
	}
	return found, nil
}

// readers says who else can read what an entry is made of. Directories and the
// identity are looked at where they are used.
func (s *Store) readers(e Entry) (faults []string) {
	files := []string{s.path(e.Name)}
	if e.Source.Kind == File {
		files = append(files, e.Source.Ref)
	}
	for _, path := range files {
		info, err := os.Stat(path)
		if err == nil && info.Mode().Perm()&0o077 != 0 {
			faults = append(faults, fmt.Sprintf("%s is open to others (%s); `chmod 600` it", path, info.Mode()))
		}
	}
	return faults
}

// Binding says where a secret may be used, without fetching its value.
func (s *Store) Binding(name string) (secret.Binding, error) {
	e, err := s.Get(name)
	return e.Binding, err
}
