// Package durable is how Creel's processes share files: [Replace] changes one
// as a whole, and [Lock] is a lock between processes. Nothing here depends on
// a process that ends in order, or on a machine that stays up. The package must
// not know what the files hold, and must not be used in a directory that
// somebody else can write to.
package durable

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
)

// partPrefix begins the name of a file that is being written.
const partPrefix = ".part-"

// Replace gives the file at path, which is made where absent, new content and
// mode 0600. Readers find the old content or the new one, whole. Once Replace
// has returned, a crash of the machine does not bring the old one back.
func Replace(path string, data []byte) error {
	if err := Swap(path, data); err != nil {
		return err
	}
	return Sync(filepath.Dir(path))
}

// Swap is [Replace] without the wait for the directory: a crash of the machine
// leaves the old content or the new one.
func Swap(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), partPrefix+"*") // 0600
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

// Sweep removes what writers left in a directory that were killed. The caller
// sees to it that nobody is writing there.
func Sweep(dir string) error {
	entries, err := os.ReadDir(dir)
	errs := []error{err}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), partPrefix) {
			errs = append(errs, os.Remove(filepath.Join(dir, e.Name())))
		}
	}
	return errors.Join(errs...)
}

// Rename moves a file or directory, whose content was synced, to a place in the
// same file system, and makes the move durable.
func Rename(from, to string) error {
	if err := os.Rename(from, to); err != nil {
		return err
	}
	return Sync(filepath.Dir(to))
}

// Sync makes the content of a file durable, or the names in a directory.
func Sync(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
