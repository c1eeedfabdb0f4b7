// Package rundir is what a keeper leaves in its sandbox's directory for others
// to read: the status, and the output of a task that is kept. [Log] writes the
// output. A keeper parses what its guest sends and may have been taken over, so
// that readers take whatever lies there for hostile: they must not follow
// links, wait, or trust a size.
package rundir

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
	"time"
)

// The task's log in its sandbox's directory: JSON lines in two files, so that
// it holds the last one to two [logFileBytes] of output and no more.
const (
	logCurrent   = "task.log"
	logOlder     = "task.log.1"
	logFileBytes = 8 << 20
	logLineMax   = 128 << 10 // 64 KiB of output as base64, and the rest
)

// Entry is one piece of output as the task wrote it.
type Entry struct {
	Time   time.Time `json:"time"`
	Stream int       `json:"stream"` // 1 stdout, 2 stderr
	Data   []byte    `json:"data"`   // base64 in the file: output need not be text
}

// Log writes a kept task's output. Followers are woken by each entry.
type Log struct {
	dir *os.Root

	mu      sync.Mutex
	file    *os.File
	size    int64
	changed chan struct{} // closed at each entry, and at the end
	ended   bool
}

// New goes on with the log in dir. The caller ends it.
func New(dir *os.Root) (*Log, error) {
	f, err := dir.OpenFile(logCurrent, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open task log: %w", err)
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("open task log: %w", err)
	}
	return &Log{dir: dir, file: f, size: info.Size(), changed: make(chan struct{})}, nil
}

// Append adds one entry, beginning a new file where this one is full.
func (l *Log) Append(stream int, data []byte) error {
	line, err := json.Marshal(Entry{Time: time.Now().UTC(), Stream: stream, Data: data})
	if err != nil {
		return fmt.Errorf("encode log entry: %w", err)
	}
	line = append(line, '\n')
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.size+int64(len(line)) > logFileBytes {
		if err := l.rotate(); err != nil {
			return err
		}
	}
	n, err := l.file.Write(line)
	l.size += int64(n)
	close(l.changed)
	l.changed = make(chan struct{})
	if err != nil {
		return fmt.Errorf("write task log: %w", err)
	}
	return nil
}

func (l *Log) rotate() error {
	if err := l.dir.Rename(logCurrent, logOlder); err != nil {
		return fmt.Errorf("rotate task log: %w", err)
	}
	f, err := l.dir.OpenFile(logCurrent, os.O_CREATE|os.O_WRONLY|os.O_APPEND|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("rotate task log: %w", err)
	}
	l.file.Close()
	l.file, l.size = f, 0
	return nil
}

// End wakes followers for the last time.
func (l *Log) End() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.ended {
		l.ended = true
		close(l.changed)
		l.file.Close()
	}
}

// wait is closed at the next entry; over says that there will be none.
func (l *Log) wait() (next <-chan struct{}, over bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.changed, l.ended
}

// ReadLog calls each for every entry that a keeper's directory still has,
// oldest first. A last line that is still being written is left out, and so is
// what no honest keeper writes into a file: more than it may hold.
func ReadLog(dir string, each func(Entry) error) error {
	for _, name := range []string{logOlder, logCurrent} {
		f, err := openUntrusted(dir, name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			err = readEntries(bufio.NewReaderSize(io.LimitReader(f, logFileBytes), logLineMax), each)
			f.Close()
		} else {
			err = &damagedError{err}
		}
		if damaged, ok := errors.AsType[*damagedError](err); ok {
			return fmt.Errorf("read task log: %w; look at %s, or remove the sandbox with `creel rm`", damaged.error, dir)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// damagedError is about a log, not about what is done with it.
type damagedError struct{ error }

// readEntries returns nil at the end of what is there.
func readEntries(r *bufio.Reader, each func(Entry) error) error {
	for {
		line, err := r.ReadSlice('\n')
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return &damagedError{err}
		}
		var e Entry
		if err := json.Unmarshal(line, &e); err != nil {
			return &damagedError{err}
		}
		if err := each(e); err != nil {
			return err
		}
	}
}

// Follow sends the log's lines, and goes on with new ones until the task's
// output is complete.
func (l *Log) Follow(ctx context.Context, w io.Writer) error {
	older, err := l.dir.Open(logOlder)
	if err == nil {
		_, err = io.Copy(w, older)
		older.Close()
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read task log: %w", err)
	}
	f, err := l.dir.Open(logCurrent)
	if err != nil {
		return fmt.Errorf("read task log: %w", err)
	}
	for {
		next, over := l.wait()
		if f, err = l.drain(w, f); err != nil || over {
			f.Close()
			return err
		}
		select {
		case <-next:
		case <-ctx.Done():
			f.Close()
			return ctx.Err()
		}
	}
}

// drain copies f to its end and, where it was rotated meanwhile, the rest of
// it and the file that has replaced it, which it returns.
func (l *Log) drain(w io.Writer, f *os.File) (*os.File, error) {
	for {
		if _, err := io.Copy(w, f); err != nil {
			return f, err
		}
		now, err := l.dir.Open(logCurrent)
		if err != nil {
			return f, fmt.Errorf("read task log: %w", err)
		}
		a, errA := f.Stat()
		b, errB := now.Stat()
		if errA == nil && errB == nil && os.SameFile(a, b) {
			now.Close()
			return f, nil
		}
		_, err = io.Copy(w, f) // rotated: it does not grow any more
		f.Close()
		f = now
		if err != nil {
			return f, err
		}
	}
}

// Decode reads the lines that a followed log sends.
func Decode(r io.Reader, each func(Entry) error) error {
	err := readEntries(bufio.NewReaderSize(r, logLineMax), each)
	if damaged, ok := errors.AsType[*damagedError](err); ok {
		return fmt.Errorf("read task log: %w", damaged.error)
	}
	return err
}
