package machine

import (
	"errors"
	"fmt"
	"os"
	"path"

	"golang.org/x/sys/unix"
)

// writeFile replaces a file of the image; a link in its place is not followed.
// It keeps to what costs little: an [os.File] would ask the poller first, and
// ext4 writes a file to the disk at once that was cut off, even if it was
// empty, and then written.
func writeFile(name, content string, mode uint32) error {
	const flags = unix.O_WRONLY | unix.O_CREAT | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC
	fd, err := unix.Open(name, flags, mode)
	switch err {
	case unix.ENOENT:
		if err := os.MkdirAll(path.Dir(name), 0o755); err != nil {
			return err
		}
		fd, err = unix.Open(name, flags, mode)
	case unix.ELOOP, unix.ENXIO:
		if err := unix.Unlink(name); err != nil {
			return fmt.Errorf("replace %s: %w", name, err)
		}
		fd, err = unix.Open(name, flags, mode)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	var stat unix.Stat_t
	if err = unix.Fstat(fd, &stat); err == nil && stat.Size > 0 {
		err = unix.Ftruncate(fd, 0)
	}
	if err == nil {
		_, err = writeAll(fd, []byte(content))
	}
	if err := errors.Join(err, unix.Close(fd)); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}

// plainEtc tells whether the image at root has an /etc like the one that a
// scratch disk has ready in its upper directory: one that the disk's, which
// hides its owner, mode and attributes, is as good as. None at all is.
func plainEtc(root string) (bool, error) {
	const name, mode = "/etc", unix.S_IFDIR | 0o755
	var stat unix.Stat_t
	err := unix.Lstat(root+name, &stat)
	if err == unix.ENOENT {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("look at the image's %s: %w", name, err)
	}
	if stat.Mode != mode || stat.Uid != 0 || stat.Gid != 0 {
		return false, nil
	}
	attributes, err := unix.Llistxattr(root+name, nil)
	if err != nil && err != unix.EOPNOTSUPP {
		return false, fmt.Errorf("attributes of the image's %s: %w", name, err)
	}
	return attributes <= 0, nil
}

// dropPlanted removes what a scratch disk has ready for an ordinary image,
// unless the disk was in use before: then its /etc is the task's.
func dropPlanted(scratch string) error {
	used, err := os.ReadDir(scratch + "/work") // the overlay makes a directory there
	if err != nil || len(used) > 0 {
		return err
	}
	return os.RemoveAll(scratch + "/upper/etc")
}
