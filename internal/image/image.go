// Package image keeps images: it takes them in from archives, OCI layouts and
// root file system tars, stores their parts by digest, and gives each one root
// file system as a read-only ext4 file that is built once. [Store] is the local
// store, [Image] what it knows of one image, [RootFS] the file.
//
// The package must not know machines, sandboxes or templates.
package image

import (
	"bytes"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"creel/internal/image/blobs"
)

// Config is what an image says of the processes that run from it.
type Config struct {
	Entrypoint   []string          `json:"entrypoint,omitempty"`
	Cmd          []string          `json:"cmd,omitempty"`
	Env          []string          `json:"env,omitempty"` // NAME=value
	User         string            `json:"user,omitempty"`
	WorkingDir   string            `json:"workingDir,omitempty"`
	StopSignal   string            `json:"stopSignal,omitempty"`
	Labels       map[string]string `json:"labels,omitempty"`
	ExposedPorts []string          `json:"exposedPorts,omitempty"` // port/protocol, sorted
	Volumes      []string          `json:"volumes,omitempty"`      // sorted
}

// Image is one image in the store.
type Image struct {
	ID        string    `json:"id"`      // sha256:… of its configuration
	Digest    string    `json:"digest"`  // sha256:… of its manifest
	Names     []string  `json:"names"`   // name:tag as people write them, sorted; may be empty
	Digests   []string  `json:"digests"` // name@sha256:… under which it was pulled or pushed
	Config    Config    `json:"config"`
	Created   time.Time `json:"created"`
	SizeBytes int64     `json:"sizeBytes"` // of its root file system
	Layers    []string  `json:"layers"`    // sha256:… of each uncompressed layer, lowest first
	Platform  string    `json:"platform"`  // os/architecture[/variant]
}

// RootFS is an image's root file system as one ext4 file, never written again.
type RootFS struct {
	Digest    string `json:"digest"` // sha256:… of the file
	Path      string `json:"path"`
	SizeBytes int64  `json:"sizeBytes"`
}

// parsed is an image's manifest and configuration with their bytes.
type parsed struct {
	manifest    *v1.Manifest
	manifestRaw []byte
	digest      string // of manifestRaw
	config      *v1.ConfigFile
	configRaw   []byte
}

func parseImage(manifestRaw, configRaw []byte) (*parsed, error) {
	m, err := v1.ParseManifest(bytes.NewReader(manifestRaw))
	if err != nil {
		return nil, fmt.Errorf("parse manifest: %w", err)
	}
	c, err := v1.ParseConfigFile(bytes.NewReader(configRaw))
	if err != nil {
		return nil, fmt.Errorf("parse image configuration: %w", err)
	}
	if len(c.RootFS.DiffIDs) != len(m.Layers) {
		return nil, fmt.Errorf("manifest has %d layers, but the image's configuration %d", len(m.Layers), len(c.RootFS.DiffIDs))
	}
	if len(m.Layers) == 0 || len(m.Layers) > maxLayers {
		return nil, fmt.Errorf("image has %d layers, want 1 to %d", len(m.Layers), maxLayers)
	}
	if c.OS != "" && c.OS != "linux" {
		return nil, fmt.Errorf("image is for %s, Creel runs linux only", c.OS)
	}
	return &parsed{manifest: m, manifestRaw: manifestRaw, digest: blobs.Digest(manifestRaw), config: c, configRaw: configRaw}, nil
}

func (p *parsed) diffIDs() []string {
	ids := make([]string, len(p.config.RootFS.DiffIDs))
	for i, h := range p.config.RootFS.DiffIDs {
		ids[i] = h.String()
	}
	return ids
}

func (p *parsed) image(names, digests []string, size int64) Image {
	c := p.config
	return Image{
		ID: p.manifest.Config.Digest.String(), Digest: p.digest, Names: names, Digests: digests, Created: c.Created.UTC(),
		SizeBytes: size, Layers: p.diffIDs(), Platform: platformOf(c),
		Config: Config{
			Entrypoint: c.Config.Entrypoint, Cmd: c.Config.Cmd, Env: c.Config.Env, User: c.Config.User,
			WorkingDir: c.Config.WorkingDir, StopSignal: c.Config.StopSignal, Labels: c.Config.Labels,
			ExposedPorts: slices.Sorted(maps.Keys(c.Config.ExposedPorts)),
			Volumes:      slices.Sorted(maps.Keys(c.Config.Volumes)),
		},
	}
}

// CheckPlatform says why a sandbox on this machine cannot run what is for a
// platform, as [PullOptions] has it; "" is this machine's.
func CheckPlatform(platform string) error {
	if platform == "" {
		return nil
	}
	p, err := parsePlatform(platform)
	if err != nil {
		return err
	}
	if here := hostPlatform(); p.OS != here.OS || p.Architecture != here.Architecture {
		return fmt.Errorf("platform %s: sandboxes on this machine run %s; use an image for that", p, here)
	}
	return nil
}

// platformOf takes a configuration without a platform for this machine's, as
// some builders leave it empty.
func platformOf(c *v1.ConfigFile) string {
	p := v1.Platform{OS: "linux", Architecture: c.Architecture, Variant: c.Variant}
	if p.Architecture == "" {
		p.Architecture = runtime.GOARCH
	}
	return p.String()
}
