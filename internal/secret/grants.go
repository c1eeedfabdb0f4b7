package secret

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// Bounds of what is passed at once.
const (
	maxGrants     = 256
	maxGrantBytes = 16 << 20
)

// grantsVersion is of the encoding below.
const grantsVersion = 1

// message is the encoding: its length in four bytes, big-endian, and JSON. The
// values are in it as they are: it is for a pipe to a process of ours, and for
// nothing that stays.
type message struct {
	Version int            `json:"version"`
	Grants  []grantMessage `json:"grants"`
}

type grantMessage struct {
	Name    string  `json:"name"`
	Value   []byte  `json:"value"`
	Binding Binding `json:"binding"`
	StandIn string  `json:"standIn,omitempty"`
}

// WriteGrants passes grants on with their values, in one Write: w is a pipe to
// the keeper that they are for.
func WriteGrants(w io.Writer, grants []Grant) error {
	m := message{Version: grantsVersion, Grants: []grantMessage{}}
	for _, g := range grants {
		m.Grants = append(m.Grants, grantMessage{g.Name, []byte(g.Value.Reveal()), g.Binding, g.StandIn})
	}
	data, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode grants: %w", err)
	}
	if len(grants) > maxGrants || len(data) > maxGrantBytes {
		return fmt.Errorf("%d secrets of %d bytes: at most %d of %d bytes are passed to one sandbox; use fewer", len(grants), len(data), maxGrants, maxGrantBytes)
	}
	if _, err := w.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(data))), data...)); err != nil {
		return fmt.Errorf("pass grants: %w", err)
	}
	return nil
}

// ReadGrants reads what WriteGrants wrote, each grant checked, and nothing
// beyond it. Its errors hold nothing of what was read.
func ReadGrants(r io.Reader) ([]Grant, error) {
	var size [4]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, fmt.Errorf("read grants: %w", err)
	}
	n := binary.BigEndian.Uint32(size[:])
	if n > maxGrantBytes {
		return nil, fmt.Errorf("read grants: %d bytes, more than %d", n, maxGrantBytes)
	}
	// Grown as it comes: what was only announced takes no memory.
	data, err := io.ReadAll(io.LimitReader(r, int64(n)))
	if err == nil && len(data) < int(n) {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return nil, fmt.Errorf("read grants: %w", err)
	}
	return decode(data)
}

func decode(data []byte) ([]Grant, error) {
	var m message
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&m); err != nil || d.InputOffset() != int64(len(data)) {
		// The decoder's own words may quote what they are about.
		return nil, errors.New("read grants: not in the form that this version writes")
	}
	if m.Version != grantsVersion || len(m.Grants) > maxGrants {
		return nil, fmt.Errorf("read grants: version %d with %d grants, want version %d with at most %d", m.Version, len(m.Grants), grantsVersion, maxGrants)
	}
	grants := []Grant{}
	seen := map[string]bool{}
	var errs []error
	for i, e := range m.Grants {
		v, err := NewValue(string(e.Value))
		g := Grant{e.Name, v, e.Binding, e.StandIn}
		if err == nil {
			err = g.Validate()
		}
		if err == nil && seen[g.Name] {
			err = errors.New("it comes twice")
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("read grant %d: %w", i+1, err))
		}
		seen[g.Name] = true
		grants = append(grants, g)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return grants, nil
}
