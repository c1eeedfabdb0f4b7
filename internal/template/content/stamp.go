package content

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"creel/internal/durable"
)

// Stamp is what the file system knows of a file whose content was hashed. While
// it is the same the file is taken as unchanged: a change of content changes
// ctime, which no user can set.
type Stamp struct {
	Digest string `json:"digest"`
	Device uint64 `json:"device"`
	Inode  uint64 `json:"inode"`
	Size   int64  `json:"size"`
	CTime  int64  `json:"ctime"` // nanoseconds
	MTime  int64  `json:"mtime"`
}

// settled is how old a change must be before a stamp can tell it from the next
// one: more than the coarsest time stamps in use.
const settled = 2 * time.Second

func stampOf(f *os.File, digest string) (Stamp, error) {
	info, err := f.Stat()
	if err != nil {
		return Stamp{}, fmt.Errorf("stat %s: %w", f.Name(), err)
	}
	st := info.Sys().(*syscall.Stat_t)
	return Stamp{
		Digest: digest, Device: st.Dev, Inode: st.Ino, Size: st.Size,
		CTime: st.Ctim.Nano(), MTime: st.Mtim.Nano(),
	}, nil
}

// MismatchError says that a file's content is not what its digest names.
type MismatchError struct{ Path, Want, Got string }

func (e *MismatchError) Error() string {
	return fmt.Sprintf("%s has digest %s, want %s", e.Path, e.Got, e.Want)
}

// Check returns the stamp of f, which [Open] opened, when its content is what digest names. Known is
// the stamp of an earlier check, or zero; while it holds nothing is hashed.
func Check(ctx context.Context, f *os.File, digest string, known Stamp) (Stamp, error) {
	before, err := stampOf(f, digest)
	if err != nil {
		return Stamp{}, err
	}
	if before == known {
		return known, nil
	}
	began := time.Now()
	got, err := File(ctx, f, nil)
	if err != nil {
		return Stamp{}, err
	}
	if got != digest {
		return Stamp{}, &MismatchError{Path: f.Name(), Want: digest, Got: got}
	}
	after, err := stampOf(f, digest)
	if err != nil {
		return Stamp{}, err
	}
	if after != before {
		return Stamp{}, fmt.Errorf("%s was changed while it was hashed", f.Name())
	}
	if began.Sub(time.Unix(0, after.CTime)) < settled {
		after.CTime = 0 // matches nothing: the next check hashes again
	}
	return after, nil
}

// Stamps keeps stamps in a directory, a file for each digest. A stamp that is
// missing or damaged costs a hash, no more.
type Stamps struct{ Dir string }

func (s Stamps) path(digest string) string {
	return filepath.Join(s.Dir, strings.TrimPrefix(digest, sha256Prefix)+".json")
}

// Load returns the stamp kept for digest, or zero.
func (s Stamps) Load(digest string) Stamp {
	data, err := os.ReadFile(s.path(digest))
	if err != nil {
		return Stamp{}
	}
	var st Stamp
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if dec.Decode(&st) != nil || st.Digest != digest {
		return Stamp{}
	}
	return st
}

// Save keeps a stamp, in the place of an earlier one.
func (s Stamps) Save(st Stamp) error {
	data, err := json.Marshal(st)
	if err != nil {
		return fmt.Errorf("encode stamp: %w", err)
	}
	if err := durable.Swap(s.path(st.Digest), append(data, '\n')); err != nil {
		return fmt.Errorf("save stamp: %w", err)
	}
	return nil
}
