// Package template keeps templates: machines that were booted once and frozen,
// each a directory with memory, device state and a [Manifest] that names every
// part by digest. [Store.For] finds one or builds it, [Store.Open] hands its
// parts to a clone by way of a holder ([HolderMain]), and [Disks] is the one
// list of disks that template and clone share.
//
// The package must not know tasks, policies or the command line, and nothing
// of a user's image runs before the freeze. docs/templates.md says what is
// checked when.
package template

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"creel/internal/sandbox"
	"creel/internal/template/content"
	"creel/internal/vm"
)

const (
	formatVersion = 1
	manifestName  = "manifest.json"
	memoryName    = "memory"
	stateName     = "state"

	maxManifest = 64 << 10
)

// Recipe is everything about a template that is known before it boots. Two
// requests with the same recipe are served by the same template.
type Recipe struct {
	Format  int           `json:"format"`
	Image   string        `json:"image"` // image ID
	RootFS  RootFSPart    `json:"rootfs"`
	Kernel  KernelPart    `json:"kernel"`
	Agent   string        `json:"agent"` // digest of the guest agent
	VMM     VMM           `json:"vmm"`
	Accel   sandbox.Accel `json:"accel"`
	CPU     string        `json:"cpu"`               // model given to the guest
	HostCPU string        `json:"hostCPU,omitempty"` // digest of what it shows of the host's; none under emulation
	Shape   vm.Shape      `json:"shape"`
	Cmdline string        `json:"cmdline"` // of the kernel
	Devices string        `json:"devices"` // names the device set and its order
}

// RootFSPart is the root file system, which lies in the image store.
type RootFSPart struct {
	Digest    string `json:"digest"`
	SizeBytes int64  `json:"sizeBytes"`
	Path      string `json:"path"` // relative to the directory of all templates
}

// KernelPart is the guest kernel and its modules.
type KernelPart struct {
	Package string `json:"package"`
	Version string `json:"version"`
	Release string `json:"release"`
	Digest  string `json:"digest"`  // of the ELF
	Modules string `json:"modules"` // over all modules, names and order
}

// VMM is the program that runs the machine.
type VMM struct {
	Name    string `json:"name"`
	Version string `json:"version"`
	Digest  string `json:"digest"` // of the binary
}

// Part is one file of a template.
type Part struct {
	Digest    string `json:"digest"`
	SizeBytes int64  `json:"sizeBytes"`
}

// Manifest names every part of a template.
type Manifest struct {
	Digest  string    `json:"digest,omitempty"` // over all that follows but Created
	Created time.Time `json:"created,omitzero"`
	Recipe
	Initramfs string `json:"initramfs"` // digest
	Memory    Part   `json:"memory"`    // digest of content.Memory
	State     Part   `json:"state"`
}

// key names the directory of the recipe's template.
func (r Recipe) key() string {
	return strings.TrimPrefix(content.Bytes(compact(r)), "sha256:")[:32]
}

// sum is the template digest: the SHA-256 of the manifest as compact JSON
// without "digest" and "created".
func (m Manifest) sum() string {
	m.Digest, m.Created = "", time.Time{}
	h := sha256.Sum256(compact(m))
	return "sha256:" + hex.EncodeToString(h[:])
}

// compact is JSON as the digests have it: no spaces, and nothing escaped that
// need not be, so that other programs can make the same.
func compact(v any) []byte {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		panic(err) // plain structs of strings and numbers
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}

// load reads the template in dir and checks that its manifest is whole: known
// format, digest, and the directory's name.
func load(dir string) (Manifest, error) {
	f, err := os.Open(filepath.Join(dir, manifestName))
	if err != nil {
		return Manifest{}, fmt.Errorf("open manifest: %w", err)
	}
	defer f.Close()
	key := filepath.Base(dir)
	var m Manifest
	data, err := io.ReadAll(io.LimitReader(f, maxManifest))
	if err == nil {
		m, err = parse(data)
	}
	if err == nil && m.key() != key {
		err = errors.New("manifest is another template's")
	}
	if err != nil {
		return Manifest{}, fmt.Errorf("template %s: %w; remove it with `creel template rm %s`, the next run builds it again", key[:12], err, key[:12])
	}
	return m, nil
}

func parse(data []byte) (Manifest, error) {
	var version struct {
		Format int `json:"format"`
	}
	if err := json.Unmarshal(data, &version); err != nil {
		return Manifest{}, fmt.Errorf("read manifest: %w", err)
	}
	if version.Format != formatVersion {
		return Manifest{}, fmt.Errorf("manifest has format %d, this creel knows %d", version.Format, formatVersion)
	}
	var m Manifest
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&m); err != nil {
		return Manifest{}, fmt.Errorf("read manifest: %w", err)
	}
	if got := m.sum(); got != m.Digest {
		return Manifest{}, fmt.Errorf("manifest has digest %s and names itself %s", got, m.Digest)
	}
	return m, nil
}
