package image

import (
	"runtime"
	"strings"
	"testing"
)

// A platform is taken in the words that Docker takes, and what is none is
// answered with how one is written.
func TestParsePlatform(t *testing.T) {
	here := "linux/" + runtime.GOARCH
	for text, want := range map[string]string{
		"amd64": "linux/amd64", "x86_64": "linux/amd64", "linux/x86_64": "linux/amd64", "LINUX/AMD64": "linux/amd64", "linux": here, "Linux": here,
		"linux/amd64/v1": "linux/amd64", "linux/amd64/v2": "linux/amd64/v2", "aarch64": "linux/arm64", "linux/arm64/v8": "linux/arm64",
		"linux/arm": "linux/arm/v7", "armel": "linux/arm/v6", "linux/arm/6": "linux/arm/v6", "i386": "linux/386", "windows/amd64": "windows/amd64", "macos": "darwin/" + runtime.GOARCH,
		"linux/new-one": "linux/new-one",
	} {
		if p, err := parsePlatform(text); err != nil || p.String() != want {
			t.Errorf("%s: %s, %v; want %s", text, p, err, want)
		}
	}
	for _, text := range []string{"bogus", "linux/", "/amd64", "a/b/c/d", "lin ux/amd64", "linux/amd64:1"} {
		for _, err := range []error{CheckPlatform(text), func() error { _, err := parsePlatform(text); return err }()} {
			if err == nil || !strings.Contains(err.Error(), "write it as linux/") {
				t.Errorf("%q: %v", text, err)
			}
		}
	}
	if err := CheckPlatform("LINUX/" + strings.ToUpper(runtime.GOARCH)); err != nil {
		t.Error(err)
	}
}
