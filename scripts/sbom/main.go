// Command sbom prints a CycloneDX 1.5 bill of materials of Go binaries, from
// what the linker wrote into them: `sbom VERSION BINARY...`. Equal binaries
// give equal bytes. It must not look anywhere but in the binaries.
package main

import (
	"cmp"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// bom has the parts of the format that we fill.
type bom struct {
	Format      string      `json:"bomFormat"`
	SpecVersion string      `json:"specVersion"`
	Version     int         `json:"version"`
	Metadata    metadata    `json:"metadata"`
	Components  []component `json:"components"`
	Dependents  []dependent `json:"dependencies"`
}

type metadata struct {
	Component component `json:"component"`
}

type component struct {
	Type       string     `json:"type"`
	Ref        string     `json:"bom-ref"`
	Name       string     `json:"name"`
	Version    string     `json:"version,omitempty"`
	PURL       string     `json:"purl,omitempty"`
	Hashes     []hash     `json:"hashes,omitempty"`
	Properties []property `json:"properties,omitempty"`
}

type hash struct {
	Algorithm string `json:"alg"`
	Content   string `json:"content"` // hexadecimal
}

type property struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

type dependent struct {
	Ref string   `json:"ref"`
	On  []string `json:"dependsOn"`
}

func main() {
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "usage: sbom VERSION BINARY...")
		os.Exit(2)
	}
	b, err := describe(os.Args[1], os.Args[2:])
	if err == nil {
		enc := json.NewEncoder(os.Stdout)
		enc.SetIndent("", "  ")
		err = enc.Encode(b)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "sbom:", err)
		os.Exit(1)
	}
}

func describe(version string, binaries []string) (bom, error) {
	b := bom{Format: "CycloneDX", SpecVersion: "1.5", Version: 1,
		Metadata: metadata{component{Type: "application", Ref: "creel", Name: "creel", Version: version}}}
	modules := map[string]component{}
	whole := dependent{Ref: "creel", On: []string{}}
	for _, path := range binaries {
		c, parts, err := program(path)
		if err != nil {
			return b, err
		}
		d := dependent{Ref: c.Ref, On: []string{}}
		for _, p := range parts {
			modules[p.Ref] = p
			d.On = append(d.On, p.Ref)
		}
		b.Components = append(b.Components, c)
		b.Dependents = append(b.Dependents, d)
		whole.On = append(whole.On, c.Ref)
	}
	b.Dependents = append(b.Dependents, whole)
	for _, m := range modules {
		b.Components = append(b.Components, m)
	}
	slices.SortFunc(b.Components, func(x, y component) int { return cmp.Compare(x.Ref, y.Ref) })
	return b, nil
}

// program is one binary, and the modules that it was linked from: Go's
// standard library and all others.
func program(path string) (component, []component, error) {
	info, err := buildinfo.ReadFile(path)
	if err != nil {
		return component{}, nil, fmt.Errorf("read what %s was built from: %w", path, err)
	}
	f, err := os.Open(path)
	if err != nil {
		return component{}, nil, err
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return component{}, nil, fmt.Errorf("hash %s: %w", path, err)
	}
	name := filepath.Base(path)
	c := component{
		Type: "file", Ref: "file:" + name, Name: name,
		Hashes: []hash{{"SHA-256", hex.EncodeToString(sum.Sum(nil))}},
	}
	parts := []component{module("stdlib", strings.TrimPrefix(info.GoVersion, "go"), "")}
	for _, m := range info.Deps {
		if m.Replace != nil {
			m = m.Replace
		}
		parts = append(parts, module(m.Path, m.Version, m.Sum))
	}
	return c, parts, nil
}

// module describes one. Its sum is Go's, over all its files; it is no hash of
// one file, and so it is a property.
func module(path, version, sum string) component {
	c := component{Type: "library", Name: path, Version: version, PURL: "pkg:golang/" + path + "@" + version}
	c.Ref = c.PURL
	if sum != "" {
		c.Properties = []property{{"go:sum", sum}}
	}
	return c
}
