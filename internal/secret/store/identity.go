package store

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"creel/internal/durable"
	"creel/internal/secret"

	"filippo.io/age"
)

const (
	identityName     = "identity"
	maxIdentityBytes = 64 << 10
)

// seal encrypts a value. The lock is held.
func (s *Store) seal(v secret.Value) ([]byte, error) {
	ids, err := s.identities()
	if errors.Is(err, fs.ErrNotExist) {
		ids, err = s.makeIdentity()
	}
	if err != nil {
		return nil, err
	}
	id, ok := ids[0].(*age.X25519Identity)
	if !ok {
		return nil, fmt.Errorf("the first identity in %s is not of the kind AGE-SECRET-KEY-1…; put one of those first", s.identity)
	}
	var sealed bytes.Buffer
	w, err := age.Encrypt(&sealed, id.Recipient())
	if err != nil {
		return nil, err
	}
	if _, err := io.WriteString(w, v.Reveal()); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return sealed.Bytes(), nil
}

// unseal decrypts a value.
func (s *Store) unseal(sealed []byte) (string, error) {
	ids, err := s.identities()
	if err != nil {
		return "", err
	}
	r, err := age.Decrypt(bytes.NewReader(sealed), ids...)
	if _, ok := errors.AsType[*age.NoIdentityMatchError](err); ok {
		return "", fmt.Errorf("it was encrypted for another identity than those in %s; put the right one back (setting secretsIdentity), or set the secret again", s.identity)
	}
	if err != nil {
		return "", fmt.Errorf("decrypt: %w", err)
	}
	value, err := io.ReadAll(io.LimitReader(r, secret.MaxBytes+1))
	if err != nil {
		return "", fmt.Errorf("decrypt: %w", err)
	}
	return string(value), nil
}

// identities reads the file, which only its user may read. The first is the
// one to encrypt for.
func (s *Store) identities() ([]age.Identity, error) {
	info, err := os.Stat(s.identity)
	if err != nil {
		return nil, fmt.Errorf("read age identity: %w; put it back, or see the setting secretsIdentity", err)
	}
	if !ownedAlone(info) {
		return nil, fmt.Errorf("the age identity %s is not yours alone (%s); `chmod 600` it, and if somebody may have read it, remove it and set the secrets again with new values", s.identity, info.Mode())
	}
	data, err := readFile(s.identity, maxIdentityBytes)
	if err != nil {
		return nil, fmt.Errorf("read age identity: %w", err)
	}
	ids, err := age.ParseIdentities(bytes.NewReader(data))
	if err != nil {
		// The parser's own words may quote a key.
		return nil, fmt.Errorf("the file %s holds no age identities; see the setting secretsIdentity", s.identity)
	}
	return ids, nil
}

// makeIdentity makes the file, unless a value depends on the one that is
// missing. The lock is held.
func (s *Store) makeIdentity() ([]age.Identity, error) {
	entries, err := s.List()
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if e.Source.Kind == Age {
			return nil, fmt.Errorf("the age identity %s is missing, and secret %q is encrypted for it; put it back (setting secretsIdentity), or remove such secrets with `creel secret rm` and set them again", s.identity, e.Name)
		}
	}
	id, err := age.GenerateX25519Identity()
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(s.identity), 0o700); err != nil {
		return nil, fmt.Errorf("make age identity: %w", err)
	}
	text := fmt.Sprintf("# creel: the secrets beside this, or where secretsIdentity says so, are encrypted for it\n# public key: %s\n%s\n", id.Recipient(), id)
	if err := durable.Replace(s.identity, []byte(text)); err != nil {
		return nil, fmt.Errorf("make age identity: %w", err)
	}
	return []age.Identity{id}, nil
}
