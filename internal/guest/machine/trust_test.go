package machine

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha1"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/pem"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func certificate(t *testing.T, name string) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// emptyStore is a key store with no entries.
func emptyStore() []byte {
	data := binary.BigEndian.AppendUint32(nil, storeMagic)
	data = binary.BigEndian.AppendUint32(data, 2)
	data = binary.BigEndian.AppendUint32(data, 0)
	return append(data, storeDigest(data)...)
}

func added(t *testing.T, before []byte, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "cacerts")
	if err := os.WriteFile(name, before, 0o644); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := addToKeyStore(f, text); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestKeyStoreGrowsByOneAndKeepsItsDigest(t *testing.T) {
	first := added(t, emptyStore(), certificate(t, "first"))
	data, err := os.ReadFile(first)
	if err != nil {
		t.Fatal(err)
	}
	data, err = os.ReadFile(added(t, data, certificate(t, "second")))
	if err != nil {
		t.Fatal(err)
	}
	if n := binary.BigEndian.Uint32(data[8:]); n != 2 {
		t.Errorf("%d entries, want 2", n)
	}
	body, sum := data[:len(data)-sha1.Size], data[len(data)-sha1.Size:]
	if !bytes.Equal(storeDigest(body), sum) {
		t.Error("the digest is not that of the store")
	}
}

// TestJavaReadsTheKeyStore asks Java itself, where there is one.
func TestJavaReadsTheKeyStore(t *testing.T) {
	keytool, err := exec.LookPath("keytool")
	if err != nil {
		t.Skip("there is no keytool; a Java runtime brings it")
	}
	list := func(name string) string {
		out, err := exec.Command(keytool, "-list", "-v", "-keystore", name, "-storepass", storePassword).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return string(out)
	}
	file := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(file, []byte(certificate(t, "from-java")), 0o644); err != nil {
		t.Fatal(err)
	}
	store := filepath.Join(t.TempDir(), "jks")
	if out, err := exec.Command(keytool, "-importcert", "-noprompt", "-alias", "one", "-file", file, "-keystore", store,
		"-storetype", "JKS", "-storepass", storePassword).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	before, err := os.ReadFile(store)
	if err != nil {
		t.Fatal(err)
	}
	got := list(added(t, before, certificate(t, "from-creel")))
	for _, want := range []string{"CN=from-java", "CN=from-creel", "contains 2 entries"} {
		if !strings.Contains(got, want) {
			t.Errorf("keytool does not show %q:\n%s", want, got)
		}
	}
}

func TestTextIsAddedAtTheEndOnce(t *testing.T) {
	dir := t.TempDir()
	name, link := filepath.Join(dir, "bundle"), filepath.Join(dir, "link")
	if err := os.WriteFile(name, []byte("old"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(name, link); err != nil {
		t.Fatal(err)
	}
	var done []os.FileInfo
	for i, n := range []string{name, link, filepath.Join(dir, "none"), dir} {
		changed, err := changeOnce(n, &done, func(f *os.File) error { return appendTo(f, " new") })
		if err != nil || changed != (i == 0) {
			t.Errorf("%s: %v, %v", n, changed, err)
		}
	}
	if data, _ := os.ReadFile(name); string(data) != "old new" {
		t.Errorf("%q", data)
	}
}
