package images

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path"
	"testing"
)

func TestBusybox(t *testing.T) {
	if _, err := exec.LookPath("apt-get"); err != nil {
		t.Skip("needs apt-get, which downloads busybox")
	}
	file, err := Busybox(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	again, err := Busybox(t.Context())
	if err != nil || again != file {
		t.Fatalf("the second call gave %q, %v, want the cached %q", again, err, file)
	}
	found := entries(t, file)
	for name, h := range found {
		if h.Uid != 0 || h.Gid != 0 {
			t.Errorf("%s belongs to %d:%d, want root", name, h.Uid, h.Gid)
		}
	}
	for _, name := range []string{"./bin/sh", "./bin/true", "./bin/cat"} {
		if h := found[name]; h == nil || h.Linkname != "busybox" {
			t.Errorf("%s is %+v, want a link to busybox", name, h)
		}
	}
	if h := found["./bin/busybox"]; h == nil || h.Mode&0o111 != 0o111 {
		t.Errorf("busybox is %+v, want a program", h)
	}
}

// The large ones have what tests and examples call, in places on the PATH.
func TestPrograms(t *testing.T) {
	if testing.Short() {
		t.Skip("takes minutes the first time")
	}
	for _, tc := range []struct {
		kind, needs string
		image       func(context.Context) (string, error)
		programs    []string
	}{
		{"clients", "mmdebstrap", Clients, []string{"/usr/local/bin/probe", "/usr/local/bin/gohttp", "/usr/local/bin/jfetch", "/usr/bin/curl", "/usr/bin/wget",
			"/usr/bin/git", "/usr/bin/ssh", "/usr/bin/openssl", "/usr/bin/python3", "/usr/bin/pip", "/usr/bin/node", "/usr/bin/npm", "/usr/bin/java",
			"/usr/bin/redis-cli", "/usr/bin/psql", "/usr/bin/apt-get", "/usr/bin/dig", "/usr/bin/ip", "/usr/bin/ping"}},
		{"agents", "npm", Agents, []string{"/usr/local/bin/claude", "/usr/local/bin/codex", "/usr/bin/git", "/usr/bin/rg"}},
	} {
		t.Run(tc.kind, func(t *testing.T) {
			if _, err := exec.LookPath(tc.needs); err != nil {
				t.Skipf("needs %s", tc.needs)
			}
			file, err := tc.image(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			found := entries(t, file)
			for _, name := range tc.programs {
				if h := followed(found, name); h == nil || h.Typeflag != tar.TypeReg || h.Mode&0o111 != 0o111 {
					t.Errorf("%s is %+v, want a program", name, h)
				}
			}
			if h := found["./"]; h == nil || h.Mode&0o777 != 0o755 {
				t.Errorf("the root directory is %+v, want mode 755", h)
			}
		})
	}
}

// entries are the headers of a tar; the last of a name counts.
func entries(t *testing.T, file string) map[string]*tar.Header {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	found := map[string]*tar.Header{}
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return found
		}
		if err != nil {
			t.Fatal(err)
		}
		found[h.Name] = h
	}
}

// followed is what links lead to.
func followed(found map[string]*tar.Header, name string) *tar.Header {
	for range 10 {
		h := found["."+name]
		if h == nil || h.Typeflag != tar.TypeSymlink {
			return h
		}
		if !path.IsAbs(h.Linkname) {
			h.Linkname = path.Join(path.Dir(name), h.Linkname)
		}
		name = h.Linkname
	}
	return nil
}
