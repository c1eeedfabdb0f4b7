package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"creel/internal/audit"
	"creel/internal/diskroom"
	"creel/internal/durable"
	"creel/internal/engine/names"
	"creel/internal/keeper"
	"creel/internal/sandbox"
	"creel/internal/standby"
	"creel/internal/undo"
)

// Names in the state directory and in each sandbox's; docs/format/state.md has
// them all.
const (
	sandboxesName = "sandboxes"
	StandbyName   = "standby"
	namesName     = "names"
	storeLockName = "lock"

	recordName    = "record.json"
	lockName      = standby.LockName
	LogName       = "keeper.log"
	auditName     = "audit"
	keeperDirName = "run"
	settledName   = "settled" // a kept sandbox's audit log has been closed
	lostName      = "lost"    // that it was is on the ledger
	ScratchName   = "scratch.img"
	versionName   = "version"
	stateVersion  = "1"

	recordVersion = 1
)

// Users that keepers and VMMs run as where Creel is started as root: one for
// each sandbox, from a range that no distribution hands out.
const (
	uidBase  = 0x70000000
	uidCount = 1 << 27
)

// Record is what is fixed about a sandbox when it is made.
type Record struct {
	Version int           `json:"version"`
	Created time.Time     `json:"created"`
	ImageID string        `json:"imageId"`
	UID     int           `json:"uid"` // of keeper and VMM; 0: the user's own
	Config  keeper.Config `json:"config"`

	PolicyDigest string `json:"policyDigest"` // of the canonical text of the Spec's policy

	auditDir   string         // of this run, in the sandbox's directory
	madeUpName bool           // may be replaced until it is reserved
	waited     *standby.Taken // the VM that waited for it, or nil
}

// PrepareDir makes the state directory where absent, and refuses one that is
// not the user's alone or of a version that this creel does not know.
func PrepareDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make state directory: %w; set CREEL_STATE_DIR to one that can be written", err)
	}
	if err := checkOwner(dir); err != nil {
		return err
	}
	return checkVersion(filepath.Join(dir, versionName))
}

// New opens the engine's part of a prepared state directory, and makes what is
// missing of it where it can be made.
func New(o Options) (*Engine, error) {
	for _, name := range []string{sandboxesName, StandbyName, namesName} {
		os.MkdirAll(filepath.Join(o.Dir, name), 0o700) // where it cannot be made, who makes a sandbox is told
	}
	return &Engine{opts: o, root: os.Geteuid() == 0, room: diskroom.Of, patience: answersIn, leaves: keeperLeaves}, nil
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
	mend := fmt.Sprintf("if no newer creel has used the directory, `rm -r %s` mends it", path)
	if err != nil {
		return fmt.Errorf("read state version: %w; %s", err, mend)
	}
	got := string(data)
	if strings.TrimSuffix(got, "\n") == stateVersion { // an editor, or echo -n, may have taken the newline
		return nil
	}
	if n, err := strconv.Atoi(strings.TrimSpace(got)); err != nil || n <= 0 {
		return fmt.Errorf("%s is damaged: it says %q, not a version; %s", path, got[:min(len(got), 20)], mend)
	}
	return fmt.Errorf("state directory %s has version %q, this creel knows %s; use the newer creel, or another CREEL_STATE_DIR", filepath.Dir(path), got, stateVersion)
}

// SandboxDir is where everything of one sandbox lies.
func (e *Engine) SandboxDir(id sandbox.ID) string {
	return filepath.Join(e.opts.Dir, sandboxesName, string(id))
}

// KeeperDir is the part of it that belongs to its keeper: a keeper that was
// taken over can write there and nowhere else. What it holds is not trusted.
func (e *Engine) KeeperDir(id sandbox.ID) string {
	return filepath.Join(e.SandboxDir(id), keeperDirName)
}

func (e *Engine) namePath(name string) string {
	return filepath.Join(e.opts.Dir, namesName, name)
}

// reserve takes the name, a user and a directory, and writes the record. From
// then on the sandbox exists for every other process. The file returned holds
// the keeper's lock, which says that somebody looks after the sandbox.
func (e *Engine) reserve(rec *Record, steps *undo.Stack, waiting takeWaiting) (*durable.Lock, error) {
	store, err := e.lockStore()
	if err != nil {
		return nil, err
	}
	defer store.Close()
	for _, name := range []string{sandboxesName, namesName} {
		if err := os.MkdirAll(filepath.Join(e.opts.Dir, name), 0o700); err != nil {
			return nil, fmt.Errorf("make state directory: %w", err)
		}
	}
	id := rec.Config.Spec.ID
	if _, taken := e.nameOwner(rec.Config.Spec.Name); taken && rec.madeUpName {
		rec.Config.Spec.Name = e.freeName() // another command made up the same
	}
	if err := e.takeName(rec.Config.Spec.Name, id); err != nil {
		if _, taken := errors.AsType[*nameTaken](err); taken {
			err = fmt.Errorf("%w; choose another with --name", err)
		}
		return nil, err
	}
	steps.Push("sandbox", func() error { return e.discard(*rec) })
	rec.waited = waiting(*rec)
	dir := e.SandboxDir(id)
	var lock *durable.Lock
	if rec.waited != nil {
		steps.Push("waiting VM", rec.waited.End)
		rec.UID = rec.waited.UID
		lock, err = durable.OpenExisting(filepath.Join(dir, lockName)) // its process holds it
	} else {
		lock, err = e.makeDir(rec, dir)
	}
	if err != nil {
		return nil, err
	}
	if err := e.writeRecord(*rec); err != nil {
		lock.Close()
		return nil, err
	}
	return lock, nil
}

// makeDir makes a sandbox's directory, for a user that no other has, and takes
// its lock. The store is locked.
func (e *Engine) makeDir(rec *Record, dir string) (lock *durable.Lock, err error) {
	if rec.UID, err = e.freeUID(); err != nil {
		return nil, err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make sandbox directory: %w", err)
	}
	if err := e.makeKeeperDir(filepath.Join(dir, keeperDirName), rec.UID); err != nil {
		return nil, err
	}
	return durable.Acquire(context.Background(), filepath.Join(dir, lockName))
}

func (e *Engine) makeKeeperDir(dir string, uid int) error {
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

// writeRecord replaces a sandbox's record by rename. The store is locked.
func (e *Engine) writeRecord(rec Record) error {
	data, err := json.MarshalIndent(rec, "", "  ")
	if err != nil {
		return fmt.Errorf("encode record: %w", err)
	}
	if err := durable.Swap(filepath.Join(e.SandboxDir(rec.Config.Spec.ID), recordName), data); err != nil {
		return fmt.Errorf("write record: %w", err)
	}
	return nil
}

// changeRecord changes the record of a sandbox that exists, as it is now: other
// commands change other parts of it.
func (e *Engine) changeRecord(id sandbox.ID, change func(*Record) error) error {
	return e.locked(func() error {
		rec, err := e.record(id)
		if err != nil {
			return err
		}
		if err := change(&rec); err != nil {
			return err
		}
		return e.writeRecord(rec)
	})
}

// takeName makes the name's file, which holds the ID. A name whose sandbox is
// gone, because its maker was killed, is free. The store is locked.
func (e *Engine) takeName(name string, id sandbox.ID) error {
	path := e.namePath(name)
	owner, taken := e.nameOwner(name)
	if !taken { // its file may be damaged
		owner, taken = e.recordNamed(name)
	}
	if taken {
		return &nameTaken{name, owner}
	}
	if err := durable.Swap(path, []byte(id)); err != nil {
		return fmt.Errorf("reserve name %q: %w", name, err)
	}
	return nil
}

// nameTaken is the error of a name that another sandbox has. How to choose
// another one depends on what the name was for.
type nameTaken struct {
	name  string
	owner sandbox.ID
}

func (e *nameTaken) Error() string {
	return fmt.Sprintf("the name %q is in use by sandbox %s", e.name, e.owner.Short())
}

// nameOwner is the sandbox that has a name, if one that exists has it.
func (e *Engine) nameOwner(name string) (sandbox.ID, bool) {
	data, err := os.ReadFile(e.namePath(name))
	if err != nil {
		return "", false
	}
	owner, err := sandbox.ParseID(string(data))
	if err != nil {
		return "", false
	}
	_, err = os.Stat(e.SandboxDir(owner))
	return owner, err == nil
}

// recordNamed is the sandbox whose record has a name, if there is one.
func (e *Engine) recordNamed(name string) (sandbox.ID, bool) {
	ids, _ := e.ids() // where they cannot be listed, none can be made
	for _, id := range ids {
		if rec, err := e.readRecord(id); err == nil && rec.Config.Spec.Name == name {
			return id, true
		}
	}
	return "", false
}

// freeName makes up a name that was not taken a moment ago; reserve decides.
func (e *Engine) freeName() string {
	return names.New(func(name string) bool { _, err := os.Stat(e.namePath(name)); return err == nil })
}

// abandonedNames are files of names that a killed command left: no sandbox has
// them. With the store locked none is about to.
func (e *Engine) abandonedNames() (files []string, err error) {
	entries, err := os.ReadDir(filepath.Join(e.opts.Dir, namesName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // none was ever taken
	}
	if err != nil {
		return nil, fmt.Errorf("list names: %w", err)
	}
	for _, entry := range entries {
		owner, taken := e.nameOwner(entry.Name())
		if taken {
			rec, err := e.readRecord(owner)
			taken = err == nil && rec.Config.Spec.Name == entry.Name() || err != nil && !errors.Is(err, fs.ErrNotExist)
		}
		if !taken {
			files = append(files, e.namePath(entry.Name()))
		}
	}
	return files, nil
}

// freeNameOf frees a name where id has it. The store is locked.
func (e *Engine) freeNameOf(id sandbox.ID, name string) error {
	if owner, taken := e.nameOwner(name); !taken || owner != id {
		return nil
	}
	if err := os.Remove(e.namePath(name)); err != nil {
		return fmt.Errorf("free name: %w", err)
	}
	return nil
}

// discard takes back what [Engine.reserve] made, with the log that was opened
// since. What cannot be taken back is left to [Engine.Reconcile].
func (e *Engine) discard(rec Record) error {
	id, name := rec.Config.Spec.ID, rec.Config.Spec.Name
	return e.locked(func() error {
		if !e.complete(id) { // no log was opened
			return errors.Join(e.freeNameOf(id, name), os.RemoveAll(e.SandboxDir(id)))
		}
		_, err := e.dismantle(context.Background(), rec, func() error { return e.freeNameOf(id, name) })
		return err
	})
}

// freeUID picks a user that no sandbox has. The store is locked.
func (e *Engine) freeUID() (int, error) {
	if !e.root {
		return 0, nil
	}
	ids, err := e.ids()
	if err != nil {
		return 0, err
	}
	taken := map[int]bool{}
	for _, id := range ids {
		taken[e.ownerOf(id)] = true // whatever its record says, or whether it can be read
	}
	waiting, err := e.opts.Standby.UIDs()
	if err != nil {
		return 0, err
	}
	for _, uid := range waiting {
		taken[uid] = true
	}
	for {
		if uid := uidBase + rand.IntN(uidCount); !taken[uid] {
			return uid, nil
		}
	}
}

func (e *Engine) record(id sandbox.ID) (Record, error) {
	var rec Record
	data, err := os.ReadFile(filepath.Join(e.SandboxDir(id), recordName))
	if err != nil {
		return rec, err
	}
	if err := json.Unmarshal(data, &rec); err != nil {
		return rec, fmt.Errorf("read record of sandbox %s: %w", id.Short(), err)
	}
	if rec.Version != recordVersion {
		return rec, fmt.Errorf("sandbox %s was made by another creel (record version %d, this one knows %d); remove it with that one", id.Short(), rec.Version, recordVersion)
	}
	return rec, nil
}

// closeLogs puts the final roots of every run's log on the ledger: the task's,
// and those of helpers that were killed.
func (e *Engine) closeLogs(ctx context.Context, id sandbox.ID) error {
	return e.eachLog(id, func(dir string) error { return e.opts.Ledger.CloseSandbox(ctx, string(id), dir) })
}

func (e *Engine) eachLog(id sandbox.ID, do func(dir string) error) error {
	task := filepath.Join(e.SandboxDir(id), auditName)
	all, err := logsIn(e.SandboxDir(id))
	if err != nil {
		return err
	}
	if !slices.Contains(all, task) {
		all = append(all, task) // the ledger may know it
	}
	var errs []error
	for _, dir := range all {
		errs = append(errs, do(dir))
	}
	return errors.Join(errs...)
}

// logsIn are the directories of the logs in a sandbox's.
func logsIn(dir string) (all []string, err error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("find audit logs: %w", err)
	}
	for _, entry := range entries {
		if entry.Name() == auditName || strings.HasPrefix(entry.Name(), auditName+".") {
			all = append(all, filepath.Join(dir, entry.Name()))
		}
	}
	return all, nil
}

// remove deletes a sandbox, frees its name, and puts what is left of it on
// record. A log whose closing cannot be recorded is kept for a later command,
// whatever happens to the rest. The caller holds the keeper's lock.
func (e *Engine) remove(ctx context.Context, id sandbox.ID) error {
	store, err := e.lockStore()
	if err != nil {
		return err
	}
	defer store.Close()
	rec, err := e.readRecord(id)
	if errors.Is(err, fs.ErrNotExist) {
		return os.RemoveAll(e.SandboxDir(id)) // removed by another process, or never complete: it has no log
	}
	if err != nil {
		return e.damaged(id, err).errDamaged()
	}
	return e.takeAway(ctx, rec, func() error { return e.freeNameOf(id, rec.Config.Spec.Name) })
}

// takeAway is the end of a sandbox, with the proof that nothing of it is left.
// The store is locked.
func (e *Engine) takeAway(ctx context.Context, rec Record, freeNames func() error) error {
	kept, err := e.dismantle(ctx, rec, freeNames)
	if kept {
		return err
	}
	return errors.Join(err, e.proveGone(ctx, rec, false))
}

// dismantle removes a sandbox whose log is closed first, or else kept until
// that can be recorded. The store is locked.
func (e *Engine) dismantle(ctx context.Context, rec Record, freeNames func() error) (kept bool, _ error) {
	id, dir := rec.Config.Spec.ID, e.SandboxDir(rec.Config.Spec.ID)
	// The disk goes first: where it has filled the host's, the log has no room
	// until then.
	if err := os.RemoveAll(filepath.Join(dir, ScratchName)); err != nil && !errors.Is(err, syscall.ENOTDIR) {
		return true, fmt.Errorf("remove the writable disk: %w", err)
	}
	closed := e.closeLogs(ctx, id)
	if closed != nil {
		if err := e.eachLog(id, func(dir string) error { return e.opts.Ledger.SetAside(string(id), dir) }); err != nil {
			return true, fmt.Errorf("sandbox %s is kept, since its audit log can neither be closed nor kept otherwise: %w; try again when that is mended",
				rec.Config.Spec.Name, errors.Join(closed, err))
		}
	}
	if err := freeNames(); err != nil {
		return true, err
	}
	err := removeDir(dir)
	if closed != nil && !errors.Is(closed, audit.ErrUnsound) {
		closed = e.opts.Ledger.CloseAside(ctx) // there may be room now
	}
	if closed != nil && !errors.Is(closed, audit.ErrUnsound) {
		closed = fmt.Errorf("the audit log of sandbox %s is kept until its closing can be recorded: %w; make room, and the next command does it", rec.Config.Spec.Name, closed)
	}
	return false, errors.Join(closed, err)
}

// removeDir removes a sandbox's directory. What shows that it was complete goes
// before its record does, and that before the rest: a removal that is killed
// does not leave what looks damaged.
func removeDir(dir string) error {
	signs, err := logsIn(dir)
	if err != nil {
		return err
	}
	for _, path := range append(signs, filepath.Join(dir, processName), filepath.Join(dir, settledName), filepath.Join(dir, recordName)) {
		if err := os.RemoveAll(path); err != nil && !errors.Is(err, syscall.ENOTDIR) {
			return fmt.Errorf("remove sandbox directory: %w", err)
		}
	}
	return os.RemoveAll(dir)
}

// lockStore holds up every other process that makes or removes a sandbox.
func (e *Engine) lockStore() (*durable.Lock, error) {
	return durable.Acquire(context.Background(), filepath.Join(e.opts.Dir, storeLockName))
}

// locked calls do with the store locked.
func (e *Engine) locked(do func() error) error {
	store, err := e.lockStore()
	if err != nil {
		return err
	}
	defer store.Close()
	return do()
}
