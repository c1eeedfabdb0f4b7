package images

import (
	"archive/tar"
	"errors"
	"io"
	"os"
	"os/exec"
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
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	found := map[string]*tar.Header{}
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Uid != 0 || h.Gid != 0 {
			t.Errorf("%s belongs to %d:%d, want root", h.Name, h.Uid, h.Gid)
		}
		found[h.Name] = h
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
