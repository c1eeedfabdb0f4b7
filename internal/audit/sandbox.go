package audit

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"creel/internal/audit/chain"
	"creel/internal/durable"

	"golang.org/x/sys/unix"
)

// OpenSandbox records that a sandbox's log begins, and makes it in dir, which
// is made too. The log is on the disk before its opening is on record, so that
// whoever is killed between leaves no opening without a log. Where the error
// came behind the record, the log is open all the same: the caller closes it.
// The key is for the sandbox's keeper alone; nothing else keeps its private half.
func (l *Ledger) OpenSandbox(ctx context.Context, id, dir string) (SandboxKey, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return SandboxKey{}, fmt.Errorf("open sandbox log: %w", err)
	}
	if !chain.IsName(id) {
		return SandboxKey{}, fmt.Errorf("open sandbox log: id %q: want letters, digits, '.', '_' and '-'", id)
	}
	there, err := exists(filepath.Join(dir, LogName))
	if err == nil && there {
		err = errors.New("there is one already; close it first")
	}
	if err != nil {
		return SandboxKey{}, fmt.Errorf("open sandbox log in %s: %w", dir, err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return SandboxKey{}, fmt.Errorf("open sandbox log: %w", err)
	}
	key, err := newSandboxKey(id, cmp.Or(l.MaxLog, DefaultMaxLog))
	if err != nil {
		return SandboxKey{}, err
	}
	opened, err := Event{Kind: KindOpened, Sandbox: id, Data: Opened{Log: key.Origin, Key: key.Public, Dir: dir}}.encode()
	if err != nil {
		return SandboxKey{}, err
	}
	makeLog := func(checkpoint string) error {
		return errors.Join(newLog(filepath.Join(dir, LogName), key, checkpoint), durable.Sync(dir))
	}
	if err := ctx.Err(); err != nil {
		return SandboxKey{}, err
	}
	if err := l.locked(func() error { return l.append([]chain.Entry{opened}, makeLog, l.key.signer) }); err != nil {
		return SandboxKey{}, err
	}
	return key, nil
}

// ErrUnsound is of a log that is not as its keeper wrote it; its closing, with
// what is wrong, is on the ledger.
var ErrUnsound = errors.New("the audit log is not sound, which is on record")

// CloseSandbox ends the log that was opened for id in dir, whose keeper must
// have gone: it checks the log, takes it into the ledger's own directory,
// records its final root, and removes it from dir. A log that is not sound is
// closed as well, with what is wrong on record, and [ErrUnsound] is then the
// error; a log that is closed already is none. With any other error the log is
// not closed, and stays where it is.
func (l *Ledger) CloseSandbox(ctx context.Context, id, dir string) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return fmt.Errorf("close sandbox log: %w", err)
	}
	return l.closing(func() error {
		opened, found, err := l.findOpen(id, func(o *Opened) bool { return o.Dir == dir })
		if err != nil || !found {
			return err
		}
		return l.closeLog(ctx, id, opened)
	})
}

// closing calls do while no other process closes a log, or removes one.
func (l *Ledger) closing(do func() error) error {
	lock, err := durable.OpenLock(filepath.Join(l.dir, closeName), unix.O_NOFOLLOW)
	if err == nil {
		defer lock.Close()
		err = lock.Lock(context.Background())
	}
	if err != nil {
		return fmt.Errorf("lock closing of logs: %w", err)
	}
	return do()
}

func (l *Ledger) closeLog(ctx context.Context, id string, opened Opened) error {
	closed, err := l.archive(ctx, opened)
	if err != nil {
		return fmt.Errorf("close sandbox log: %w", err)
	}
	if err := l.Append(ctx, Event{Kind: KindClosed, Sandbox: id, Data: closed}); err != nil {
		return err
	}
	at := asidePath(l.dir, opened.Log)
	if _, err := os.Lstat(at); err != nil { // else another log may be where it was
		at = opened.Dir
	}
	removeLog(at)
	if closed.Fault != "" {
		return fmt.Errorf("sandbox %s: %w: %s", id, ErrUnsound, closed.Fault)
	}
	return nil
}

// SetAside moves the log that was opened for id in dir, and that could not be
// closed, to the ledger's own directory, so that dir can be removed.
// [Ledger.CloseAside] closes it. It needs no room on the disk.
func (l *Ledger) SetAside(id, dir string) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return fmt.Errorf("set sandbox log aside: %w", err)
	}
	return l.closing(func() error {
		opened, found, err := l.findOpen(id, func(o *Opened) bool { return o.Dir == dir })
		if err != nil || !found {
			return err
		}
		if err := os.Rename(dir, asidePath(l.dir, opened.Log)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("set sandbox log aside: %w", err)
		}
		return nil
	})
}

// CloseAside closes the logs that were set aside.
func (l *Ledger) CloseAside(ctx context.Context) error {
	entries, err := os.ReadDir(filepath.Join(l.dir, asideName))
	if errors.Is(err, fs.ErrNotExist) || len(entries) == 0 && err == nil {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list logs that were set aside: %w", err)
	}
	return l.closing(func() error {
		var errs []error
		for _, e := range entries {
			errs = append(errs, l.closeOneAside(ctx, e.Name()))
		}
		return errors.Join(errs...)
	})
}

func (l *Ledger) closeOneAside(ctx context.Context, name string) error {
	id := name[:max(strings.LastIndexByte(name, '-'), 0)]
	opened, found, err := l.findOpen(id, func(o *Opened) bool { return filepath.Base(asidePath(l.dir, o.Log)) == name })
	if err != nil {
		return err
	}
	if !found { // another command was faster, or was killed behind the closing
		removeLog(filepath.Join(l.dir, asideName, name))
		return nil
	}
	return l.closeLog(ctx, id, opened)
}

// Unclosed calls yield for each log that was opened and not closed: those of
// running sandboxes, and those of keepers that died.
func (l *Ledger) Unclosed(ctx context.Context, yield func(sandbox string, o Opened) error) error {
	type open struct {
		sandbox string
		data    Opened
	}
	var all []open
	paths, err := Segments(l.dir)
	if err != nil {
		return err
	}
	for _, p := range paths {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		err := eachOpening(p, nil, func(r Record, o *Opened, c *Closed) {
			if o != nil {
				all = append(all, open{r.Sandbox, *o})
				return
			}
			all = slices.DeleteFunc(all, func(x open) bool { return x.data.Log == c.Log })
		})
		if err != nil {
			return err
		}
	}
	for _, o := range all {
		if err := yield(o.sandbox, o.data); err != nil {
			return err
		}
	}
	return nil
}

// findOpen looks for the newest opening of id that is meant, and whether it is
// still open. It reads the newest segments first.
func (l *Ledger) findOpen(id string, meant func(*Opened) bool) (Opened, bool, error) {
	paths, err := Segments(l.dir)
	if err != nil {
		return Opened{}, false, err
	}
	closed := map[string]bool{}
	for _, p := range slices.Backward(paths) {
		var last *Opened
		err := eachOpening(p, []byte(id), func(r Record, o *Opened, c *Closed) {
			switch {
			case r.Sandbox != id:
			case c != nil:
				closed[c.Log] = true
			case meant(o):
				last = o
			}
		})
		if err != nil {
			return Opened{}, false, err
		}
		if last != nil {
			return *last, !closed[last.Log], nil
		}
	}
	return Opened{}, false, nil
}

// eachOpening calls f for the openings and closings in one segment, of the
// lines that contain part.
func eachOpening(path string, part []byte, f func(Record, *Opened, *Closed)) error {
	return eachRecord(path, []Kind{KindOpened, KindClosed}, part, func(r Record) {
		switch r.Kind {
		case KindOpened:
			if o, err := decodeData[Opened](r); err == nil {
				f(r, &o, nil)
			}
		case KindClosed:
			if c, err := decodeData[Closed](r); err == nil {
				f(r, nil, &c)
			}
		}
	})
}

func eachPruned(path string, f func(Pruned)) error {
	return eachRecord(path, []Kind{KindPruned}, nil, func(r Record) {
		if p, err := decodeData[Pruned](r); err == nil {
			f(p)
		}
	})
}

// eachRecord calls f for the records of some kinds in one segment, of the lines
// that contain part.
func eachRecord(path string, kinds []Kind, part []byte, f func(Record)) error {
	file, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("read ledger: %w", err)
	}
	defer file.Close()
	br, spill := bufio.NewReaderSize(file, 64<<10), []byte(nil)
	for {
		raw, err := chain.ReadLine(br, &spill)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read ledger %s: %w", filepath.Base(path), err)
		}
		meant := slices.ContainsFunc(kinds, func(k Kind) bool { return bytes.Contains(raw, []byte(`"kind":"`+k+`"`)) })
		if !meant || !bytes.Contains(raw, part) {
			continue
		}
		ln, err := chain.Parse(raw)
		if err != nil {
			continue // torn; the ledger sets it aside
		}
		if r := ln.Record(); slices.Contains(kinds, r.Kind) {
			f(r)
		}
	}
}

// archive copies a log out of its keeper's reach, and checks the copy.
func (l *Ledger) archive(ctx context.Context, o Opened) (Closed, error) {
	closed := Closed{Log: o.Log}
	source, _, err := OpenUnclosed(l.dir, o)
	if errors.Is(err, fs.ErrNotExist) { // a copy was taken, and its closing could not be recorded
		source, err = os.Open(ArchivePath(l.dir, o.Log))
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		closed.Fault = "it is missing"
		return closed, nil
	case isNoLog(err):
		closed.Fault = err.Error()
		return closed, nil
	case err != nil:
		return closed, err
	}
	defer source.Close()
	to := ArchivePath(l.dir, o.Log)
	tmp, err := os.OpenFile(to+".tmp", os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return closed, err
	}
	defer os.Remove(tmp.Name())
	defer tmp.Close()
	const most = DefaultMaxLog + chain.MaxTorn
	n, err := io.Copy(tmp, io.LimitReader(source, most+1))
	if err != nil {
		return closed, err
	}
	st, err := readLog(ctx, tmp, o, nil)
	if err != nil {
		return closed, err
	}
	closed.Ended, closed.Fault = st.ended, st.fault
	if st.head.Size > 0 {
		closed.Head = &st.head
	}
	if n > most && closed.Fault == "" {
		closed.Fault = fmt.Sprintf("it is longer than %d bytes", most)
	}
	if len(st.torn) > 0 && closed.Fault == "" {
		about := describeTorn(st.torn, path.Join(tornName, filepath.Base(to)))
		closed.Torn = &about
		if err := durable.Replace(filepath.Join(l.dir, about.File), st.torn); err != nil {
			return closed, err
		}
	}
	if closed.Fault == "" {
		if err := tmp.Truncate(st.end); err != nil { // what was torn, and zeros
			return closed, err
		}
	}
	if err := tmp.Sync(); err != nil {
		return closed, err
	}
	return closed, durable.Rename(tmp.Name(), to)
}

// ArchivePath is where a closed log is; origin is creel/log/SANDBOX/RANDOM.
func ArchivePath(dir, origin string) string {
	return filepath.Join(dir, logsName, path.Base(path.Dir(origin))+"-"+path.Base(origin)+extension)
}

// asidePath is the directory of a log that was set aside.
func asidePath(dir, origin string) string {
	return filepath.Join(dir, asideName, strings.TrimSuffix(filepath.Base(ArchivePath(dir, origin)), extension))
}

// OpenUnclosed opens a log that is not closed where it is: with its keeper, or
// set aside in the audit directory dir. Of one that was set aside, another run's
// may be where it was.
func OpenUnclosed(dir string, o Opened) (f *os.File, at string, err error) {
	aside := asidePath(dir, o.Log)
	for _, at := range []string{aside, o.Dir, aside} { // again: it may be moved between the two
		f, err := OpenUntrusted(at)
		if !errors.Is(err, fs.ErrNotExist) {
			return f, filepath.Join(at, LogName), err
		}
	}
	return nil, "", fs.ErrNotExist
}

// OpenUntrusted opens the log in a directory that belongs to a keeper, which
// may have been taken over: it follows no link and waits for nothing.
func OpenUntrusted(dir string) (*os.File, error) {
	at, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open directory", Path: dir, Err: err}
	}
	defer unix.Close(at)
	fd, err := unix.Openat(at, LogName, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: filepath.Join(dir, LogName), Err: err}
	}
	f := os.NewFile(uintptr(fd), LogName)
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s: %w", filepath.Join(dir, LogName), errNotRegular)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

var errNotRegular = errors.New("is not a regular file")

// isNoLog reports whether an error of [OpenUntrusted] is about what is in the
// log's place: a link, a file for a directory, a socket or device. Any other is
// about who opens it, and says nothing of the log.
func isNoLog(err error) bool {
	for _, about := range []error{errNotRegular, unix.ELOOP, unix.ENOTDIR, unix.ENXIO, unix.ENODEV} {
		if errors.Is(err, about) {
			return true
		}
	}
	return false
}

// removeLog removes a log that was taken in, and its directory if nothing else
// is there. What cannot be removed is left to who owns the directory.
func removeLog(dir string) {
	at, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(at)
	if unix.Unlinkat(at, LogName, 0) == nil {
		os.Remove(dir)
	}
}
