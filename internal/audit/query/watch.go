package query

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// watch wakes a reader when something changes in the directories of its
// sources.
type watch struct {
	file *os.File
	dirs map[string]int // directory → inotify's number for it
	stop func() bool
}

func newWatch(ctx context.Context) (*watch, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("follow audit record: %w", err)
	}
	w := &watch{file: os.NewFile(uintptr(fd), "inotify"), dirs: map[string]int{}}
	w.stop = context.AfterFunc(ctx, func() { w.file.Close() })
	return w, nil
}

// cover watches exactly the directories of the sources.
func (w *watch) cover(sources []*source) error {
	raw, err := w.file.SyscallConn()
	if err != nil {
		return fmt.Errorf("follow audit record: %w", err)
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		wanted := map[string]bool{}
		for _, s := range sources {
			dir := s.watched()
			wanted[dir] = true
			if _, ok := w.dirs[dir]; ok {
				continue
			}
			const events = unix.IN_MODIFY | unix.IN_CREATE | unix.IN_MOVED_TO | unix.IN_DELETE
			number, err := unix.InotifyAddWatch(int(fd), dir, events)
			if errors.Is(err, fs.ErrNotExist) {
				continue // a log that was closed meanwhile
			}
			if err != nil {
				failed = fmt.Errorf("follow audit record in %s: %w", dir, err)
				return
			}
			w.dirs[dir] = number
		}
		for dir, number := range w.dirs {
			if !wanted[dir] {
				unix.InotifyRmWatch(int(fd), uint32(number)) // gone with its directory, perhaps
				delete(w.dirs, dir)
			}
		}
	})
	return errors.Join(err, failed)
}

// wait returns when something has changed. What has, the sources find out.
func (w *watch) wait() error {
	var buf [64 << 10]byte
	if _, err := w.file.Read(buf[:]); err != nil {
		return fmt.Errorf("follow audit record: %w", err)
	}
	return nil
}

func (w *watch) close() {
	if w.stop() {
		w.file.Close()
	}
}
