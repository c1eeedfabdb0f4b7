package machine

import (
	"errors"
	"fmt"
	"os"
	"path"

	"golang.org/x/sys/unix"
)

// writeFile replaces a file of the image; a link in its place is not followed.
func writeFile(name, content string, mode uint32) error {
	const flags = unix.O_WRONLY | unix.O_CREAT | unix.O_TRUNC | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC
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
	f := os.NewFile(uintptr(fd), name)
	_, err = f.WriteString(content)
	return errors.Join(err, f.Close())
}
