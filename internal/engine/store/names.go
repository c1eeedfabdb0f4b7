package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"

	"creel/internal/durable"
	"creel/internal/sandbox"
)

// A name is a file of that name, which holds the ID of its sandbox.

func (s *Store) namePath(name string) string { return filepath.Join(s.dir, namesName, name) }

// TakeName gives a sandbox a name. A name whose sandbox is gone, because its
// maker was killed, is free. The store is locked.
func (s *Store) TakeName(name string, id sandbox.ID) error {
	owner, taken := s.Named(name)
	if !taken { // its file may be damaged
		owner, taken = s.recordNamed(name)
	}
	if taken {
		return &NameTaken{name, owner}
	}
	if err := durable.Swap(s.namePath(name), []byte(id)); err != nil {
		return fmt.Errorf("reserve name %q: %w", name, err)
	}
	return nil
}

// NameTaken is the error of a name that another sandbox has. How to choose
// another one depends on what the name was for.
type NameTaken struct {
	name  string
	owner sandbox.ID
}

// Unwrap is the class of the error.
func (e *NameTaken) Unwrap() error { return errdefs.ErrAlreadyExists }

func (e *NameTaken) Error() string {
	return fmt.Sprintf("the name %q is in use by sandbox %s", e.name, e.owner.Short())
}

// Named is the sandbox that has a name, if one that exists has it.
func (s *Store) Named(name string) (sandbox.ID, bool) {
	data, err := os.ReadFile(s.namePath(name))
	if err != nil {
		return "", false
	}
	owner, err := sandbox.ParseID(string(data))
	if err != nil {
		return "", false
	}
	_, err = os.Stat(s.Dir(owner))
	return owner, err == nil
}

// recordNamed is the sandbox whose record has a name, if there is one.
func (s *Store) recordNamed(name string) (sandbox.ID, bool) {
	ids, _ := s.IDs() // where they cannot be listed, none can be made
	for _, id := range ids {
		if rec, err := s.Read(id); err == nil && rec.Name() == name {
			return id, true
		}
	}
	return "", false
}

// NameOf is the name that leads to a sandbox; "": there is none.
func (s *Store) NameOf(id sandbox.ID) string {
	entries, _ := os.ReadDir(filepath.Join(s.dir, namesName)) // without names it has none
	for _, entry := range entries {
		if owner, taken := s.Named(entry.Name()); taken && owner == id {
			return entry.Name()
		}
	}
	return ""
}

// FreeName frees a name where id has it. The store is locked.
func (s *Store) FreeName(id sandbox.ID, name string) error {
	if owner, taken := s.Named(name); !taken || owner != id {
		return nil
	}
	if err := os.Remove(s.namePath(name)); err != nil {
		return fmt.Errorf("free name: %w", err)
	}
	return nil
}

// FreeNames frees every name that leads to a sandbox. The store is locked.
func (s *Store) FreeNames(id sandbox.ID) error {
	for name := s.NameOf(id); name != ""; name = s.NameOf(id) {
		if err := s.FreeName(id, name); err != nil {
			return err
		}
	}
	return nil
}

// Lookup resolves an ID, a name, or the beginning of an ID that no other has,
// and reads one record at most. The IDs are those that fit: one, none, or
// several that begin so.
func (s *Store) Lookup(ref string) ([]sandbox.ID, error) {
	if id, err := sandbox.ParseID(ref); err == nil && s.Exists(id) {
		return []sandbox.ID{id}, nil
	}
	if sandbox.ValidName(ref) {
		if id, taken := s.Named(ref); taken && s.mayHave(id, ref) {
			return []sandbox.ID{id}, nil
		}
	}
	ids, err := s.IDs()
	if err != nil || ref == "" {
		return nil, err
	}
	var fit []sandbox.ID
	for _, id := range ids {
		if strings.HasPrefix(string(id), ref) {
			fit = append(fit, id)
		}
	}
	if len(fit) == 0 { // the file of its name may be damaged
		if id, taken := s.recordNamed(ref); taken {
			fit = append(fit, id)
		}
	}
	return fit, nil
}

// mayHave reports whether a sandbox has the name that leads to it, as far as its
// record can be read.
func (s *Store) mayHave(id sandbox.ID, name string) bool {
	rec, err := s.Read(id)
	return err == nil && rec.Name() == name || err != nil && !errors.Is(err, fs.ErrNotExist)
}

// SweepNames removes the names that killed commands left: no sandbox has them.
func (s *Store) SweepNames() error {
	if files, err := s.abandonedNames(); err != nil || len(files) == 0 {
		return err
	}
	return s.Locked(func() error { // with the lock held none is about to have one
		files, err := s.abandonedNames()
		errs := []error{err}
		for _, file := range files {
			errs = append(errs, os.RemoveAll(file))
		}
		return errors.Join(errs...)
	})
}

func (s *Store) abandonedNames() (files []string, err error) {
	entries, err := os.ReadDir(filepath.Join(s.dir, namesName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // none was ever taken
	}
	if err != nil {
		return nil, fmt.Errorf("list names: %w", err)
	}
	for _, entry := range entries {
		if owner, taken := s.Named(entry.Name()); !taken || !s.mayHave(owner, entry.Name()) {
			files = append(files, s.namePath(entry.Name()))
		}
	}
	return files, nil
}
