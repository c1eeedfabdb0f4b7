package machine

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"

	"golang.org/x/sys/unix"
)

const ownCertificate = "/usr/local/share/ca-certificates/creel.crt"

// bundles are where distributions keep the certificates that are trusted.
var bundles = []string{
	"/etc/ssl/certs/ca-certificates.crt",                // Debian, Alpine
	"/etc/pki/tls/certs/ca-bundle.crt",                  // Fedora, RHEL
	"/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem", // what it links to there
	"/etc/ssl/ca-bundle.pem",                            // SUSE
	"/etc/ssl/cert.pem",                                 // Alpine, BSD
}

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

// trust adds a certificate to every bundle of the image that exists, once
// where two names lead to one file.
func trust(pem string) error {
	if pem == "" {
		return nil
	}
	var done []os.FileInfo
	for _, name := range bundles {
		info, err := os.Stat(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if !info.Mode().IsRegular() || contains(done, info) {
			continue
		}
		f, err := os.OpenFile(name, os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			return err
		}
		_, err = f.WriteString("\n" + pem)
		// Copied up from the image, it is another inode now.
		info, serr := f.Stat()
		if err := errors.Join(err, serr, f.Close()); err != nil {
			return fmt.Errorf("add to %s: %w", name, err)
		}
		done = append(done, info)
	}
	return writeFile(ownCertificate, pem, 0o644)
}

func contains(files []os.FileInfo, f os.FileInfo) bool {
	for _, other := range files {
		if os.SameFile(other, f) {
			return true
		}
	}
	return false
}
