package rundir

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"

	"creel/internal/sandbox"

	"golang.org/x/sys/unix"
)

const statusName = "status.json"

// SaveStatus replaces the status file: readers see the old or the new one. Where
// the host's disk has no room for a new one, the old is written over: that the
// disk is full is what people have to be told.
func SaveStatus(dir *os.Root, status sandbox.Status) error {
	data, err := encode(status)
	if err != nil {
		return err
	}
	err = replace(dir, data)
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		if overwrite(dir, data) == nil {
			return nil
		}
	}
	return err
}

// A status file ends in blanks: a later one has room in it for some words more.
const (
	statusBlock = 4096
	statusSpare = 1024
)

func encode(status sandbox.Status) ([]byte, error) {
	data, err := json.MarshalIndent(status, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode status: %w", err)
	}
	return pad(append(data, '\n'), (len(data)+statusSpare)/statusBlock*statusBlock+statusBlock), nil
}

func pad(data []byte, size int) []byte {
	return append(data, bytes.Repeat([]byte{' '}, size-len(data))...)
}

// overwrite writes over a status file that is large enough, in one go, so that
// it takes no room.
func overwrite(dir *os.Root, data []byte) error {
	f, err := dir.OpenFile(statusName, os.O_WRONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	data = bytes.TrimRight(data, " ")
	if !info.Mode().IsRegular() || info.Size() < int64(len(data)) {
		return fmt.Errorf("%s has no room for it", statusName)
	}
	_, err = f.WriteAt(pad(data, int(info.Size())), 0)
	return err
}

func replace(dir *os.Root, data []byte) error {
	// What lies there may be a trap by a keeper that was taken over.
	if err := dir.RemoveAll(statusName + ".new"); err != nil {
		return fmt.Errorf("write status: %w", err)
	}
	f, err := dir.OpenFile(statusName+".new", os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("write status: %w", err)
	}
	_, err = f.Write(data)
	if err := errors.Join(err, f.Close()); err != nil {
		dir.Remove(statusName + ".new")
		return fmt.Errorf("write status: %w", err)
	}
	if err := dir.Rename(statusName+".new", statusName); err != nil {
		return fmt.Errorf("write status: %w", err)
	}
	return nil
}

// WriteStatus is for whoever finds a sandbox whose keeper has died.
func WriteStatus(dir string, status sandbox.Status) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("write status: %w", err)
	}
	defer root.Close()
	if err := root.RemoveAll(statusName); err != nil {
		return fmt.Errorf("write status: %w", err)
	}
	data, err := encode(status)
	if err != nil {
		return err
	}
	return replace(root, data)
}

// ReadStatus reads what a keeper last wrote into a sandbox's directory.
func ReadStatus(dir string) (sandbox.Status, error) {
	var status sandbox.Status
	f, err := openUntrusted(dir, statusName)
	if err != nil {
		return status, err
	}
	defer f.Close()
	data, err := readStatus(f)
	if err != nil {
		return status, fmt.Errorf("read status: %w", err)
	}
	if err := json.Unmarshal(data, &status); err != nil {
		return status, fmt.Errorf("decode status in %s: %w", dir, err)
	}
	return status, nil
}

const maxStatusBytes = 1 << 20

// readStatus reads until two readings are the same, a few times: the file may be
// written over meanwhile.
func readStatus(f *os.File) ([]byte, error) {
	const readings = 4
	var last []byte
	for range readings {
		data, err := io.ReadAll(io.NewSectionReader(f, 0, maxStatusBytes))
		if err != nil {
			return nil, err
		}
		if last != nil && bytes.Equal(data, last) {
			break
		}
		last = data
	}
	return last, nil
}

// openUntrusted opens a file that a keeper wrote, which a guest may have taken
// over: a regular file of its directory, and nothing that leads elsewhere or
// makes the reader wait.
func openUntrusted(dir, name string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s in %s is not a file", name, dir)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
