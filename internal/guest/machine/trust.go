package machine

import (
	"bytes"
	"crypto/sha1"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"
	"unicode/utf16"

	"golang.org/x/sys/unix"
)

const (
	ownCertificate = "/usr/local/share/ca-certificates/creel.crt"
	mainBundle     = "/etc/ssl/certs/ca-certificates.crt"
)

// bundles are where distributions keep the certificates that are trusted.
var bundles = []string{
	mainBundle,                         // Debian, Alpine
	"/etc/pki/tls/certs/ca-bundle.crt", // Fedora, RHEL
	"/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem", // what it links to there
	"/etc/ssl/ca-bundle.pem",                            // SUSE
	"/etc/ssl/cert.pem",                                 // Alpine, BSD
}

// keyStores are where Java keeps its own.
var keyStores = []string{
	"/etc/ssl/certs/java/cacerts", "/etc/pki/java/cacerts", "/usr/lib/jvm/*/lib/security/cacerts",
	"/usr/lib/jvm/*/jre/lib/security/cacerts", "/opt/java/*/lib/security/cacerts", "/opt/*/lib/security/cacerts",
}

// trust adds a certificate to every bundle and key store of the image that
// exists, once where two names lead to one file. Afterwards the main bundle
// exists in any case: variables of the sandbox name it.
func trust(text string) error {
	if text == "" {
		return nil
	}
	var done []os.FileInfo
	found := ""
	for _, name := range bundles {
		added, err := changeOnce(name, &done, func(f *os.File) error { return appendTo(f, "\n"+text) })
		if err != nil {
			return err
		}
		if added && found == "" {
			found = name
		}
	}
	if _, err := os.Stat(mainBundle); errors.Is(err, fs.ErrNotExist) {
		if err := makeBundle(found, text); err != nil {
			return err
		}
	}
	for _, pattern := range keyStores {
		stores, err := filepath.Glob(pattern)
		if err != nil {
			return err
		}
		for _, name := range stores {
			if _, err := changeOnce(name, &done, func(f *os.File) error { return addToKeyStore(f, text) }); err != nil {
				return err
			}
		}
	}
	return writeFile(ownCertificate, text, 0o644)
}

// makeBundle makes the main one: of another, which has the certificate, or of
// the certificate alone.
func makeBundle(of, text string) error {
	if of != "" {
		data, err := os.ReadFile(of)
		if err != nil {
			return err
		}
		text = string(data)
	}
	return writeFile(mainBundle, text, 0o644)
}

// changeOnce changes a file unless it was changed before by another name, or
// is none.
func changeOnce(name string, done *[]os.FileInfo, change func(*os.File) error) (changed bool, err error) {
	info, err := os.Stat(name)
	if errors.Is(err, fs.ErrNotExist) || err == nil && (!info.Mode().IsRegular() || contains(*done, info)) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return false, err
	}
	err = change(f)
	// Copied up from the image, it is another inode now.
	info, serr := f.Stat()
	if err := errors.Join(err, serr, f.Close()); err != nil {
		return false, fmt.Errorf("add to %s: %w", name, err)
	}
	*done = append(*done, info)
	return true, nil
}

func appendTo(f *os.File, text string) error {
	if _, err := f.Seek(0, io.SeekEnd); err != nil {
		return err
	}
	_, err := f.WriteString(text)
	return err
}

func contains(files []os.FileInfo, f os.FileInfo) bool {
	for _, other := range files {
		if os.SameFile(other, f) {
			return true
		}
	}
	return false
}

// Java's key store, version 2 (sun.security.provider.JavaKeyStore): a head,
// entries, and a digest over a password and all before it.
const (
	storeMagic    = 0xfeedfeed
	storeHead     = 12         // magic, version, number of entries
	storePassword = "changeit" // the one that every distribution uses
)

// addToKeyStore adds a certificate. A store in another format (PKCS #12) is
// replaced by one that has what the main bundle has, which Java reads as well:
// it tells the formats apart by itself.
func addToKeyStore(f *os.File, text string) error {
	data, err := io.ReadAll(f)
	if err != nil {
		return err
	}
	if len(data) < storeHead+sha1.Size || binary.BigEndian.Uint32(data) != storeMagic || binary.BigEndian.Uint32(data[4:]) != 2 {
		bundle, err := os.ReadFile(mainBundle)
		if err != nil {
			return err
		}
		data = binary.BigEndian.AppendUint32(nil, storeMagic)
		data = binary.BigEndian.AppendUint32(data, 2)
		data = append(binary.BigEndian.AppendUint32(data, 0), make([]byte, sha1.Size)...)
		text = string(bundle)
	}
	data = data[:len(data)-sha1.Size]
	count := binary.BigEndian.Uint32(data[8:])
	for block, rest := pem.Decode([]byte(text)); block != nil; block, rest = pem.Decode(rest) {
		data = appendEntry(data, fmt.Sprintf("creel-%d", count), block.Bytes)
		count++
	}
	binary.BigEndian.PutUint32(data[8:], count)
	data = append(data, storeDigest(data)...)
	if _, err := f.WriteAt(data, 0); err != nil {
		return err
	}
	return unix.Ftruncate(int(f.Fd()), int64(len(data)))
}

// appendEntry adds a trusted certificate.
func appendEntry(data []byte, alias string, der []byte) []byte {
	const trustedCertificate = 2
	data = binary.BigEndian.AppendUint32(data, trustedCertificate)
	data = appendText(data, alias)
	data = binary.BigEndian.AppendUint64(data, uint64(time.Now().UnixMilli()))
	data = appendText(data, "X.509")
	data = binary.BigEndian.AppendUint32(data, uint32(len(der)))
	return append(data, der...)
}

func appendText(data []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint16(data, uint16(len(s))), s...)
}

func storeDigest(data []byte) []byte {
	var salted bytes.Buffer
	for _, c := range utf16.Encode([]rune(storePassword)) {
		salted.Write([]byte{byte(c >> 8), byte(c)})
	}
	salted.WriteString("Mighty Aphrodite") // as the format has it
	salted.Write(data)
	sum := sha1.Sum(salted.Bytes())
	return sum[:]
}
