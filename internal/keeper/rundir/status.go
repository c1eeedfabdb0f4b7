package rundir

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"

	"creel/internal/sandbox"
)

const statusName = "status.json"

// SaveStatus replaces the status file: readers see the old or the new one.
func SaveStatus(dir *os.Root, status sandbox.Status) error {
	data, err := json.MarshalIndent(status, "", "  ")
	if err != nil {
		return fmt.Errorf("encode status: %w", err)
	}
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
	return SaveStatus(root, status)
}

// ReadStatus reads what a keeper last wrote into a sandbox's directory.
func ReadStatus(dir string) (sandbox.Status, error) {
	var status sandbox.Status
	f, err := openUntrusted(dir, statusName)
	if err != nil {
		return status, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxStatusBytes))
	if err != nil {
		return status, fmt.Errorf("read status: %w", err)
	}
	if err := json.Unmarshal(data, &status); err != nil {
		return status, fmt.Errorf("decode status in %s: %w", dir, err)
	}
	return status, nil
}

const maxStatusBytes = 1 << 20

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
