package agent

import (
	"archive/tar"
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"creel/internal/guest/api"
	"creel/internal/guest/host"
)

type entry struct {
	Name, Link, Content string
	Type                byte
	Mode                int64
	UID, GID            int
	MTime               int64
	Major, Minor        int64
	Attr                string
}

func pack(t *testing.T, entries []entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := &tar.Header{Name: e.Name, Linkname: e.Link, Typeflag: e.Type, Mode: e.Mode, Uid: e.UID, Gid: e.GID,
			ModTime: time.Unix(e.MTime, 0), Size: int64(len(e.Content)), Devmajor: e.Major, Devminor: e.Minor}
		if e.Attr != "" {
			h.PAXRecords = map[string]string{xattrRecord + "user.test": e.Attr}
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		io.WriteString(w, e.Content)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func unpackTar(t *testing.T, r io.Reader) map[string]entry {
	t.Helper()
	got := map[string]entry{}
	archive := tar.NewReader(r)
	for {
		h, err := archive.Next()
		if err == io.EOF {
			return got
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(archive)
		if err != nil {
			t.Fatal(err)
		}
		got[h.Name] = entry{h.Name, h.Linkname, string(content), h.Typeflag, h.Mode, h.Uid, h.Gid, h.ModTime.Unix(),
			h.Devmajor, h.Devminor, h.PAXRecords[xattrRecord+"user.test"]}
	}
}

func copyIn(t *testing.T, c *host.Client, req api.CopyRequest, entries ...entry) error {
	t.Helper()
	return c.CopyIn(t.Context(), req, bytes.NewReader(pack(t, entries)))
}

func TestCopyRoundTrip(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: sets owners and makes devices")
	}
	root := t.TempDir()
	c := ready(t, root)
	os.Mkdir(filepath.Join(root, "in"), 0o755)
	sent := []entry{
		{Name: "d/", Type: tar.TypeDir, Mode: 0o2750, UID: 11, GID: 12, MTime: 1000},
		{Name: "d/file", Type: tar.TypeReg, Mode: 0o4711, UID: 13, GID: 14, MTime: 2000, Content: strings.Repeat("content", 100000)},
		{Name: "d/hard", Type: tar.TypeLink, Link: "d/file", Mode: 0o4711, UID: 13, GID: 14, MTime: 2000},
		{Name: "d/soft", Type: tar.TypeSymlink, Link: "/etc/shadow", Mode: 0o777, UID: 15, GID: 16, MTime: 3000},
		{Name: "d/fifo", Type: tar.TypeFifo, Mode: 0o640, UID: 1, GID: 2, MTime: 4000},
		{Name: "d/null", Type: tar.TypeChar, Mode: 0o666, MTime: 5000, Major: 1, Minor: 3},
		{Name: "d/" + strings.Repeat("long/", 50) + "x", Type: tar.TypeReg, Mode: 0o600, MTime: 6000},
	}
	if err := copyIn(t, c, api.CopyRequest{Path: "/in"}, sent...); err != nil {
		t.Fatal(err)
	}
	out, err := c.CopyOut(t.Context(), "/in/d")
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	got := unpackTar(t, out)
	for _, want := range sent {
		if diff := cmp.Diff(want, got[want.Name]); diff != "" {
			t.Errorf("%s: %s", want.Name, diff)
		}
	}
	stat, err := c.Stat(t.Context(), "/in/d/soft")
	if err != nil || stat.LinkTarget != "/etc/shadow" || os.FileMode(stat.Mode)&os.ModeSymlink == 0 || stat.MTime != 3000 {
		t.Errorf("stat: %+v, %v", stat, err)
	}
}

func TestCopyKeepsAttributes(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: sets owners")
	}
	root := t.TempDir()
	probe := filepath.Join(root, "probe")
	os.WriteFile(probe, nil, 0o600)
	if err := unix.Setxattr(probe, "user.test", []byte("x"), 0); err != nil {
		t.Skipf("the file system of %s has no attributes: %v", root, err)
	}
	c := ready(t, root)
	if err := copyIn(t, c, api.CopyRequest{Path: "/"}, entry{Name: "f", Type: tar.TypeReg, Mode: 0o644, Attr: "kept"}); err != nil {
		t.Fatal(err)
	}
	out, err := c.CopyOut(t.Context(), "/f")
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	if got := unpackTar(t, out)["f"].Attr; got != "kept" {
		t.Errorf("attribute %q", got)
	}
}

func TestCopyInStaysBelowItsDirectory(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: sets owners")
	}
	root := t.TempDir()
	c := ready(t, root)
	os.MkdirAll(filepath.Join(root, "in"), 0o755)
	os.MkdirAll(filepath.Join(root, "out"), 0o755)
	os.WriteFile(filepath.Join(root, "out/kept"), []byte("kept"), 0o644)
	os.Symlink("../out", filepath.Join(root, "in/way"))
	os.Symlink("../out/kept", filepath.Join(root, "in/file"))
	for name, entries := range map[string][]entry{
		"dots":          {{Name: "../out/new", Type: tar.TypeReg, Mode: 0o644}},
		"old link":      {{Name: "way/new", Type: tar.TypeReg, Mode: 0o644}},
		"new link":      {{Name: "l", Type: tar.TypeSymlink, Link: "../out"}, {Name: "l/new", Type: tar.TypeReg, Mode: 0o644}},
		"hard link out": {{Name: "h", Type: tar.TypeLink, Link: "../out/kept"}},
		"hard way out":  {{Name: "h", Type: tar.TypeLink, Link: "way/kept"}},
	} {
		if err := copyIn(t, c, api.CopyRequest{Path: "/in"}, entries...); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	// A link in the place of a file is replaced, not followed.
	if err := copyIn(t, c, api.CopyRequest{Path: "/in"}, entry{Name: "file", Type: tar.TypeReg, Mode: 0o644, Content: "new"}); err != nil {
		t.Error(err)
	}
	left, _ := os.ReadDir(filepath.Join(root, "out"))
	kept, _ := os.ReadFile(filepath.Join(root, "out/kept"))
	if len(left) != 1 || string(kept) != "kept" {
		t.Errorf("outside was changed: %v %q", left, kept)
	}
}

func TestCopyRefusals(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: sets owners")
	}
	root := t.TempDir()
	c := ready(t, root)
	os.MkdirAll(filepath.Join(root, "d/sub"), 0o755)
	os.WriteFile(filepath.Join(root, "f"), nil, 0o644)
	file := entry{Name: "sub", Type: tar.TypeReg, Mode: 0o644}
	dir := entry{Name: "f", Type: tar.TypeDir, Mode: 0o755}
	for name, tc := range map[string]struct {
		req   api.CopyRequest
		entry entry
		code  api.Code
	}{
		"no directory":       {api.CopyRequest{Path: "/none"}, file, api.CodeNotFound},
		"into a file":        {api.CopyRequest{Path: "/f"}, file, api.CodeInvalid},
		"file for directory": {api.CopyRequest{Path: "/d", NoOverwriteDirNonDir: true}, file, api.CodeInvalid},
		"directory for file": {api.CopyRequest{Path: "/", NoOverwriteDirNonDir: true}, dir, api.CodeInvalid},
	} {
		if err := copyIn(t, c, tc.req, tc.entry); err == nil || api.ErrorCode(err) != tc.code {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if err := copyIn(t, c, api.CopyRequest{Path: "/d"}, file); err != nil {
		t.Errorf("replace a directory where it is allowed: %v", err)
	}
	if err := c.CopyIn(t.Context(), api.CopyRequest{Path: "/"}, strings.NewReader(strings.Repeat("junk", 4096))); err == nil {
		t.Error("junk was unpacked")
	}
	if _, err := c.CopyOut(t.Context(), "/none"); api.ErrorCode(err) != api.CodeNotFound {
		t.Errorf("copy out: %v", err)
	}
	if _, err := c.Stat(t.Context(), "/none"); api.ErrorCode(err) != api.CodeNotFound {
		t.Errorf("stat: %v", err)
	}
}
