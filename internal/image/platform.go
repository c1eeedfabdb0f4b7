package image

import (
	"cmp"
	"fmt"
	"regexp"
	"runtime"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// What a platform of one word may be; Docker's users leave the other half out.
var (
	systems       = []string{"linux", "windows", "darwin", "freebsd", "netbsd", "openbsd", "dragonfly", "solaris", "illumos", "aix", "android", "plan9", "wasip1"}
	architectures = []string{"amd64", "386", "arm64", "arm", "loong64", "mips", "mipsle", "mips64", "mips64le", "ppc64", "ppc64le", "riscv64", "s390x", "wasm"}
	platformWord  = regexp.MustCompile(`^[a-z0-9_.-]+$`)
)

// parsePlatform reads os, architecture or os/architecture[/variant], in the
// words that Docker takes for them: x86_64 is amd64, and capitals do not count.
func parsePlatform(s string) (v1.Platform, error) {
	p := hostPlatform()
	words := strings.Split(strings.ToLower(s), "/")
	for _, word := range words {
		if !platformWord.MatchString(word) {
			return p, noPlatform(s)
		}
	}
	variant := ""
	switch len(words) {
	case 1:
		system, arch := systemOf(words[0]), words[0]
		if slices.Contains(systems, system) {
			p.OS = system
			return p, nil
		}
		p.Architecture, p.Variant = architectureOf(arch, "")
		if !slices.Contains(architectures, p.Architecture) {
			return p, noPlatform(s)
		}
		return p, nil
	case 3:
		variant = words[2]
	case 2:
	default:
		return p, noPlatform(s)
	}
	p.OS = systemOf(words[0])
	p.Architecture, p.Variant = architectureOf(words[1], variant)
	return p, nil
}

func noPlatform(s string) error {
	return fmt.Errorf("platform %.80q: %w; write it as linux/%s", s, errdefs.ErrInvalidArgument, runtime.GOARCH)
}

func systemOf(word string) string {
	if word == "macos" {
		return "darwin"
	}
	return word
}

// architectureOf is an architecture with its variant under the names that
// indexes have; a variant that every processor of it has is none.
func architectureOf(arch, variant string) (string, string) {
	switch arch {
	case "x86_64", "x86-64":
		arch = "amd64"
	case "i386":
		arch = "386"
	case "aarch64":
		arch = "arm64"
	case "armhf":
		arch, variant = "arm", "v7"
	case "armel":
		arch, variant = "arm", "v6"
	}
	switch {
	case arch == "arm":
		variant = "v" + strings.TrimPrefix(cmp.Or(variant, "v7"), "v")
	case arch == "amd64" && variant == "v1", arch == "arm64" && (variant == "8" || variant == "v8"), arch == "386":
		variant = ""
	}
	return arch, variant
}
