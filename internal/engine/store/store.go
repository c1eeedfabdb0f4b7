// Package store keeps what is on disk of every sandbox: its record, its name,
// its directory and who holds it. Sandboxes are found by ID or name without
// reading those of others. Several processes use one state directory: what
// changes it holds the store's lock, and who runs a sandbox holds that one's.
//
// The main types are [Store] and [Record]. The package must not start or end a
// process, and must not know the audit record: it says what there is.
package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"creel/internal/durable"
	"creel/internal/keeper/launch"
	"creel/internal/sandbox"
)

// Names in the state directory and in each sandbox's; docs/format/state.md has
// them all.
const (
	sandboxesName = "sandboxes"
	namesName     = "names"
	StandbyName   = "standby" // where VMs wait for a task
	lockName      = "lock"
	versionName   = "version"
	stateVersion  = "1"

	recordName    = "record.json"
	AuditName     = "audit" // the log of a run; those of helpers have a number behind it
	keeperDirName = "run"
	settledName   = "settled"
	ProcessName   = "keeper.json" // which process is the keeper

	recordVersion = 1
)

// Users that keepers and VMMs run as where Creel is started as root: one for
// each sandbox, from a range that no distribution hands out.
const (
	uidBase  = 0x70000000
	uidCount = 1 << 27
)

// OwnUser says that a user is one of those that have a sandbox each.
func OwnUser(uid int) bool { return uid >= uidBase && uid < uidBase+uidCount }

// Record is what is stored about a sandbox.
type Record struct {
	Version int           `json:"version"`
	Created time.Time     `json:"created"`
	ImageID string        `json:"imageId"`
	UID     int           `json:"uid"` // of keeper and VMM; 0: the user's own
	Config  launch.Config `json:"config"`

	PolicyDigest string `json:"policyDigest"` // of the canonical text of the Spec's policy
}

// NewRecord is a record of this version, made now.
func NewRecord(config launch.Config) Record {
	return Record{Version: recordVersion, Created: time.Now(), Config: config}
}

// ID is the sandbox's.
func (r Record) ID() sandbox.ID { return r.Config.Spec.ID }

// Name is the sandbox's.
func (r Record) Name() string { return r.Config.Spec.Name }

// Store is the sandboxes of one state directory. It is safe for use by several
// goroutines and processes.
type Store struct {
	dir  string
	root bool // this process may give each sandbox a user of its own
}

// Prepare makes the state directory where absent, and refuses one that is not
// the user's alone or of a version that this creel does not know.
func Prepare(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make state directory: %w; set CREEL_STATE_DIR to one that can be written", err)
	}
	if err := checkOwner(dir); err != nil {
		return err
	}
	return checkVersion(filepath.Join(dir, versionName))
}

// Open opens a prepared state directory, and makes what is missing of it where
// it can be made.
func Open(dir string) *Store {
	s := &Store{dir: dir, root: os.Geteuid() == 0}
	s.MakeDirs() // where it fails, who makes a sandbox is told
	return s
}

// MakeDirs makes what is missing of the state directory.
func (s *Store) MakeDirs() error {
	for _, name := range []string{sandboxesName, namesName, StandbyName} {
		if err := os.MkdirAll(filepath.Join(s.dir, name), 0o700); err != nil {
			return fmt.Errorf("make state directory: %w", err)
		}
	}
	return nil
}

// checkOwner refuses a state directory that others could have prepared or
// could change.
func checkOwner(dir string) error {
	info, err := os.Lstat(dir)
	if err != nil {
		return fmt.Errorf("look at state directory: %w", err)
	}
	owner := info.Sys().(*syscall.Stat_t).Uid
	if !info.IsDir() || int(owner) != os.Geteuid() || info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("state directory %s is not yours alone (%s, user %d); set CREEL_STATE_DIR to a directory that only you can write", dir, info.Mode(), owner)
	}
	return nil
}

func checkVersion(path string) error {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if err := durable.Swap(path, []byte(stateVersion+"\n")); !errors.Is(err, syscall.EROFS) {
			return err
		}
		return nil // there is nothing that could be changed by mistake
	}
	fix := fmt.Sprintf("if no newer creel has used the directory, `rm -r %s` mends it", path)
	if err != nil {
		return fmt.Errorf("read state version: %w; %s", err, fix)
	}
	got := string(data)
	if strings.TrimSuffix(got, "\n") == stateVersion { // an editor, or echo -n, may have taken the newline
		return nil
	}
	if n, err := strconv.Atoi(strings.TrimSpace(got)); err != nil || n <= 0 {
		return fmt.Errorf("%s is damaged: it says %q, not a version; %s", path, got[:min(len(got), 20)], fix)
	}
	return fmt.Errorf("state directory %s has version %q, this creel knows %s; use the newer creel, or another CREEL_STATE_DIR", filepath.Dir(path), got, stateVersion)
}

// ReadOnly says why nothing can be changed in the state directory; nil: it can.
func (s *Store) ReadOnly() error { return unix.Access(s.dir, unix.W_OK|unix.X_OK) }

// Dir is where everything of one sandbox lies.
func (s *Store) Dir(id sandbox.ID) string {
	return filepath.Join(s.dir, sandboxesName, string(id))
}

// KeeperDir is the part of it that belongs to its keeper: a keeper that was
// taken over can write there and nowhere else. What it holds is not trusted.
func (s *Store) KeeperDir(id sandbox.ID) string {
	return filepath.Join(s.Dir(id), keeperDirName)
}

// IDs are those of every sandbox that has a directory, or something in its
// place.
func (s *Store) IDs() ([]sandbox.ID, error) {
	entries, err := os.ReadDir(filepath.Join(s.dir, sandboxesName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // none was ever made
	}
	if err != nil {
		return nil, fmt.Errorf("list sandboxes: %w; look what lies there, and move it away", err)
	}
	var ids []sandbox.ID
	for _, entry := range entries {
		if id, err := sandbox.ParseID(entry.Name()); err == nil { // else it is not ours
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// Exists reports whether a sandbox has a directory.
func (s *Store) Exists(id sandbox.ID) bool {
	_, err := os.Lstat(s.Dir(id))
	return !errors.Is(err, fs.ErrNotExist)
}

// MakeDir makes the directory of a new sandbox, for a user that neither another
// sandbox nor one of others has, and takes its lock: from then on the sandbox
// exists for every process, and somebody looks after it. The store is locked.
func (s *Store) MakeDir(rec *Record, others []int) (lock *durable.Lock, err error) {
	if rec.UID, err = s.FreeUID(others); err != nil {
		return nil, err
	}
	dir := s.Dir(rec.ID())
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make sandbox directory: %w", err)
	}
	if err := MakeKeeperDir(dir, rec.UID); err != nil {
		return nil, err
	}
	return durable.Acquire(context.Background(), filepath.Join(dir, launch.LockName))
}

// MakeKeeperDir makes the keeper's part of a directory that is, or will become, a
// sandbox's. Uid is its owner; 0: who makes it.
func MakeKeeperDir(dir string, uid int) error {
	dir = filepath.Join(dir, keeperDirName)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return fmt.Errorf("make keeper directory: %w", err)
	}
	if uid == 0 {
		return nil
	}
	if err := os.Lchown(dir, uid, uid); err != nil {
		return fmt.Errorf("hand over keeper directory: %w", err)
	}
	return nil
}

// FreeUID picks a user that neither a sandbox nor one of others has; 0: this
// process cannot give one. The store is locked.
func (s *Store) FreeUID(others []int) (int, error) {
	if !s.root {
		return 0, nil
	}
	ids, err := s.IDs()
	if err != nil {
		return 0, err
	}
	taken := map[int]bool{}
	for _, id := range ids {
		taken[s.OwnerOf(id)] = true // whatever its record says, or whether it can be read
	}
	for _, uid := range others {
		taken[uid] = true
	}
	for {
		if uid := uidBase + rand.IntN(uidCount); !taken[uid] {
			return uid, nil
		}
	}
}

// OwnerOf is the user that a sandbox has of its own, by what it owns; 0: none.
func (s *Store) OwnerOf(id sandbox.ID) int {
	info, err := os.Lstat(s.KeeperDir(id))
	if err != nil {
		return 0
	}
	uid := int(info.Sys().(*syscall.Stat_t).Uid)
	if !OwnUser(uid) {
		return 0
	}
	return uid
}

// RemoveDir removes a sandbox's directory. What shows that it was complete goes
// before its record does, and that before the rest: a removal that is killed
// does not leave what looks damaged. The store is locked.
func (s *Store) RemoveDir(id sandbox.ID) error {
	dir := s.Dir(id)
	signs, err := s.logs(id)
	if err != nil {
		return err
	}
	for _, path := range append(signs, filepath.Join(dir, ProcessName), filepath.Join(dir, settledName), filepath.Join(dir, recordName)) {
		if err := os.RemoveAll(path); err != nil && !errors.Is(err, syscall.ENOTDIR) {
			return fmt.Errorf("remove sandbox directory: %w", err)
		}
	}
	return os.RemoveAll(dir)
}
