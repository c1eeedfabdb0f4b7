// Package store keeps an installation's secrets: for each name a [Source] of the
// value, where it may be used, and how old it may grow. Values are in it only
// where they are encrypted. [Store.Set], [Store.Rotate] and [Store.Remove] change
// it, [Store.Resolve] gets values for a launch, [Store.Check] says what is wrong
// with it. The package must not print, log or return a value but inside a
// [secret.Value].
package store

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"creel/internal/durable"
	"creel/internal/policy"
	"creel/internal/secret"

	"github.com/containerd/errdefs"
)

const (
	entryVersion  = 1
	maxEntryBytes = 256 << 10
	extension     = ".json"
	lockName      = "lock"
	lockWait      = 30 * time.Second
)

// Options are what a store is made of.
type Options struct {
	Dir string // made when something is first kept in it
	// Identity is the file with the age identity that values are encrypted
	// for; "" is one in Dir. It is made when it is first needed.
	Identity string
	Now      func() time.Time // nil: the clock
}

// Store is the secrets of one installation. It holds nothing open, and is safe
// for use by several goroutines and processes.
type Store struct {
	dir, identity string
	now           func() time.Time
}

// Open does nothing yet.
func Open(o Options) *Store {
	s := &Store{o.Dir, o.Identity, o.Now}
	if s.identity == "" {
		s.identity = filepath.Join(o.Dir, identityName)
	}
	if s.now == nil {
		s.now = time.Now
	}
	return s
}

// Entry is one secret, without its value.
type Entry struct {
	Name    string
	Source  Source
	Binding secret.Binding
	Created time.Time
	Rotated time.Time     // when its value was last set
	MaxAge  time.Duration // 0: any; whole seconds

	sealed []byte // of source age: the value, encrypted
}

// Over reports whether the value is older than it may be.
func (e *Entry) Over(now time.Time) bool { return e.MaxAge > 0 && now.Sub(e.Rotated) > e.MaxAge }

// file is an entry on disk.
type file struct {
	Version       int            `json:"version"`
	Name          string         `json:"name"`
	Source        Source         `json:"source"`
	Binding       secret.Binding `json:"binding"`
	Created       time.Time      `json:"created"`
	Rotated       time.Time      `json:"rotated"`
	MaxAgeSeconds int64          `json:"maxAgeSeconds,omitempty"`
	Sealed        []byte         `json:"sealed,omitempty"`
}

// Request is a secret as it is to be.
type Request struct {
	Name    string
	Source  Source
	Binding secret.Binding
	MaxAge  time.Duration
	Value   secret.Value // of source age alone
}

// Set makes a secret, or replaces binding, source and value of one that is
// there. Hosts are put into their one form. Every fault is returned at once.
func (s *Store) Set(ctx context.Context, r Request) (replaced bool, err error) {
	errs := []error{secret.CheckName(r.Name), CheckBinding(&r.Binding), r.Source.Validate(), checkMaxAge(r.MaxAge)}
	if r.Source.Kind == Age {
		errs = append(errs, r.Binding.Use.CheckValue(r.Value))
	}
	if err := errors.Join(errs...); err != nil {
		return false, err
	}
	now := s.now().UTC().Truncate(time.Second)
	e := Entry{Name: r.Name, Source: r.Source, Binding: r.Binding, Created: now, Rotated: now, MaxAge: r.MaxAge}
	return replaced, s.change(ctx, func() error {
		old, err := s.load(r.Name)
		switch {
		case err == nil:
			replaced, e.Created = true, old.Created
		case !errdefs.IsNotFound(err) && !errors.Is(err, errDamaged): // a damaged one is replaced
			return err
		}
		return s.keep(e, r.Value)
	})
}

// Rotate gives a secret a new value and keeps the rest: of source age the one
// that is passed, of the others what the source has now.
func (s *Store) Rotate(ctx context.Context, name string, v secret.Value) error {
	e, err := s.Get(name)
	if err != nil {
		return err
	}
	if e.Source.Kind != Age {
		if v, err = s.value(ctx, e); err != nil {
			return fmt.Errorf("secret %q: %w", name, err)
		}
	}
	if err := e.Binding.Use.CheckValue(v); err != nil {
		return fmt.Errorf("secret %q: %w", name, err)
	}
	return s.change(ctx, func() error {
		now, err := s.load(name)
		if err != nil {
			return err
		}
		if now.Source.Kind != e.Source.Kind {
			return fmt.Errorf("secret %q was changed meanwhile; try again", name)
		}
		now.Rotated = s.now().UTC().Truncate(time.Second)
		return s.keep(now, v)
	})
}

// keep writes an entry, with the value encrypted where it is of that source.
// The lock is held.
func (s *Store) keep(e Entry, v secret.Value) (err error) {
	f := file{entryVersion, e.Name, e.Source, e.Binding, e.Created, e.Rotated, int64(e.MaxAge / time.Second), nil}
	if e.Source.Kind == Age {
		if f.Sealed, err = s.seal(v); err != nil {
			return fmt.Errorf("encrypt secret %q: %w", e.Name, err)
		}
	}
	data, err := json.MarshalIndent(f, "", "  ")
	if err != nil {
		return fmt.Errorf("encode secret %q: %w", e.Name, err)
	}
	if err := durable.Replace(s.path(e.Name), append(data, '\n')); err != nil {
		return fmt.Errorf("write secret %q: %w", e.Name, err)
	}
	return nil
}

// Remove forgets secrets. All that are there go; the others are faults.
func (s *Store) Remove(ctx context.Context, names []string) (removed []string, err error) {
	err = s.change(ctx, func() error {
		var errs []error
		for _, name := range names {
			err := secret.CheckName(name)
			if err == nil {
				if err = os.Remove(s.path(name)); errors.Is(err, fs.ErrNotExist) {
					err = notFound(name)
				}
			}
			if err != nil {
				errs = append(errs, err)
				continue
			}
			removed = append(removed, name)
		}
		return errors.Join(append(errs, durable.Sync(s.dir))...)
	})
	return removed, err
}

// Get reads one entry.
func (s *Store) Get(name string) (Entry, error) {
	if err := secret.CheckName(name); err != nil {
		return Entry{}, err
	}
	if err := s.checkDir(); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Entry{}, err
	}
	return s.load(name)
}

// List reads every entry, by name. Those that can be read are returned with
// the faults of the others.
func (s *Store) List() ([]Entry, error) {
	if err := s.checkDir(); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	names, err := os.ReadDir(s.dir) // sorted
	if err != nil {
		return nil, fmt.Errorf("list secrets: %w", err)
	}
	var all []Entry
	var errs []error
	for _, n := range names {
		name, ok := strings.CutSuffix(n.Name(), extension)
		if !ok || secret.CheckName(name) != nil {
			continue
		}
		e, err := s.load(name)
		switch {
		case errdefs.IsNotFound(err): // removed meanwhile
		case err != nil:
			errs = append(errs, err)
		default:
			all = append(all, e)
		}
	}
	return all, errors.Join(errs...)
}

func (s *Store) path(name string) string { return filepath.Join(s.dir, name+extension) }

func notFound(name string) error {
	return fmt.Errorf("secret %q: %w; `creel secret ls` lists those there are, `creel secret set` makes one", name, errdefs.ErrNotFound)
}

var errDamaged = errors.New("its entry is damaged")

func damaged(name, why string) error {
	return fmt.Errorf("secret %q: %w: %s; set it again, or remove it with `creel secret rm`", name, errDamaged, why)
}

// load reads an entry strictly.
func (s *Store) load(name string) (Entry, error) {
	data, err := readFile(s.path(name), maxEntryBytes)
	if errors.Is(err, fs.ErrNotExist) {
		return Entry{}, notFound(name)
	}
	if err != nil {
		return Entry{}, fmt.Errorf("read secret %q: %w", name, err)
	}
	var version struct{ Version int }
	if json.Unmarshal(data, &version) == nil && version.Version > entryVersion {
		return Entry{}, fmt.Errorf("secret %q has version %d, this creel knows %d; use the newer creel", name, version.Version, entryVersion)
	}
	var f file
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&f); err != nil {
		return Entry{}, damaged(name, err.Error())
	}
	if _, err := d.Token(); err != io.EOF {
		return Entry{}, damaged(name, "something follows it")
	}
	if f.Version != entryVersion || f.Name != name {
		return Entry{}, damaged(name, fmt.Sprintf("it is version %d of %.80q", f.Version, f.Name))
	}
	if (f.Source.Kind == Age) != (len(f.Sealed) > 0) {
		return Entry{}, damaged(name, "value and source do not agree")
	}
	maxAge := time.Duration(f.MaxAgeSeconds) * time.Second
	if err := errors.Join(f.Source.Validate(), checkMaxAge(maxAge)); err != nil {
		return Entry{}, damaged(name, err.Error())
	}
	return Entry{f.Name, f.Source, f.Binding, f.Created, f.Rotated, maxAge, f.Sealed}, nil
}

// CheckBinding says all that is wrong with a binding, and gives its hosts their
// one form.
func CheckBinding(b *secret.Binding) error {
	var errs []error
	hosts := slices.Clone(b.Hosts)
	for i, h := range hosts {
		clean, err := policy.CleanPattern(h)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		hosts[i] = clean
	}
	b.Hosts = hosts
	for _, p := range b.Paths {
		errs = append(errs, policy.CheckPath(p))
	}
	for _, u := range b.Upstreams {
		errs = append(errs, policy.CheckUpstream(u))
	}
	return errors.Join(append(errs, b.Validate())...)
}

func checkMaxAge(d time.Duration) error {
	if d < 0 || d > 0 && d < time.Second || d%time.Second != 0 {
		return fmt.Errorf("maximum age %s: want whole seconds, or 0 for none", d)
	}
	return nil
}
