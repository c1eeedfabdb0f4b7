package audit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"creel/internal/audit/batch"
	"creel/internal/audit/chain"
	"creel/internal/durable"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/sys/unix"
)

// Ledger is an installation's ledger, open to append. Any number of processes
// may have it open, and any number of goroutines use it. It is a [Recorder].
type Ledger struct {
	recorder
	dir string

	// MaxLog is the quota of logs that are opened from now on, at least
	// MinMaxLog; 0: DefaultMaxLog.
	MaxLog int64

	mu     sync.Mutex    // around every use of the file by this process
	lock   *durable.Lock // around every use of it by any process
	key    keyPair
	seg    *segment // as this process last left it; nil: to be read
	broken error    // set once the disk cannot be trusted any more

	// headless: what said how far the ledger had come is missing, as the next
	// commit records before it is made anew.
	headless bool

	// unrecorded are torn ends that were set aside and not yet recorded.
	unrecorded []chain.Entry
}

// OpenLedger is [PrepareLedger] for a ledger that can be appended to; it makes
// what is missing on first use, the installation's key among it. The caller
// closes it.
func OpenLedger(dir string) (*Ledger, error) {
	l, err := PrepareLedger(dir)
	if err != nil {
		return nil, err
	}
	if err := l.Check(); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// Check fails where the ledger cannot be appended to.
func (l *Ledger) Check() error { return l.locked(func() error { return nil }) }

// PrepareLedger opens the ledger in dir without a look at it: each use of one
// that is damaged fails, and says why. The caller closes it.
func PrepareLedger(dir string) (*Ledger, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("open ledger: %w", err)
	}
	for _, d := range []string{dir, filepath.Join(dir, LedgerName), filepath.Join(dir, logsName), filepath.Join(dir, tornName)} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, fmt.Errorf("open ledger: %w", err)
		}
	}
	// It is needed where the disk is full, and too late to be made then.
	os.Mkdir(filepath.Join(dir, asideName), 0o700)
	l := &Ledger{dir: dir}
	if l.lock, err = durable.OpenLock(filepath.Join(dir, lockName), unix.O_NOFOLLOW); err != nil {
		return nil, fmt.Errorf("open ledger: %w", err)
	}
	l.batch = batch.New(l.write)
	return l, nil
}

// Close waits for appends under way and closes the ledger's files.
func (l *Ledger) Close() error {
	l.batch.Close()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.forget()
	return l.lock.Close()
}

// HeadMissing reports whether what says how far the ledger had come is missing:
// that the ledger's end was cut off would not be seen here.
func (l *Ledger) HeadMissing() (missing bool, err error) {
	err = l.locked(func() error { missing = l.headless; return nil })
	return missing, err
}

// PublicKey returns the installation's public key, in the form of
// golang.org/x/mod/sumdb/note.
func (l *Ledger) PublicKey() (public string, err error) {
	err = l.locked(func() error { public = l.key.public; return nil })
	return public, err
}

// Checkpoint returns the ledger's last checkpoint, a signed note. Kept
// elsewhere, it shows later that nothing before it was taken away.
func (l *Ledger) Checkpoint() (checkpoint string, err error) {
	err = l.locked(func() error { checkpoint = l.seg.checkpoint; return nil })
	return checkpoint, err
}

// Signer signs with the installation's key: receipts.
func (l *Ledger) Signer() (signer note.Signer, err error) {
	err = l.locked(func() error { signer = l.key.signer; return nil })
	return signer, err
}

// RotateKey makes a new installation key and puts it in force. The old and the
// new key both sign the record of it, so whoever has the old public key can go
// on verifying; the old private key is forgotten.
func (l *Ledger) RotateKey() error {
	return l.locked(func() error {
		next, err := newKeyPair(l.seg.head.Origin)
		if err != nil {
			return err
		}
		if err := offerKey(l.dir, next); err != nil {
			return err
		}
		e, err := Event{Kind: KindKey, Data: keyData{Key: next.public, Retires: l.key.public}}.encode()
		if err != nil {
			return err
		}
		if err := l.append([]chain.Entry{e}, nil, l.key.signer, next.signer); err != nil {
			return err
		}
		l.key = next
		return promoteKey(l.dir, next)
	})
}

func (l *Ledger) write(entries []chain.Entry) (checkpoint string, err error) {
	err = l.locked(func() error {
		if err := l.append(entries, nil, l.key.signer); err != nil {
			return err
		}
		checkpoint = l.seg.checkpoint
		return nil
	})
	return checkpoint, err
}

// locked calls f while no other process writes, with the ledger's present state
// in l.key and l.seg.
func (l *Ledger) locked(f func() error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.broken != nil {
		return l.broken
	}
	if err := l.lock.Lock(context.Background()); err != nil {
		return fmt.Errorf("lock ledger: %w", err)
	}
	defer l.lock.Unlock()
	if err := l.refresh(); err != nil {
		l.forget()
		return err
	}
	return f()
}

// refresh brings l.seg up to what other processes have written.
func (l *Ledger) refresh() error {
	paths, err := Segments(l.dir)
	if err != nil {
		return err
	}
	if len(paths) == 0 {
		return l.begin()
	}
	newest := paths[len(paths)-1]
	if l.seg != nil && l.seg.path == newest {
		byName, err := os.Lstat(newest)
		if err != nil {
			return fmt.Errorf("look at ledger: %w", err)
		}
		open, err := l.seg.file.Stat()
		if err != nil {
			return fmt.Errorf("look at ledger: %w", err)
		}
		if os.SameFile(byName, open) && open.Size() == l.seg.size {
			return nil
		}
	}
	l.forget()
	seg, tail, err := openSegment(newest)
	if err != nil {
		return err
	}
	l.seg = seg
	if l.key, err = keyInForce(l.dir, seg.checkpoint); err != nil {
		return err
	}
	noted, err := readHead(l.dir, l.key.verifier)
	if err != nil {
		return err
	}
	if err := seg.reaches(noted); err != nil {
		return err
	}
	l.headless = seg.lacks(noted)
	return l.setAside(tail)
}

// begin makes the key and the first segment.
func (l *Ledger) begin() error {
	if err := beganBefore(l.dir); err != nil {
		return err
	}
	key, err := newKeyPair("")
	if err != nil {
		return err
	}
	if err := offerKey(l.dir, key); err != nil {
		return err
	}
	e, err := Event{Kind: KindKey, Data: keyData{Key: key.public}}.encode()
	if err != nil {
		return err
	}
	s := chain.Sealer{Origin: key.signer.Name(), Signers: []note.Signer{key.signer}, Peaks: true}
	c, err := s.Seal(&chain.Tree{}, []chain.Entry{e}, time.Now().UTC())
	if err != nil {
		return err
	}
	if l.seg, err = newSegment(l.dir, 0, c); err != nil {
		return err
	}
	l.key = key
	return promoteKey(l.dir, key)
}

// beganBefore fails where there was a ledger before.
func beganBefore(dir string) error {
	for _, name := range []string{keyName, HeadName} {
		there, err := exists(filepath.Join(dir, name))
		if err != nil {
			return fmt.Errorf("begin ledger: %w", err)
		}
		if there {
			return errors.New("the ledger's files are gone, but it had begun: put them back from a copy, or move the whole audit directory away to begin anew")
		}
	}
	return nil
}

// setAside moves what a crash left behind the last commit out of the ledger.
func (l *Ledger) setAside(tail []byte) error {
	if len(tail) == 0 {
		return nil
	}
	about := describeTorn(tail, "")
	about.File = fmt.Sprintf("%s/%012d-%s", tornName, l.seg.tree.Size, about.SHA256[:16])
	if err := durable.Replace(filepath.Join(l.dir, about.File), tail); err != nil {
		return err
	}
	if err := l.seg.file.Truncate(l.seg.size); err != nil {
		return fmt.Errorf("set torn end of ledger aside: %w", err)
	}
	e, err := Event{Kind: KindRecovered, Data: about}.encode()
	l.unrecorded = append(l.unrecorded, e)
	return err
}

// append writes one commit. What depends on its checkpoint and has to be there
// when it is written is done by before, if that is not nil; with its error
// nothing is written. The caller holds the locks.
func (l *Ledger) append(entries []chain.Entry, before func(checkpoint string) error, signers ...note.Signer) error {
	first := l.seg.tree.Size
	if l.headless {
		missing, err := Event{Kind: KindHead, Data: headData{Lines: first}}.encode()
		if err != nil {
			return err
		}
		entries = append([]chain.Entry{missing}, entries...)
	}
	entries = append(l.unrecorded[:len(l.unrecorded):len(l.unrecorded)], entries...)
	s := chain.Sealer{Origin: l.seg.head.Origin, Signers: signers, Peaks: true}
	c, err := s.Seal(&l.seg.tree, entries, time.Now().UTC())
	if err != nil {
		return err
	}
	if before != nil {
		if err := before(c.Checkpoint); err != nil {
			return err
		}
	}
	if l.seg.size+int64(len(c.Bytes)) > maxSegment {
		next, err := newSegment(l.dir, first, c)
		if err != nil {
			l.forget()
			return err
		}
		l.forget()
		l.seg = next
	} else {
		trusted, err := appendDurable(l.seg.file, l.seg.size, c.Bytes)
		if err != nil {
			err = fmt.Errorf("write ledger: %w", err)
			if !trusted {
				l.broken = err
			}
			return err
		}
		l.seg.size += int64(len(c.Bytes))
		l.seg.tree, l.seg.head, l.seg.checkpoint = c.Tree, c.Head, c.Checkpoint
	}
	l.unrecorded, l.headless = nil, false
	return writeHead(l.dir, c.Checkpoint)
}

func (l *Ledger) forget() {
	if l.seg != nil {
		l.seg.file.Close()
		l.seg = nil
	}
}
