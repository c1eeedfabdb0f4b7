package archive

import (
	"archive/tar"
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

func tarOf(t *testing.T, entries ...tar.Header) *bytes.Buffer {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range entries {
		if h.Typeflag == tar.TypeReg {
			h.Size = 4
		}
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			w.Write([]byte("evil"))
		}
	}
	w.Close()
	return &b
}

// Each archive tries to write beside the directory that it is unpacked into.
func TestUnpackCannotLeave(t *testing.T) {
	for name, entries := range map[string][]tar.Header{
		"dots":     {{Name: "../outside", Typeflag: tar.TypeReg}},
		"absolute": {{Name: "/outside", Typeflag: tar.TypeReg}},
		"symlink": {
			{Name: "link", Typeflag: tar.TypeSymlink, Linkname: ".."},
			{Name: "link/outside", Typeflag: tar.TypeReg},
		},
		"symlink to the file": {
			{Name: "link", Typeflag: tar.TypeSymlink, Linkname: "../victim"},
			{Name: "link", Typeflag: tar.TypeReg},
		},
		"hard link": {
			{Name: "link", Typeflag: tar.TypeLink, Linkname: "../victim"},
			{Name: "link", Typeflag: tar.TypeReg},
		},
		"device": {{Name: "dev", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}},
	} {
		t.Run(name, func(t *testing.T) {
			above := t.TempDir()
			if err := os.WriteFile(filepath.Join(above, "victim"), []byte("good"), 0o600); err != nil {
				t.Fatal(err)
			}
			in := filepath.Join(above, "in")
			if err := os.Mkdir(in, 0o700); err != nil {
				t.Fatal(err)
			}
			root, err := os.OpenRoot(in)
			if err != nil {
				t.Fatal(err)
			}
			defer root.Close()
			if err := Unpack(root, tarOf(t, entries...), ""); err == nil {
				t.Error("the archive was accepted")
			}
			if data, _ := os.ReadFile(filepath.Join(above, "victim")); string(data) != "good" {
				t.Errorf("the file outside now holds %q", data)
			}
			if _, err := os.Lstat(filepath.Join(above, "outside")); err == nil {
				t.Error("a file was made outside")
			}
		})
	}
}

func TestPackUnpackKeepsATree(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	if err := os.MkdirAll(filepath.Join(from, "src/sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(from, "src/sub/run"), []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("sub/run", filepath.Join(from, "src/link")); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := Pack(&b, filepath.Join(from, "src"), "src"); err != nil {
		t.Fatal(err)
	}
	root, err := os.OpenRoot(to)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if err := Unpack(root, &b, "copy"); err != nil {
		t.Fatal(err)
	}
	info, err := root.Stat("copy/sub/run")
	if err != nil || info.Mode() != fs.FileMode(0o755) {
		t.Errorf("copy/sub/run: %v, error %v", info, err)
	}
	if target, err := root.Readlink("copy/link"); err != nil || target != "sub/run" {
		t.Errorf("copy/link leads to %q, error %v", target, err)
	}
}

// A directory that is copied under another name keeps its links and modes, the
// second time too.
func TestUnpackUnderAnotherName(t *testing.T) {
	dir := t.TempDir()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	for range 2 {
		archive := tarOf(t,
			tar.Header{Name: "in/", Typeflag: tar.TypeDir, Mode: 0o755},
			tar.Header{Name: "in/file", Typeflag: tar.TypeReg, Mode: 0o666},
			tar.Header{Name: "in/hard", Typeflag: tar.TypeLink, Linkname: "in/file"},
			tar.Header{Name: "in/soft", Typeflag: tar.TypeSymlink, Linkname: "file"},
		)
		if err := Unpack(root, archive, "out"); err != nil {
			t.Fatal(err)
		}
	}
	file, err := os.Stat(filepath.Join(dir, "out", "file"))
	if err != nil || file.Mode().Perm() != 0o666 {
		t.Errorf("the file: %v, %v", file, err)
	}
	for _, name := range []string{"hard", "soft"} {
		if info, err := os.Stat(filepath.Join(dir, "out", name)); err != nil || !os.SameFile(info, file) {
			t.Errorf("%s is not the file: %v", name, err)
		}
	}
}
