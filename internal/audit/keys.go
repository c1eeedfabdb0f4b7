package audit

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"creel/internal/audit/chain"
	"creel/internal/durable"

	"golang.org/x/mod/sumdb/note"
)

// Files of the installation's key, in the audit directory.
const (
	keyName     = "key"      // private and public, mode 0600
	nextKeyName = "key.next" // a key that the ledger may not have recorded yet
	PublicName  = "key.pub"  // the public key, for people
)

// keyPair is an installation's key.
type keyPair struct {
	private, public string
	signer          note.Signer
	verifier        note.Verifier
}

func newKeyPair(origin string) (keyPair, error) {
	if origin == "" {
		var b [8]byte
		rand.Read(b[:])
		origin = "creel/ledger/" + hex.EncodeToString(b[:])
	}
	private, public, err := note.GenerateKey(rand.Reader, origin)
	if err != nil {
		return keyPair{}, fmt.Errorf("make audit key: %w", err)
	}
	return parseKeyPair(private + "\n" + public + "\n")
}

func parseKeyPair(text string) (k keyPair, err error) {
	lines := strings.Split(text, "\n")
	if len(lines) != 3 || lines[2] != "" {
		return k, errors.New("audit key: want two lines, the private and the public key")
	}
	k.private, k.public = lines[0], lines[1]
	if k.signer, err = note.NewSigner(k.private); err != nil {
		return k, fmt.Errorf("audit key: %w", err)
	}
	if k.verifier, err = chain.Verifier(k.public); err != nil {
		return k, err
	}
	if k.signer.Name() != k.verifier.Name() || k.signer.KeyHash() != k.verifier.KeyHash() {
		return k, errors.New("audit key: the private and the public key do not belong together")
	}
	return k, nil
}

func readKeyPair(dir, name string) (keyPair, error) {
	data, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return keyPair{}, fmt.Errorf("read audit key: %w; %s", err, mendKey)
	}
	k, err := parseKeyPair(string(data))
	if err != nil {
		return k, fmt.Errorf("%s is damaged: %w; %s", filepath.Join(dir, name), err, mendKey)
	}
	return k, nil
}

// offerKey writes a key that is not in force yet.
func offerKey(dir string, k keyPair) error {
	if err := durable.Sweep(dir); err != nil { // of keys that were never offered
		return err
	}
	return durable.Replace(filepath.Join(dir, nextKeyName), []byte(k.private+"\n"+k.public+"\n"))
}

// promoteKey puts the offered key in force and forgets the one before.
func promoteKey(dir string, k keyPair) error {
	err := durable.Replace(filepath.Join(dir, PublicName), []byte(k.public+"\n"))
	if err == nil {
		err = durable.Rename(filepath.Join(dir, nextKeyName), filepath.Join(dir, keyName))
	}
	if err != nil {
		return fmt.Errorf("put audit key in force: %w", err)
	}
	return nil
}

// keyInForce returns the key that signed the ledger's last checkpoint. Where a
// crash came between recording a new key and putting it in force, the latter is
// done now.
func keyInForce(dir, checkpoint string) (keyPair, error) {
	key, offered, err := findKey(dir, checkpoint)
	if err == nil && offered {
		err = promoteKey(dir, key)
	}
	return key, err
}

// findKey is keyInForce, and changes nothing: offered says that the key is to
// be put in force.
func findKey(dir, checkpoint string) (key keyPair, offered bool, err error) {
	current, currentErr := readKeyPair(dir, keyName)
	next, nextErr := readKeyPair(dir, nextKeyName)
	// A rotation's checkpoint is signed by both, and then the next one counts.
	if nextErr == nil && chain.SignedBy(checkpoint, next.verifier) {
		return next, true, nil
	}
	if currentErr != nil {
		return keyPair{}, false, currentErr
	}
	if !chain.SignedBy(checkpoint, current.verifier) {
		return keyPair{}, false, errors.New("the ledger's last checkpoint is not signed by this installation's key: it was changed or exchanged; run `creel audit verify`")
	}
	return current, false, nil
}

func exists(path string) (bool, error) {
	_, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}
