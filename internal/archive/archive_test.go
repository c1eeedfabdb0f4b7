package archive

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// tarOf packs entries; those that are files hold "evil".
func tarOf(t testing.TB, entries ...tar.Header) []byte {
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
			io.WriteString(w, "evil")
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func file(name string) tar.Header { return tar.Header{Name: name, Typeflag: tar.TypeReg} }
func dir(name string) tar.Header {
	return tar.Header{Name: name + "/", Typeflag: tar.TypeDir, Mode: 0o755}
}
func soft(name, target string) tar.Header {
	return tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: target}
}
func hard(name, target string) tar.Header {
	return tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: target}
}

// world is a directory with a victim beside the place that is copied to, and
// victims in it.
func world(t testing.TB) (home string, root *os.Root) {
	t.Helper()
	home = filepath.Join(t.TempDir(), "home")
	for _, d := range []string{"home", "home/.ssh", "outside"} {
		if err := os.Mkdir(filepath.Join(filepath.Dir(home), d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range []string{"home/.bashrc", "home/.ssh/config", "outside/victim"} {
		if err := os.WriteFile(filepath.Join(filepath.Dir(home), f), []byte("good"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	root, err := os.OpenRoot(home)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return home, root
}

// tree describes all that is below dir: a name, what it is, and what is in it.
func tree(t testing.TB, dir string) []string {
	t.Helper()
	var all []string
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, p)
		line := rel + " " + info.Mode().String()
		switch {
		case info.Mode().IsRegular():
			data, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			line += " " + string(data)
		case info.Mode()&fs.ModeSymlink != 0:
			target, err := os.Readlink(p)
			if err != nil {
				return err
			}
			line += " " + target
		}
		all = append(all, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// copyTo is what `creel cp` does with an archive.
func copyTo(root *os.Root, archive io.Reader, top, name string) error {
	s, err := Stage(root, NewReader(archive, top, DefaultLimits()))
	if err != nil {
		return err
	}
	_, err = s.Place(name, false)
	return errors.Join(err, s.Close())
}

// hostile archives, each of which pretends to be of "out".
var hostile = map[string][]tar.Header{
	"another name":              {file(".bashrc")},
	"another name behind":       {file("out"), file(".bashrc")},
	"another directory behind":  {dir("out"), dir(".ssh"), file(".ssh/authorized_keys")},
	"a name that begins alike":  {dir("out"), file("outside")},
	"dots":                      {file("../outside/victim")},
	"dots in it":                {dir("out"), file("out/../.bashrc")},
	"dots far in it":            {dir("out"), file("out/../../outside/victim")},
	"dots alone":                {dir("..")},
	"absolute":                  {file("/out")},
	"absolute in it":            {dir("out"), file("/etc/passwd")},
	"a name that is not clean":  {dir("out"), file("out//x")},
	"a dot in it":               {dir("out"), file("out/./x")},
	"a file that ends in /":     {dir("out"), {Name: "out/x/", Typeflag: tar.TypeLink, Linkname: "out/y"}},
	"no top":                    {file("out/x")},
	"nothing":                   {},
	"the top twice":             {dir("out"), dir("out")},
	"a file twice":              {dir("out"), file("out/x"), file("out/x")},
	"a directory twice":         {dir("out"), dir("out/x"), dir("out/x")},
	"a file below a file":       {file("out"), file("out/x")},
	"no directory":              {dir("out"), file("out/a/b")},
	"the top is a link":         {soft("out", ".bashrc")},
	"the top is a link out":     {soft("out", "../outside/victim")},
	"link out":                  {dir("out"), soft("out/l", "../../outside")},
	"link to beside":            {dir("out"), soft("out/l", "../.bashrc")},
	"link absolute":             {dir("out"), soft("out/l", "/etc")},
	"link to nothing":           {dir("out"), {Name: "out/l", Typeflag: tar.TypeLink}},
	"link down and up":          {dir("out"), dir("out/a"), soft("out/a/l", ".."), soft("out/m", "a/l/../..")},
	"link up through a link":    {dir("out"), dir("out/a"), dir("out/a/b"), soft("out/a/b/top", "../.."), soft("out/a/b/m", "top/..")},
	"link then file":            {dir("out"), soft("out/l", "x"), file("out/l")},
	"file then link":            {dir("out"), file("out/l"), soft("out/l", "x")},
	"link then below it":        {dir("out"), dir("out/a"), soft("out/l", "a"), file("out/l/x")},
	"directory becomes a link":  {dir("out"), dir("out/a"), soft("out/a", "b"), file("out/a/x")},
	"top becomes a link":        {dir("out"), soft("out", "../outside"), file("out/victim")},
	"hard link beside":          {hard("out", ".bashrc")},
	"hard link out":             {dir("out"), hard("out/l", "../outside/victim")},
	"hard link absolute":        {dir("out"), hard("out/l", "/etc/passwd")},
	"hard link to a directory":  {dir("out"), dir("out/a"), hard("out/l", "out/a")},
	"hard link to a link":       {dir("out"), soft("out/s", "x"), hard("out/l", "out/s")},
	"hard link to the top":      {dir("out"), hard("out/l", "out")},
	"hard link to what follows": {dir("out"), hard("out/l", "out/x"), file("out/x")},
	"hard link then file":       {dir("out"), file("out/x"), hard("out/l", "out/x"), file("out/l")},
	"character device":          {{Name: "out", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}},
	"block device":              {dir("out"), {Name: "out/sda", Typeflag: tar.TypeBlock, Devmajor: 8}},
	"fifo":                      {dir("out"), {Name: "out/f", Typeflag: tar.TypeFifo}},
	"escape in a name":          {dir("out"), file("out/\x1b[2Jx")},
	"line break in a name":      {dir("out"), file("out/a\nb")},
	"C1 in a name":              {dir("out"), file("out/a\u009bb")},
	"other direction in a name": {dir("out"), file("out/a\u202egpj.sh")},
	"escape in a link":          {dir("out"), soft("out/l", "a\x1b[2J")},
	"a long name":               {dir("out"), file("out/" + strings.Repeat("a/", maxPath/2) + "x")},
	"a long link":               {dir("out"), soft("out/l", strings.Repeat("a", maxPath+1))},
}

func TestHostileArchiveChangesNothing(t *testing.T) {
	for name, entries := range hostile {
		for _, existing := range []bool{false, true} {
			home, root := world(t)
			if existing { // what the copy would be merged with
				if err := errors.Join(os.Mkdir(filepath.Join(home, "out"), 0o755), os.WriteFile(filepath.Join(home, "out/x"), []byte("good"), 0o600)); err != nil {
					t.Fatal(err)
				}
			}
			before := tree(t, filepath.Dir(home))
			err := copyTo(root, bytes.NewReader(tarOf(t, entries...)), "out", "out")
			if err == nil {
				t.Errorf("%s: the archive was accepted", name)
				continue
			}
			for _, r := range err.Error() {
				if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 || r == 0x202e {
					t.Errorf("%s: the error %q steers a terminal", name, err)
				}
			}
			if diff := cmp.Diff(before, tree(t, filepath.Dir(home))); diff != "" {
				t.Errorf("%s (%v): %s", name, err, diff)
			}
		}
	}
}

func TestWholeRootIsRead(t *testing.T) {
	home, root := world(t)
	if err := os.Mkdir(filepath.Join(home, "new"), 0o700); err != nil {
		t.Fatal(err)
	}
	in := tarOf(t, tar.Header{Name: "./", Typeflag: tar.TypeDir, Mode: 0o755}, dir("etc"), file("etc/passwd"), soft("mtab", "etc/x"))
	if err := copyTo(root, bytes.NewReader(in), ".", "new"); err != nil {
		t.Fatal(err)
	}
	want := []string{". drwx------", "etc drwxr-xr-x", "etc/passwd -rw-r--r-- evil", "mtab Lrwxrwxrwx etc/x"}
	if diff := cmp.Diff(want, tree(t, filepath.Join(home, "new"))); diff != "" {
		t.Error(diff)
	}
	for name, entries := range map[string][]tar.Header{
		"dots": {{Name: "./", Typeflag: tar.TypeDir}, file("../outside/victim")},
		"link": {{Name: "./", Typeflag: tar.TypeDir}, soft("l", "../outside")},
	} {
		if err := copyTo(root, bytes.NewReader(tarOf(t, entries...)), ".", "new"); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
}

// Modes lose what is special and what the umask takes, and owners and
// attributes are not looked at.
func TestModesAndTimes(t *testing.T) {
	defer unix.Umask(unix.Umask(0o022))
	home, root := world(t)
	when := time.Unix(1_000_000_000, 0)
	in := tarOf(t,
		tar.Header{Name: "out/", Typeflag: tar.TypeDir, Mode: 0o7555, ModTime: when},
		tar.Header{Name: "out/run", Typeflag: tar.TypeReg, Mode: 0o6777, Uid: 4711, Gid: 4711, ModTime: when,
			PAXRecords: map[string]string{"SCHILY.xattr.user.creel": "x"}},
		tar.Header{Name: "out/secret", Typeflag: tar.TypeReg, Mode: 0o400, ModTime: when},
		tar.Header{Name: "out/shared", Typeflag: tar.TypeDir, Mode: 0o1777, ModTime: when},
		hard("out/shared/run", "out/run"),
		soft("out/shared/up", "../secret"),
	)
	if err := copyTo(root, bytes.NewReader(in), "out", "out"); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(home, "out")
	want := []string{". drwxr-xr-x", "run -rwxr-xr-x evil", "secret -r-------- evil", "shared drwxr-xr-x", "shared/run -rwxr-xr-x evil", "shared/up Lrwxrwxrwx ../secret"}
	if diff := cmp.Diff(want, tree(t, out)); diff != "" {
		t.Error(diff)
	}
	for _, name := range []string{"", "run", "secret", "shared"} {
		info, err := os.Lstat(filepath.Join(out, name))
		if err != nil || !info.ModTime().Equal(when) {
			t.Errorf("%q: %v, %v", name, info.ModTime(), err)
		}
	}
	a, _ := os.Stat(filepath.Join(out, "run"))
	b, _ := os.Stat(filepath.Join(out, "shared/run"))
	if !os.SameFile(a, b) {
		t.Error("the hard link is another file")
	}
	if a.Sys() == nil || os.Getuid() == 0 && ownerOf(t, filepath.Join(out, "run")) != 0 {
		t.Error("the owner was taken from the archive")
	}
	if n, _ := unix.Listxattr(filepath.Join(out, "run"), nil); n > 0 {
		list := make([]byte, n)
		unix.Listxattr(filepath.Join(out, "run"), list)
		if strings.Contains(string(list), "user.creel") {
			t.Error("an attribute was taken from the archive")
		}
	}
}

func ownerOf(t *testing.T, name string) uint32 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(name, &st); err != nil {
		t.Fatal(err)
	}
	return st.Uid
}

func TestPlace(t *testing.T) {
	copied := []tar.Header{dir("out"), dir("out/sub"), file("out/sub/f"), soft("out/l", "sub/f"), file("out/g")}
	for name, tc := range map[string]struct {
		here    func(home string) error // before the copy
		archive []tar.Header
		to      string
		want    []string // below to, afterwards
		err     string
	}{
		"new directory": {archive: copied, to: "new",
			want: []string{". drwxr-xr-x", "g -rw-r--r-- evil", "l Lrwxrwxrwx sub/f", "sub drwxr-xr-x", "sub/f -rw-r--r-- evil"}},
		"new file":         {archive: []tar.Header{file("out")}, to: "new", want: []string{". -rw-r--r-- evil"}},
		"file over a file": {archive: []tar.Header{file("out")}, to: ".bashrc", want: []string{". -rw-r--r-- evil"}},
		"file over a link": {archive: []tar.Header{file("out")}, to: "l", want: []string{". -rw-r--r-- evil"},
			here: func(home string) error { return os.Symlink("../outside/victim", filepath.Join(home, "l")) }},
		"merged": {archive: copied, to: "old",
			here: func(home string) error {
				return errors.Join(os.Mkdir(filepath.Join(home, "old"), 0o700), os.Mkdir(filepath.Join(home, "old/sub"), 0o711),
					os.WriteFile(filepath.Join(home, "old/sub/kept"), []byte("good"), 0o600),
					os.WriteFile(filepath.Join(home, "old/l"), []byte("good"), 0o600),
					os.Symlink("../../outside/victim", filepath.Join(home, "old/g")))
			},
			want: []string{". drwx------", "g -rw-r--r-- evil", "l Lrwxrwxrwx sub/f", "sub drwx--x--x", "sub/f -rw-r--r-- evil", "sub/kept -rw------- good"}},
		"content": {archive: copied, to: ".",
			here: func(home string) error {
				return errors.Join(os.RemoveAll(filepath.Join(home, ".ssh")), os.Chmod(home, 0o700))
			},
			want: []string{". drwx------", ".bashrc -rw------- good", "g -rw-r--r-- evil", "l Lrwxrwxrwx sub/f", "sub drwxr-xr-x", "sub/f -rw-r--r-- evil"}},
		"a link to a directory is not followed": {archive: copied, to: "old", err: "is a directory in the sandbox",
			here: func(home string) error {
				return errors.Join(os.Mkdir(filepath.Join(home, "old"), 0o700), os.Symlink("../../outside", filepath.Join(home, "old/sub")))
			},
			want: []string{". drwx------", "sub Lrwxrwxrwx ../../outside"}},
		"file over a directory": {archive: []tar.Header{file("out")}, to: ".ssh", err: "is a directory here",
			want: []string{". drwxr-xr-x", "config -rw------- good"}},
		"directory over a file":  {archive: copied, to: ".bashrc", err: "is a directory in the sandbox", want: []string{". -rw------- good"}},
		"content of a file":      {archive: []tar.Header{file("out")}, to: ".", err: "is a directory here", want: []string{". drwxr-xr-x", ".bashrc -rw------- good", ".ssh drwxr-xr-x", ".ssh/config -rw------- good"}},
		"file over a fifo":       {archive: []tar.Header{file("out")}, to: "f", err: "is not a file here", here: func(home string) error { return unix.Mkfifo(filepath.Join(home, "f"), 0o600) }, want: []string{". prw-------"}},
		"a name that is no name": {archive: copied, to: "../new", err: "not a name"},
	} {
		t.Run(name, func(t *testing.T) {
			home, root := world(t)
			if tc.here != nil {
				if err := tc.here(home); err != nil {
					t.Fatal(err)
				}
			}
			err := copyTo(root, bytes.NewReader(tarOf(t, tc.archive...)), "out", tc.to)
			if tc.err == "" && err != nil || tc.err != "" && (err == nil || !strings.Contains(err.Error(), tc.err)) {
				t.Errorf("error %v, want %q", err, tc.err)
			}
			if tc.want != nil {
				if diff := cmp.Diff(tc.want, tree(t, filepath.Join(home, tc.to))); diff != "" {
					t.Errorf("%s (-want +got):\n%s", tc.to, diff)
				}
			}
			if data, err := os.ReadFile(filepath.Join(home, "../outside/victim")); err != nil || string(data) != "good" {
				t.Errorf("the victim holds %q, %v", data, err)
			}
			noStage(t, home)
		})
	}
}

// noStage finds no directory of a copy.
func noStage(t *testing.T, home string) {
	t.Helper()
	if left, _ := filepath.Glob(filepath.Join(home, StagePrefix+"*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestLimits(t *testing.T) {
	in := tarOf(t, dir("out"), file("out/a"), file("out/b"), soft("out/c", "some/where"))
	whole := Limits{Entries: 4, Names: int64(len("out/out/aout/bout/csome/where")), Bytes: 8}
	for name, tc := range map[string]struct {
		limits func(*Limits)
		want   string
	}{
		"enough":      {func(*Limits) {}, ""},
		"few entries": {func(l *Limits) { l.Entries-- }, "number of files"},
		"few bytes":   {func(l *Limits) { l.Bytes-- }, "more bytes"},
		"short names": {func(l *Limits) { l.Names-- }, "more and longer names"},
	} {
		home, root := world(t)
		limits := whole
		tc.limits(&limits)
		s, err := Stage(root, NewReader(bytes.NewReader(in), "out", limits))
		if err == nil {
			err = s.Close()
		}
		if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%s: error %v, want %q", name, err, tc.want)
		}
		noStage(t, home)
	}
}

// A file that does not fit on the file system is refused before it is written,
// whatever the archive says of its holes.
func TestNoRoom(t *testing.T) {
	home, root := world(t)
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: "out", Typeflag: tar.TypeReg, Size: 1 << 60}); err != nil {
		t.Fatal(err)
	}
	limits := DefaultLimits()
	limits.Bytes = 1 << 62
	_, err := Stage(root, NewReader(io.MultiReader(&b, neverRead{t}), "out", limits))
	if err == nil || !strings.Contains(err.Error(), "there is room for") {
		t.Errorf("got %v", err)
	}
	if _, err := Stage(root, NewReader(&b, "out", DefaultLimits())); err == nil {
		t.Error("more than the limit was accepted")
	}
	noStage(t, home)
}

type neverRead struct{ t *testing.T }

func (n neverRead) Read([]byte) (int, error) {
	n.t.Error("content was read of a file for which there is no room")
	return 0, io.EOF
}

// An archive that breaks off anywhere, or goes on for ever, leaves nothing.
func TestArchiveThatIsNotWhole(t *testing.T) {
	in := tarOf(t, dir("out"), file("out/a"), soft("out/l", "a"))
	broken := errors.New("broken off")
	for at := 0; at <= len(in); at += 256 {
		home, root := world(t)
		_, err := Stage(root, NewReader(io.MultiReader(bytes.NewReader(in[:at]), iotest.ErrReader(broken)), "out", DefaultLimits()))
		if !errors.Is(err, broken) {
			t.Errorf("broken off at %d: %v", at, err)
		}
		noStage(t, home)
	}
	home, root := world(t)
	_, err := Stage(root, NewReader(io.MultiReader(bytes.NewReader(in), zeros{}), "out", DefaultLimits()))
	if err == nil || !strings.Contains(err.Error(), "does not end") {
		t.Errorf("endless: %v", err)
	}
	noStage(t, home)
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// Tar's own ways to say that a file has holes are for no honest agent.
func TestSparseIsRefused(t *testing.T) {
	in := tarOf(t, file("out"))
	in[156] = tar.TypeGNUSparse
	copy(in[148:], checksum(in[:512]))
	_, root := world(t)
	if _, err := Stage(root, NewReader(bytes.NewReader(in), "out", DefaultLimits())); err == nil {
		t.Error("a sparse file was accepted")
	}
}

func checksum(block []byte) []byte {
	sum := int64(0)
	for i, c := range block {
		if i >= 148 && i < 156 {
			c = ' '
		}
		sum += int64(c)
	}
	return fmt.Appendf(nil, "%06o\x00 ", sum)
}

func TestPackAndTakeBack(t *testing.T) {
	from := t.TempDir()
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
	home, root := world(t)
	if err := copyTo(root, &b, "src", "copy"); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(tree(t, filepath.Join(from, "src")), tree(t, filepath.Join(home, "copy"))); diff != "" {
		t.Error(diff)
	}
}

// FuzzReader: whatever the archive, an entry that is passed on is harmless by
// itself. It touches no file, so it gets far.
func FuzzReader(f *testing.F) {
	for _, entries := range hostile {
		f.Add(tarOf(f, entries...))
	}
	f.Add(tarOf(f, dir("out"), dir("out/a"), file("out/a/f"), hard("out/h", "out/a/f"), soft("out/a/l", "../h")))
	f.Fuzz(func(t *testing.T, data []byte) {
		left := Limits{Entries: 100, Names: 1 << 16, Bytes: 1 << 20}
		r := NewReader(bytes.NewReader(data), "out", left)
		for first := true; ; first = false {
			e, err := r.Next()
			if err != nil {
				if first && err == io.EOF {
					t.Fatal("an empty archive was accepted")
				}
				return
			}
			left.Entries--
			left.Bytes -= e.Size
			to := filepath.Join(filepath.Dir(e.Name), e.Target)
			switch {
			case left.Entries < 0 || left.Bytes < 0 || e.Size < 0:
				t.Fatalf("%+v is over the limits", e)
			case first != (e.Name == "."), !filepath.IsLocal(e.Name), strings.ContainsAny(e.Name, "\x00\x1b\n\x7f"):
				t.Fatalf("%+v has a bad name", e)
			case e.Mode&^(fs.ModePerm|fs.ModeDir|fs.ModeSymlink) != 0:
				t.Fatalf("%+v has a special mode", e)
			case e.Hard != "" && !filepath.IsLocal(e.Hard):
				t.Fatalf("%+v is a hard link out", e)
			case e.Mode&fs.ModeSymlink != 0 && (filepath.IsAbs(e.Target) || !filepath.IsLocal(to)):
				t.Fatalf("%+v is a link out", e)
			}
			io.Copy(io.Discard, r)
		}
	})
}

// FuzzStage: whatever the archive, what is outside its place stays as it is,
// and what was placed has no special file, no special mode and no link out.
func FuzzStage(f *testing.F) {
	for _, entries := range hostile {
		f.Add(tarOf(f, entries...))
	}
	f.Add(tarOf(f, dir("out"), dir("out/a"), file("out/a/f"), hard("out/h", "out/a/f"), soft("out/a/l", "../h")))
	f.Fuzz(func(t *testing.T, data []byte) {
		home, root := world(t)
		before := tree(t, filepath.Dir(home))
		limits := Limits{Entries: 1000, Names: 1 << 20, Bytes: 1 << 20}
		s, err := Stage(root, NewReader(bytes.NewReader(data), "out", limits))
		if err == nil {
			_, err = s.Place("out", false)
			err = errors.Join(err, s.Close())
		}
		out := filepath.Join(home, "out")
		if err == nil {
			checkPlaced(t, out)
			if err := os.RemoveAll(out); err != nil {
				t.Fatal(err)
			}
		}
		if diff := cmp.Diff(before, tree(t, filepath.Dir(home))); diff != "" {
			t.Fatalf("with error %v: %s", err, diff)
		}
	})
}

func checkPlaced(t *testing.T, out string) {
	t.Helper()
	real, err := filepath.EvalSymlinks(out)
	if err != nil {
		t.Fatal(err)
	}
	err = filepath.WalkDir(out, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if info.Mode()&^(fs.ModePerm|fs.ModeDir|fs.ModeSymlink) != 0 {
			t.Errorf("%q has mode %v", p, info.Mode())
		}
		if info.Mode()&fs.ModeSymlink != 0 {
			to, err := filepath.EvalSymlinks(p)
			if err == nil && to != real && !strings.HasPrefix(to, real+"/") {
				t.Errorf("%q leads to %q", p, to)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
