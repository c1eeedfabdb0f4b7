package audit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"creel/internal/audit/chain"
	"creel/internal/durable"

	"golang.org/x/sys/unix"
)

// What mends a record that nothing can be appended to.
const (
	mendLedger = "`creel audit verify` lists every fault; put the audit directory back from a copy, or move it away whole: the next command begins anew"
	mendKey    = "put it back from a copy, or move the whole audit directory away: the next command begins anew, and what was moved away still verifies with key.pub"
	mendPublic = "`creel audit key rotate` writes it anew, for a new key"
)

// Inspect looks at the ledger in dir and its key, changes nothing and takes
// little time: of the ledger it reads the newest file. Broken says why nothing
// can be put on record, doubt what else is not as it should be; both say what
// mends it. [Verify] looks at everything.
func Inspect(ctx context.Context, dir string) (broken, doubt error) {
	unlock, err := readLock(dir)
	if err != nil {
		return err, nil
	}
	defer unlock()
	paths, err := Segments(dir)
	if errors.Is(err, fs.ErrNotExist) {
		paths, err = nil, nil
	}
	if err != nil {
		return err, nil
	}
	if len(paths) == 0 {
		return beganBefore(dir), nil
	}
	seg, err := scanNewest(ctx, paths)
	if err != nil {
		return fmt.Errorf("%w; %s", err, mendLedger), nil
	}
	key, _, err := findKey(dir, seg.checkpoint)
	if err != nil {
		return err, nil
	}
	noted, err := readHead(dir, key.verifier)
	if err == nil {
		err = seg.reaches(noted)
	}
	if err != nil {
		return err, nil
	}
	var doubts []error
	if seg.lacks(noted) {
		doubts = append(doubts, fmt.Errorf("%s is missing, which says how far the ledger had come; `creel audit verify --expect` with what you keep elsewhere shows whether its end was cut off, and the next command makes the file anew", HeadName))
	}
	public, err := os.ReadFile(filepath.Join(dir, PublicName))
	if err == nil && strings.TrimSpace(string(public)) != key.public {
		err = fmt.Errorf("%s is not the public key in force", PublicName)
	}
	if err != nil {
		doubts = append(doubts, fmt.Errorf("%w; %s", err, mendPublic))
	}
	return nil, errors.Join(doubts...)
}

// readLock holds up whoever writes to the ledger in dir, where that has a lock: a
// copy may have none, or be read-only, and nobody writes there.
func readLock(dir string) (unlock func(), err error) {
	lock, err := durable.OpenExisting(filepath.Join(dir, lockName))
	if err != nil {
		return func() {}, nil
	}
	if err := lock.Share(context.Background()); err != nil {
		lock.Close()
		return nil, fmt.Errorf("lock ledger: %w", err)
	}
	return func() { lock.Close() }, nil
}

// scanNewest checks the lines of the newest segment, from where the one before
// it ends. The file is closed again.
func scanNewest(ctx context.Context, paths []string) (*segment, error) {
	s := chain.Scanner{}
	if len(paths) > 1 {
		before, err := readSegment(paths[len(paths)-2])
		if err != nil {
			return nil, err
		}
		s.Origin, s.Tree = before.head.Origin, before.tree
	}
	newest := paths[len(paths)-1]
	seg, err := readSegment(newest)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(newest)
	if err != nil {
		return nil, fmt.Errorf("open ledger: %w", err)
	}
	defer f.Close()
	if err := s.Scan(ctx, io.LimitReader(f, seg.size)); err != nil {
		return nil, fmt.Errorf("read ledger %s: %w", filepath.Base(newest), err)
	}
	return seg, nil
}

// readSegment finds the last commit of a segment, and closes it again.
func readSegment(path string) (*segment, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open ledger: %w", err)
	}
	defer f.Close()
	s := &segment{file: f, path: path}
	if _, err := s.load(); err != nil {
		return nil, fmt.Errorf("read ledger %s: %w", filepath.Base(path), err)
	}
	return s, nil
}
