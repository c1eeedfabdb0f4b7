package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"creel/internal/durable"
	"creel/internal/keeper/rundir"
	"creel/internal/sandbox"
)

// Read is the record of a sandbox. It tells one whose record is damaged, or gone
// though the sandbox was complete, from one that is half made or half removed:
// that one's error is [fs.ErrNotExist].
func (s *Store) Read(id sandbox.ID) (Record, error) {
	rec, err := s.read(id)
	if errors.Is(err, fs.ErrNotExist) && s.Complete(id) {
		rec, err = s.read(id) // it may have been made between the two looks
	}
	if errors.Is(err, fs.ErrNotExist) && s.Complete(id) {
		return rec, fmt.Errorf("%s of sandbox %s is missing", recordName, id.Short())
	}
	if err == nil && rec.ID() != id {
		return rec, fmt.Errorf("%s of sandbox %s is that of another one", recordName, id.Short())
	}
	return rec, err
}

func (s *Store) read(id sandbox.ID) (Record, error) {
	var rec Record
	data, err := os.ReadFile(filepath.Join(s.Dir(id), recordName))
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

// Write replaces a sandbox's record. The store is locked.
func (s *Store) Write(rec Record) error {
	data, err := json.MarshalIndent(rec, "", "  ")
	if err != nil {
		return fmt.Errorf("encode record: %w", err)
	}
	if err := durable.Swap(filepath.Join(s.Dir(rec.ID()), recordName), data); err != nil {
		return fmt.Errorf("write record: %w", err)
	}
	return nil
}

// Change changes the record of a sandbox that exists, as it is now: other
// commands change other parts of it.
func (s *Store) Change(id sandbox.ID, change func(*Record) error) error {
	return s.Locked(func() error {
		rec, err := s.read(id)
		if err != nil {
			return err
		}
		if err := change(&rec); err != nil {
			return err
		}
		return s.Write(rec)
	})
}

// Complete reports whether a sandbox has what is made after its record is, and
// removed before that is: a log, a keeper, or the mark that it has ended.
func (s *Store) Complete(id sandbox.ID) bool {
	logs, err := s.logs(id)
	if err != nil || len(logs) > 0 {
		return true // what cannot be looked at may be
	}
	for _, name := range []string{ProcessName, settledName} {
		if _, err := os.Lstat(filepath.Join(s.Dir(id), name)); err == nil {
			return true
		}
	}
	return false
}

// Settled reports whether a sandbox has ended and is kept.
func (s *Store) Settled(id sandbox.ID) bool {
	_, err := os.Lstat(filepath.Join(s.Dir(id), settledName))
	return err == nil
}

// Settle notes that a sandbox has ended and is kept: its audit log is closed.
func (s *Store) Settle(id sandbox.ID) error {
	return os.WriteFile(filepath.Join(s.Dir(id), settledName), nil, 0o600)
}

// Status reads what the keeper last said; before its first word the sandbox is
// created. The error is [fs.ErrNotExist] where the sandbox is gone; any other is
// about what the keeper wrote.
func (s *Store) Status(rec Record) (sandbox.Status, error) {
	id := rec.ID()
	status, err := rundir.ReadStatus(s.KeeperDir(id))
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat(s.Dir(id)); err != nil {
			return status, err
		}
		status, err = sandbox.Status{State: sandbox.StateCreated, CreatedAt: rec.Created, TemplateDigest: rec.Config.Template}, nil
		if s.Settled(id) {
			status.State, status.ExitCode = sandbox.StateLost, sandbox.ExitCreel
			status.Error = "it has ended, and what its keeper said of that is gone"
		}
	}
	status.ID, status.Name = id, rec.Name() // it may have been renamed
	return status, err
}

// Logs are the directories of a sandbox's audit logs: the task's, which the
// ledger may know even if it is gone, and those of helper runs.
func (s *Store) Logs(id sandbox.ID) ([]string, error) {
	all, err := s.logs(id)
	if task := filepath.Join(s.Dir(id), AuditName); err == nil && !slices.Contains(all, task) {
		all = append(all, task)
	}
	return all, err
}

// logs are those that are there.
func (s *Store) logs(id sandbox.ID) (all []string, err error) {
	dir := s.Dir(id)
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("find audit logs: %w", err)
	}
	for _, entry := range entries {
		if entry.Name() == AuditName || strings.HasPrefix(entry.Name(), AuditName+".") {
			all = append(all, filepath.Join(dir, entry.Name()))
		}
	}
	return all, nil
}

// HelperLog names the log of one more helper run: each run has its own.
func (s *Store) HelperLog(id sandbox.ID) string {
	for n := 1; ; n++ {
		name := fmt.Sprintf("%s.%d", AuditName, n)
		if _, err := os.Lstat(filepath.Join(s.Dir(id), name)); errors.Is(err, fs.ErrNotExist) {
			return name
		}
	}
}
