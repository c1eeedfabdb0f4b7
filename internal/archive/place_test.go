package archive

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func staged(t *testing.T, root *os.Root, entries ...tar.Header) *Staged {
	t.Helper()
	s, err := Stage(root, NewReader(bytes.NewReader(tarOf(t, entries...)), "out", DefaultLimits()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// below is an archive of a directory with one file or link in it, and all
// directories on the way.
func below(h tar.Header) []tar.Header {
	entries := []tar.Header{dir("out")}
	for i, c := range h.Name {
		if c == '/' {
			entries = append(entries, dir("out/"+h.Name[:i]))
		}
	}
	h.Name = "out/" + h.Name
	return append(entries, h)
}

// What programs here run or trust is neither made nor replaced by a merge; by
// the same copy to a new directory, or with force, it is, and it is told.
func TestMergeRefusesWhatIsTrusted(t *testing.T) {
	for _, h := range []tar.Header{
		file(".bashrc"), file(".ssh/authorized_keys"), file(".ssh/deep/er"), file(".git/hooks/post-checkout"), file(".git/config"),
		file(".GIT/Config"), file("a/b/.git/hooks/pre-commit"), file(".git"), soft(".git", "a"), soft(".ssh", "a"), file(".config/autostart/x.desktop"),
		soft(".config", "a"), soft("dist", ".git/hooks"), soft("dist", ".GIT"), soft("dist", ".config/autostart"), soft("dist", "./.ssh/deep"),
		file(".cargo/bin/x"), file(".claude.json"), file(".emacs"), file(".git/modules/x/config"), file(".envrc"), file(".claude/settings.json"), file(".vscode/tasks.json"),
	} {
		entries := below(h)
		home, root := world(t)
		if err := errors.Join(os.RemoveAll(filepath.Join(home, ".ssh")), os.Remove(filepath.Join(home, ".bashrc"))); err != nil {
			t.Fatal(err)
		}
		for _, before := range []string{"nothing", "the directory", "all of it"} {
			switch before {
			case "the directory":
				if err := os.MkdirAll(filepath.Join(home, filepath.Dir(h.Name)), 0o755); err != nil {
					t.Fatal(err)
				}
			case "all of it":
				if err := os.WriteFile(filepath.Join(home, h.Name), []byte("good"), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			was := tree(t, home)
			s := staged(t, root, entries...)
			_, err := s.Place(".", false)
			s.Close()
			if err == nil || !strings.Contains(err.Error(), h.Name) || !strings.Contains(err.Error(), "--force") {
				t.Errorf("%s, with %s there: %v", h.Name, before, err)
			}
			if diff := cmp.Diff(was, tree(t, home)); diff != "" {
				t.Errorf("%s, with %s there: %s", h.Name, before, diff)
			}
		}
		for name, force := range map[string]bool{"new": false, ".": true} {
			placed, err := staged(t, root, entries...).Place(name, force)
			if err != nil || placed.Trusted.Count != 1 || !strings.Contains(placed.Trusted.String(3), h.Name) {
				t.Errorf("%s to %s: %+v, %v", h.Name, name, placed, err)
			}
			if _, err := os.Lstat(filepath.Join(home, name, h.Name)); err != nil {
				t.Error(err)
			}
		}
	}
}

// A merge into a trusted directory itself is one, too.
func TestMergeIntoTrustedDirectory(t *testing.T) {
	for dest, h := range map[string]tar.Header{".ssh": file("authorized_keys"), ".git": file("hooks/x"), ".git/hooks": file("x"), ".config": file("autostart/x")} {
		at := filepath.Join(t.TempDir(), dest)
		if err := os.MkdirAll(at, 0o755); err != nil {
			t.Fatal(err)
		}
		root, err := os.OpenRoot(at)
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		if _, err := staged(t, root, below(h)...).Place(".", false); (err == nil) != (dest == ".git/hooks") {
			t.Errorf("%s in %s: %v", h.Name, dest, err)
		}
	}
}

func TestMergeTakesTheRest(t *testing.T) {
	for _, name := range []string{"file", "bashrc", ".git/HEAD", ".git/objects/aa/bb", ".git/refs/heads/main", "hooks/x", ".sshx", ".gitignore", ".github/workflows/ci.yml"} {
		home, root := world(t)
		placed, err := staged(t, root, below(file(name))...).Place(".", false)
		if err != nil || placed.Trusted.Count != 0 || !placed.Merged || placed.Made != 1 {
			t.Errorf("%s: %+v, %v", name, placed, err)
		}
		if _, err := os.Lstat(filepath.Join(home, name)); err != nil {
			t.Error(err)
		}
	}
}

// A file that was named is what was asked for. Of a merge, what is the same as
// here is no change.
func TestNamedOrSameIsTaken(t *testing.T) {
	home, root := world(t)
	placed, err := staged(t, root, file("out")).Place(".bashrc", false)
	if err != nil || placed.Merged || placed.Trusted.Count != 0 {
		t.Errorf("named: %+v, %v", placed, err)
	}
	if err := os.Chmod(filepath.Join(home, ".bashrc"), 0o644); err != nil {
		t.Fatal(err)
	}
	entries := []tar.Header{dir("out"), file("out/.bashrc"), file("out/new")}
	if placed, err := staged(t, root, entries...).Place(".", false); err != nil || placed.Made != 1 || placed.Replaced != 0 {
		t.Errorf("the same: %+v, %v", placed, err)
	}
	entries[1].Mode = 0o755
	if _, err := staged(t, root, entries...).Place(".", false); err == nil {
		t.Error("another mode was taken for the same")
	}
	if err := os.WriteFile(filepath.Join(home, ".bashrc"), []byte("eviL"), 0o644); err != nil {
		t.Fatal(err)
	}
	entries[1].Mode = 0o644
	if _, err := staged(t, root, entries...).Place(".", false); err == nil {
		t.Error("another content was taken for the same")
	}
}

func TestMergeIsCounted(t *testing.T) {
	home, root := world(t)
	if err := os.WriteFile(filepath.Join(home, "a"), []byte("good"), 0o644); err != nil {
		t.Fatal(err)
	}
	s := staged(t, root, dir("out"), file("out/a"), file("out/b"), dir("out/d"), dir("out/d/e"), file("out/d/e/f"), soft("out/d/l", "e"))
	placed, err := s.Place(".", false)
	if diff := cmp.Diff(Placed{Merged: true, Replaced: 1, Made: 3}, placed); diff != "" || err != nil {
		t.Errorf("%v, %s", err, diff)
	}
}

// Many trusted files make no endless message.
func TestRefusalIsShort(t *testing.T) {
	_, root := world(t)
	entries := []tar.Header{dir("out"), dir("out/.ssh")}
	for i := range 1000 {
		entries = append(entries, file(fmt.Sprintf("out/.ssh/%d", i)))
	}
	if _, err := staged(t, root, entries...).Place(".", false); err == nil || !strings.Contains(err.Error(), "and 980 more") || len(err.Error()) > 4096 {
		t.Errorf("%v", err)
	}
}

// ownMounts lets this test mount what ends with it.
func ownMounts(t *testing.T) {
	t.Helper()
	runtime.LockOSThread() // and never unlocks: the thread ends with the test
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		t.Skipf("this user cannot mount: %v", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Skipf("this user cannot mount: %v", err)
	}
}

// A merge does not begin what a mount in its way would end half-way.
func TestMergeOverMounts(t *testing.T) {
	ownMounts(t)
	entries := []tar.Header{dir("out"), file("out/a"), dir("out/m"), file("out/m/f"), file("out/z")}
	for name, mount := range map[string]func(home string) error{
		"another file system": func(home string) error { return unix.Mount("none", filepath.Join(home, "m"), "tmpfs", 0, "") },
		"the same, mounted again": func(home string) error {
			return unix.Mount(filepath.Join(home, "../outside"), filepath.Join(home, "m"), "", unix.MS_BIND, "")
		},
		"a file": func(home string) error {
			f := filepath.Join(home, "m/f")
			if err := os.WriteFile(f, nil, 0o600); err != nil {
				return err
			}
			return unix.Mount(filepath.Join(home, "../outside/victim"), f, "", unix.MS_BIND, "")
		},
	} {
		home, root := world(t)
		if err := errors.Join(os.Mkdir(filepath.Join(home, "m"), 0o755), mount(home)); err != nil {
			t.Fatal(err)
		}
		was := tree(t, home)
		s := staged(t, root, entries...)
		_, err := s.Place(".", false)
		if err == nil || !strings.Contains(err.Error(), "nothing was copied") {
			t.Errorf("%s: %v", name, err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if diff := cmp.Diff(was, tree(t, home)); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
		unix.Unmount(filepath.Join(home, "m/f"), unix.MNT_DETACH)
		unix.Unmount(filepath.Join(home, "m"), unix.MNT_DETACH)
	}
}

// Nor what a directory would end that cannot be written to.
func TestMergeIntoReadOnlyDirectory(t *testing.T) {
	home, root := world(t)
	if err := errors.Join(os.Mkdir(filepath.Join(home, "m"), 0o555)); err != nil {
		t.Fatal(err)
	}
	if unix.Access(filepath.Join(home, "m"), unix.W_OK) == nil {
		t.Skip("this user may write to any directory")
	}
	was := tree(t, home)
	s := staged(t, root, dir("out"), file("out/a"), dir("out/m"), file("out/m/f"), file("out/z"))
	if _, err := s.Place(".", false); err == nil || !strings.Contains(err.Error(), "nothing was copied") {
		t.Errorf("%v", err)
	}
	s.Close()
	if diff := cmp.Diff(was, tree(t, home)); diff != "" {
		t.Error(diff)
	}
}

// A copy leaves a file system its reserve of bytes and of files.
func TestReserveStaysFree(t *testing.T) {
	ownMounts(t)
	small := func(options string) *os.Root {
		at := t.TempDir()
		if err := unix.Mount("none", at, "tmpfs", 0, options); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Unmount(at, unix.MNT_DETACH) })
		root, err := os.OpenRoot(at)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { root.Close() })
		return root
	}
	root := small("size=20m")
	for size, fits := range map[int]bool{18 << 20: true, 20<<20 - 512<<10: false} {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		if err := w.WriteHeader(&tar.Header{Name: "out", Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(size)}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(make([]byte, size)); err != nil {
			t.Fatal(err)
		}
		w.Close()
		s, err := Stage(root, NewReader(&b, "out", DefaultLimits()))
		if fits != (err == nil) || !fits && !strings.Contains(err.Error(), "reserve") {
			t.Errorf("%d bytes: %v", size, err)
		}
		if err == nil {
			s.Close()
		}
	}
	for name, entry := range map[string]func(int) tar.Header{
		"files":       func(i int) tar.Header { return file(fmt.Sprintf("out/%d", i)) },
		"directories": func(i int) tar.Header { return dir(fmt.Sprintf("out/%d", i)) },
		"links":       func(i int) tar.Header { return soft(fmt.Sprintf("out/%d", i), "x") },
	} {
		entries := []tar.Header{dir("out")}
		for i := range 195 {
			entries = append(entries, entry(i))
		}
		if _, err := Stage(small("size=20m,nr_inodes=200"), NewReader(bytes.NewReader(tarOf(t, entries...)), "out", DefaultLimits())); err == nil || !strings.Contains(err.Error(), "limit of files") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// sparsePAX is a file with holes in each of the ways of PAX.
func sparsePAX(version string) []byte {
	records := map[string]string{"GNU.sparse.major": version[:1], "GNU.sparse.minor": version[2:], "GNU.sparse.name": "out",
		"GNU.sparse.realsize": "1099511627776", "GNU.sparse.size": "1099511627776", "GNU.sparse.numblocks": "0", "GNU.sparse.map": ""}
	if version == "0.1" {
		delete(records, "GNU.sparse.map")
	}
	var pax bytes.Buffer
	for _, key := range slices.Sorted(maps.Keys(records)) {
		line := fmt.Sprintf(" %s=%s\n", key, records[key])
		n := len(line) + 2
		if n >= 10 {
			n = len(line) + len(fmt.Sprint(len(line)+2))
		}
		fmt.Fprintf(&pax, "%d%s", n, line)
	}
	header := func(name string, flag byte, size int) []byte {
		b := make([]byte, 512)
		copy(b, name)
		copy(b[100:], "0000644\x00")
		copy(b[124:], fmt.Sprintf("%011o\x00", size))
		copy(b[136:], "00000000000\x00")
		b[156] = flag
		copy(b[257:], "ustar\x0000")
		copy(b[148:], checksum(b))
		return b
	}
	out := append(header("pax", tar.TypeXHeader, pax.Len()), pax.Bytes()...)
	out = append(out, make([]byte, (512-pax.Len()%512)%512)...)
	content := []byte{}
	if version == "1.0" {
		content = make([]byte, 512)
		copy(content, "0\n")
	}
	out = append(out, header("out", tar.TypeReg, len(content))...)
	return append(append(out, content...), make([]byte, 1024)...)
}

func TestSparsePAXIsRefused(t *testing.T) {
	for _, version := range []string{"0.0", "0.1", "1.0"} {
		in := sparsePAX(version)
		if h, err := tar.NewReader(bytes.NewReader(in)).Next(); err != nil || h.Size != 1<<40 {
			t.Fatalf("%s: the test's own archive: %+v, %v", version, h, err)
		}
		r := NewReader(bytes.NewReader(in), "out", DefaultLimits())
		if e, err := r.Next(); err == nil || !strings.Contains(err.Error(), "holes") {
			t.Errorf("%s: %+v, %v", version, e, err)
		}
	}
}

// A name holds no more memory than its own bytes.
func TestNamesDoNotHoldTheirHeaders(t *testing.T) {
	const entries, comment = 64, 1000 << 10
	in, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	go func() {
		defer w.Close()
		tw := tar.NewWriter(w)
		junk := strings.Repeat("x", comment)
		tw.WriteHeader(&tar.Header{Name: "out/", Typeflag: tar.TypeDir, Mode: 0o755})
		for i := range entries {
			h := tar.Header{Name: fmt.Sprintf("out/%s%d/", strings.Repeat("é", 60), i), Typeflag: tar.TypeDir, Mode: 0o755,
				PAXRecords: map[string]string{"CREEL.comment": junk}}
			if i%2 == 1 {
				h.Name, h.Typeflag, h.Linkname = strings.TrimSuffix(h.Name, "/"), tar.TypeSymlink, strings.Repeat("é", 60)
			}
			tw.WriteHeader(&h)
		}
		tw.Close()
	}()
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	r := NewReader(in, "out", DefaultLimits())
	var held []Entry
	for {
		e, err := r.Next()
		if err != nil {
			break
		}
		held = append(held, e)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if len(held) != entries+1 {
		t.Fatalf("%d entries", len(held))
	}
	if more := int64(after.HeapAlloc) - int64(before.HeapAlloc); more > entries*comment/4 {
		t.Errorf("%d entries hold %d bytes", len(held), more)
	}
	runtime.KeepAlive(held)
}

// Links that lead out are named, a few of them, and can be left out.
func TestLinksOut(t *testing.T) {
	venv := []tar.Header{dir("out"), dir("out/bin"), soft("out/bin/python", "/usr/bin/python3"), soft("out/bin/python3", "python"),
		soft("out/up", "../beside"), soft("out/mixed", "bin/../../x"), file("out/cfg")}
	home, root := world(t)
	was := tree(t, home)
	err := copyTo(root, bytes.NewReader(tarOf(t, venv...)), "out", "new")
	for _, want := range []string{"out/bin/python -> /usr/bin/python3", "out/up -> ../beside", "out/mixed -> bin/../../x", "copied, 3:", "--skip-links"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("no %q in %v", want, err)
		}
	}
	if diff := cmp.Diff(was, tree(t, home)); diff != "" {
		t.Error(diff)
	}

	r := NewReader(bytes.NewReader(tarOf(t, venv...)), "out", DefaultLimits())
	r.SkipLinks = true
	s, err := Stage(root, r)
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.Place("new", false)
	if err := errors.Join(err, s.Close()); err != nil {
		t.Fatal(err)
	}
	want := []string{". drwxr-xr-x", "bin drwxr-xr-x", "bin/python3 Lrwxrwxrwx python", "cfg -rw-r--r-- evil"}
	if diff := cmp.Diff(want, tree(t, filepath.Join(home, "new"))); diff != "" {
		t.Error(diff)
	}
	if left := r.Left(); left.Count != 3 || !strings.Contains(left.String(), "out/up -> ../beside") {
		t.Errorf("left out: %+v", left)
	}
}

// Many of them are not waited for, and none makes a long message.
func TestManyLinksOut(t *testing.T) {
	entries := []tar.Header{dir("out")}
	for i := range 100 {
		entries = append(entries, soft(fmt.Sprintf("out/%d", i), "/"+strings.Repeat("a", 1000)))
	}
	in := bytes.NewReader(tarOf(t, entries...))
	r := NewReader(in, "out", DefaultLimits())
	r.Next()
	if e, err := r.Next(); err == nil || !strings.Contains(err.Error(), "at least 5") || len(err.Error()) > 4096 || in.Len() < 100<<10 {
		t.Errorf("%+v, %v, %d bytes unread", e, err, in.Len())
	}
}

// What else is wrong with an archive is refused with --skip-links, too.
func TestHostileArchiveWithoutItsLinks(t *testing.T) {
	for name, entries := range hostile {
		home, root := world(t)
		r := NewReader(bytes.NewReader(tarOf(t, entries...)), "out", DefaultLimits())
		r.SkipLinks = true
		s, err := Stage(root, r)
		if err == nil {
			_, err = s.Place("out", false)
			err = errors.Join(err, s.Close())
		}
		if err == nil {
			if r.Left().Count == 0 {
				t.Errorf("%s: accepted", name)
			}
			checkPlaced(t, filepath.Join(home, "out"))
			if err := os.RemoveAll(filepath.Join(home, "out")); err != nil {
				t.Fatal(err)
			}
		}
		want := []string{". drwxr-xr-x", ".bashrc -rw------- good", ".ssh drwxr-xr-x", ".ssh/config -rw------- good"}
		if diff := cmp.Diff(want, tree(t, home)); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}
