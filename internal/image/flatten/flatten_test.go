package flatten

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	. "creel/internal/image/imagetest"
)

// layersOf stores tars as files.
func layersOf(t testing.TB, pack func(testing.TB, []byte) []byte, tars ...[]byte) []Layer {
	t.Helper()
	var out []Layer
	for i, b := range tars {
		l := Layer{Name: fmt.Sprint("layer-", i), DiffID: fmt.Sprintf("sha256:%x", sha256.Sum256(b))}
		if pack != nil {
			b = pack(t, b)
		}
		path := filepath.Join(t.TempDir(), l.Name)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		l.Open = func() (*os.File, error) { return os.Open(path) }
		out = append(out, l)
	}
	return out
}

func build(t testing.TB, layers []Layer, limits Limits) (string, error) {
	t.Helper()
	out, err := os.Create(filepath.Join(t.TempDir(), "root.ext4"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	scratch := t.TempDir()
	err = Ext4(context.Background(), layers, scratch, out, limits)
	if left, _ := os.ReadDir(scratch); len(left) != 0 {
		t.Errorf("scratch still holds %v", left)
	}
	return out.Name(), err
}

// got is what a mounted file system shows of one file.
type got struct {
	Mode   string
	Owner  string
	MTime  string
	Body   string
	Target string
	Dev    string
	Xattrs map[string]string
	Links  uint64
}

// mounted mounts an image and reads it all.
func mounted(t *testing.T, path string) map[string]got {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("mounting the result needs root")
	}
	if out, err := exec.Command("e2fsck", "-fn", path).CombinedOutput(); errors.Is(err, exec.ErrNotFound) {
		t.Log("e2fsck is not installed: not checked")
	} else if err != nil {
		t.Errorf("e2fsck: %v\n%s", err, out)
	}
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-o", "loop,ro", path, dir).CombinedOutput(); err != nil {
		t.Skipf("this machine cannot mount a loop device: %v: %s", err, out)
	}
	defer func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	}()
	files := map[string]got{}
	err := filepath.WalkDir(dir, func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(dir, p)
		if name != "lost+found" {
			files[name] = look(t, p)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func look(t *testing.T, p string) got {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(p, &st); err != nil {
		t.Fatal(err)
	}
	g := got{
		Mode: fmt.Sprintf("%o", st.Mode), Owner: fmt.Sprintf("%d:%d", st.Uid, st.Gid),
		MTime: time.Unix(st.Mtim.Sec, st.Mtim.Nsec).UTC().Format(time.RFC3339Nano), Xattrs: map[string]string{},
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		b, err := os.ReadFile(p)
		if err != nil {
			t.Error(err)
		}
		g.Body, g.Links = string(b), st.Nlink
	case unix.S_IFLNK:
		g.Target, _ = os.Readlink(p)
		g.Links = st.Nlink
	case unix.S_IFCHR, unix.S_IFBLK:
		g.Dev = fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	}
	list := make([]byte, 1<<16)
	n, err := unix.Llistxattr(p, list)
	if err != nil {
		t.Errorf("%s: list attributes: %v", p, err)
		return g
	}
	for _, name := range strings.Split(strings.TrimRight(string(list[:n]), "\x00"), "\x00") {
		if name == "" {
			continue
		}
		value := make([]byte, 1<<16)
		n, err := unix.Lgetxattr(p, name, value)
		if err != nil {
			t.Errorf("%s: attribute %s is listed but cannot be read: %v", p, name, err)
			continue
		}
		g.Xattrs[name] = string(value[:n])
	}
	return g
}

// tree lists names with the content that matters in the whiteout tests.
func names(files map[string]got) map[string]string {
	out := map[string]string{}
	for name, g := range files {
		if name == "." {
			continue
		}
		switch {
		case strings.HasPrefix(g.Mode, "4"):
			out[name] = "dir " + g.Mode[len(g.Mode)-3:]
		case g.Target != "":
			out[name] = "-> " + g.Target
		case g.Links > 1:
			out[name] = fmt.Sprintf("%s (%d names)", g.Body, g.Links)
		default:
			out[name] = g.Body
		}
	}
	return out
}

func TestLayersAreApplied(t *testing.T) {
	mode := func(f File, mode int64) File { f.Mode = mode; return f }
	tests := map[string]struct {
		layers [][]File
		want   map[string]string
	}{
		"whiteout of a file and of a directory": {
			[][]File{
				{Dir("a/"), Reg("a/x", "1", 0o644), Reg("a/y", "2", 0o644), Dir("d/"), Reg("d/deep/z", "3", 0o644)},
				{Whiteout("a/", "x"), Whiteout("", "d")},
			},
			map[string]string{"a": "dir 755", "a/y": "2"},
		},
		"whiteout spares what its own layer put there, before or after": {
			[][]File{
				{Reg("a/x", "old", 0o644), Reg("b/x", "old", 0o644), Reg("c/old", "old", 0o644)},
				{Reg("a/x", "new", 0o644), Whiteout("a/", "x"), Whiteout("b/", "x"), Reg("b/x", "new", 0o644),
					Reg("c/new", "new", 0o644), Whiteout("", "c")},
			},
			map[string]string{"a": "dir 755", "a/x": "new", "b": "dir 755", "b/x": "new", "c": "dir 755", "c/new": "new"},
		},
		"opaque directory": {
			[][]File{
				{mode(Dir("a/"), 0o700), Reg("a/x", "1", 0o644), Reg("a/s/y", "2", 0o644)},
				{mode(Dir("a/"), 0o711), Reg("a/s/new", "3", 0o644), Opaque("a/")},
			},
			map[string]string{"a": "dir 711", "a/s": "dir 755", "a/s/new": "3"},
		},
		"file becomes directory and the reverse": {
			[][]File{
				{Reg("f", "file", 0o644), Dir("d/"), Reg("d/x", "1", 0o644), Reg("p", "file", 0o644)},
				{Dir("f/"), Reg("f/in", "2", 0o644), Reg("d", "file", 0o644), Reg("p/in", "implicit", 0o644)},
			},
			map[string]string{"f": "dir 755", "f/in": "2", "d": "file", "p": "dir 755", "p/in": "implicit"},
		},
		"hard links within and across layers, and to names that go away": {
			[][]File{
				{Reg("a", "A", 0o644), Link("b", "a"), Reg("g", "G", 0o644), Reg("o", "O", 0o644)},
				{Link("c", "./b"), Link("h", "g"), Whiteout("", "g"), Link("p", "/o"), Reg("o", "other", 0o644)},
				{Link("a", "a")},
			},
			map[string]string{"a": "A (3 names)", "b": "A (3 names)", "c": "A (3 names)", "h": "G", "o": "other", "p": "O"},
		},
		"hard link to a symbolic link": {
			[][]File{{Symlink("s", "nowhere"), Link("t", "s")}},
			map[string]string{"s": "-> nowhere", "t": "-> nowhere"},
		},
		"names are cleaned and parents are made": {
			[][]File{{Reg("./x/../y/file", "1", 0o644), Reg("/abs//file", "2", 0o644), Dir("./")}},
			map[string]string{"y": "dir 755", "y/file": "1", "abs": "dir 755", "abs/file": "2"},
		},
		"linked parents are followed inside the root": {
			[][]File{
				{Dir("usr/bin/"), Symlink("bin", "usr/bin"), Symlink("up", "../../../usr"), Symlink("abs", "/usr/bin"), Symlink("dangling", "made/here")},
				{Reg("bin/a", "1", 0o644), Reg("up/b", "2", 0o644), Reg("abs/c", "3", 0o644), Reg("dangling/d", "4", 0o644), Link("e", "bin/a")},
			},
			map[string]string{
				"usr": "dir 755", "usr/bin": "dir 755", "bin": "-> usr/bin", "up": "-> ../../../usr", "abs": "-> /usr/bin",
				"dangling": "-> made/here", "made": "dir 755", "made/here": "dir 755", "made/here/d": "4",
				"usr/bin/a": "1 (2 names)", "e": "1 (2 names)", "usr/b": "2", "usr/bin/c": "3",
			},
		},
		"directory replaces a symbolic link, metadata of a directory is the last": {
			[][]File{
				{Dir("real/"), Symlink("s", "real"), mode(Dir("m/"), 0o700), Reg("m/x", "1", 0o644)},
				{Dir("s/"), Reg("s/in", "2", 0o644), mode(Dir("m/"), 0o750)},
				{Reg("m/y", "3", 0o644)},
			},
			map[string]string{"real": "dir 755", "s": "dir 755", "s/in": "2", "m": "dir 750", "m/x": "1", "m/y": "3"},
		},
		"AUFS bookkeeping is left out": {
			[][]File{{Dir(".wh..wh.plnk/"), Reg(".wh..wh.aufs", "", 0o444), Reg("x", "1", 0o644)}},
			map[string]string{"x": "1"},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var tars [][]byte
			for _, files := range tt.layers {
				tars = append(tars, MakeLayer(t, files...))
			}
			path, err := build(t, layersOf(t, nil, tars...), DefaultLimits())
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, names(mounted(t, path))); diff != "" {
				t.Errorf("files (-want +got):\n%s", diff)
			}
		})
	}
}

func TestRefused(t *testing.T) {
	long := strings.Repeat("n", 256)
	tests := map[string]struct {
		files []File
		want  string
	}{
		"name that leaves":            {[]File{Reg("../x", "", 0)}, "leaves the root"},
		"name that leaves in between": {[]File{Reg("a/../../x", "", 0)}, "leaves the root"},
		"link target that leaves":     {[]File{Link("x", "../etc/passwd")}, "leaves the root"},
		"link to nothing":             {[]File{Link("x", "y")}, "does not exist"},
		"link to a directory":         {[]File{Dir("d/"), Link("x", "d")}, "is a directory"},
		"link to itself alone":        {[]File{Link("x", "x")}, "does not exist"},
		"link loop in a parent":       {[]File{Symlink("a", "b"), Symlink("b", "a"), Reg("a/x", "", 0)}, "too many symbolic links"},
		"file as a parent":            {[]File{Reg("f", "", 0), Reg("f/x", "", 0)}, "not a directory"},
		"long name":                   {[]File{Reg(long, "", 0)}, "longer than 255"},
		"long parent":                 {[]File{Reg(long+"/x", "", 0)}, "longer than 255"},
		"long path":                   {[]File{Reg(strings.Repeat("d/", 2100)+"x", "", 0)}, "longer than 4096"},
		"deep path":                   {[]File{Reg(strings.Repeat("d/", 1100)+"x", "", 0)}, "deeper than"},
		"whiteout of the parent":      {[]File{Reg("a/.wh...", "", 0)}, "whiteout of nothing"},
		"root that is a file":         {[]File{Symlink("./", "x")}, "root of an image must be a directory"},
		"lost+found that is a file":   {[]File{Reg("lost+found", "", 0)}, "lost+found"},
		"device out of range":         {[]File{{Header: tar.Header{Typeflag: tar.TypeChar, Name: "d", Devmajor: 4096}}}, "out of range"},
		"unknown type":                {[]File{{Header: tar.Header{Typeflag: 'Z', Name: "z"}}}, "unknown type"},
		"attribute too large": {[]File{{Header: tar.Header{Typeflag: tar.TypeReg, Name: "x",
			PAXRecords: map[string]string{"SCHILY.xattr.user.big": strings.Repeat("x", 5000)}}}}, "xattr user.big"},
		"damaged access list": {[]File{{Header: tar.Header{Typeflag: tar.TypeReg, Name: "x",
			PAXRecords: map[string]string{"SCHILY.xattr.system.posix_acl_access": "nonsense"}}}}, "access control list"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := build(t, layersOf(t, nil, MakeLayer(t, tt.files...)), DefaultLimits())
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got error %v, want one with %q", err, tt.want)
			}
		})
	}
}

func TestLimits(t *testing.T) {
	small := MakeLayer(t, Reg("a", strings.Repeat("x", 1000), 0o644), Reg("b", "", 0o644))
	tests := map[string]struct {
		limits Limits
		want   string
	}{
		"bytes":    {Limits{Bytes: 3000, Entries: 10, Metadata: 100}, "unpacks to more than"},
		"entries":  {Limits{Bytes: 1 << 20, Entries: 3, Metadata: 100}, "more than 3 entries"},
		"metadata": {Limits{Bytes: 1 << 20, Entries: 10, Metadata: 3}, "names and attributes"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			for _, pack := range []func(testing.TB, []byte) []byte{nil, PackGzip, PackZstd} {
				_, err := build(t, layersOf(t, pack, small, MakeLayer(t, Reg("c", "", 0), Reg("d", "", 0))), tt.limits)
				if err == nil || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("got error %v, want one with %q", err, tt.want)
				}
			}
		})
	}
}

func TestDamagedLayers(t *testing.T) {
	good := MakeLayer(t, Reg("a", strings.Repeat("content ", 1000), 0o644))
	half := func(b []byte) []byte { return b[:len(b)/2] }
	tests := map[string]struct {
		stored []byte
		want   string
	}{
		"truncated tar":  {half(good), "unexpected EOF"},
		"truncated gzip": {half(PackGzip(t, good)), "unexpected EOF"},
		"truncated zstd": {half(PackZstd(t, good)), "EOF"},
		"other content":  {MakeLayer(t, Reg("b", "", 0)), "but the image's configuration says"},
		"no tar":         {[]byte(strings.Repeat("no tar", 1000)), "invalid tar header"},
		"bzip2":          {[]byte("BZh91AY&SY"), "bzip2"},
		"bad gzip sum":   {func() []byte { b := PackGzip(t, good); b[len(b)-6] ^= 1; return b }(), "checksum"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			l := layersOf(t, nil, tt.stored)
			l[0].DiffID = layersOf(t, nil, good)[0].DiffID
			_, err := build(t, l, DefaultLimits())
			if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), "layer-0") {
				t.Errorf("got error %v, want one with %q that names the layer", err, tt.want)
			}
		})
	}
}

func acl(entries ...[3]uint32) string {
	b := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range entries {
		b = binary.LittleEndian.AppendUint16(b, uint16(e[0]))
		b = binary.LittleEndian.AppendUint16(b, uint16(e[1]))
		b = binary.LittleEndian.AppendUint32(b, e[2])
	}
	return string(b)
}

// TestMetadataSurvives compares every attribute of every kind of file with
// what the tar said, through the kernel's own ext4.
func TestMetadataSurvives(t *testing.T) {
	none := ^uint32(0)
	list := acl([3]uint32{1, 6, none}, [3]uint32{2, 7, 1234}, [3]uint32{4, 4, none}, [3]uint32{8, 5, 99}, [3]uint32{16, 7, none}, [3]uint32{32, 4, none})
	xattrs := func(kv ...string) map[string]string {
		m := map[string]string{}
		for i := 0; i < len(kv); i += 2 {
			m[xattrRecord+kv[i]] = kv[i+1]
		}
		return m
	}
	var crowd []string // more than the library sorts rightly
	for i := range 30 {
		space := []string{"user.", "trusted.", "security."}[i%3]
		crowd = append(crowd, space+strings.Repeat(string(rune('a'+i%7)), 1+i*5%9), strings.Repeat("v", 60+i%5))
	}
	at := func(s string) time.Time {
		tm, err := time.Parse(time.RFC3339Nano, s)
		if err != nil {
			t.Fatal(err)
		}
		return tm
	}
	deep := strings.Repeat("dir-with-a-name-of-some-length/", 20)
	files := []File{
		{Header: tar.Header{Typeflag: tar.TypeDir, Name: "./", Mode: 0o751, Uid: 7, Gid: 8, ModTime: at("2020-01-02T03:04:05.6Z")}},
		{Header: tar.Header{Typeflag: tar.TypeReg, Name: "suid", Mode: 0o4755, Uid: 1, Gid: 2}, Body: "s"},
		{Header: tar.Header{Typeflag: tar.TypeReg, Name: "sgid", Mode: 0o2755, Uid: 100000, Gid: 4000000000}, Body: "g"},
		{Header: tar.Header{Typeflag: tar.TypeDir, Name: "sticky/", Mode: 0o1777}},
		{Header: tar.Header{Typeflag: tar.TypeReg, Name: "nano", ModTime: at("2023-05-06T07:08:09.123456789Z")}, Body: "n"},
		{Header: tar.Header{Typeflag: tar.TypeReg, Name: "before1970", ModTime: at("1965-05-06T07:08:09.5Z")}},
		{Header: tar.Header{Typeflag: tar.TypeReg, Name: "before1901", ModTime: at("1801-05-06T07:08:09Z")}},
		{Header: tar.Header{Typeflag: tar.TypeReg, Name: "after2038", ModTime: at("2050-05-06T07:08:09.25Z")}},
		{Header: tar.Header{Typeflag: tar.TypeReg, Name: "after2106", ModTime: at("2150-05-06T07:08:09.75Z")}},
		{Header: tar.Header{Typeflag: tar.TypeReg, Name: "after2242", ModTime: at("2300-05-06T07:08:09Z")}},
		{Header: tar.Header{Typeflag: tar.TypeReg, Name: "capable", Mode: 0o755,
			PAXRecords: xattrs("security.capability", "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")}},
		{Header: tar.Header{Typeflag: tar.TypeReg, Name: "many", Mode: 0o644, PAXRecords: xattrs(
			"user.a-very-long-attribute-name", strings.Repeat("v", 100), "user.zz", strings.Repeat("w", 90), "user.b", strings.Repeat("u", 80),
			"trusted.t", strings.Repeat("t", 95), "security.cc", strings.Repeat("s", 99), "user.empty", "")}},
		{Header: tar.Header{Typeflag: tar.TypeReg, Name: "crowd", Mode: 0o644, PAXRecords: xattrs(crowd...)}},
		{Header: tar.Header{Typeflag: tar.TypeReg, Name: "acl", Mode: 0o664, PAXRecords: xattrs(aclAccess, list)}},
		{Header: tar.Header{Typeflag: tar.TypeDir, Name: "acldir/", Mode: 0o775, PAXRecords: xattrs(aclAccess, list, aclDefault, list)}},
		{Header: tar.Header{Typeflag: tar.TypeReg, Name: "left-out", Mode: 0o644, PAXRecords: xattrs("trusted.overlay.opaque", "y", "foreign.x", "y", "user.", "y")}},
		{Header: tar.Header{Typeflag: tar.TypeChar, Name: "chr", Mode: 0o666, Devmajor: 1, Devminor: 3}},
		{Header: tar.Header{Typeflag: tar.TypeBlock, Name: "blk", Mode: 0o660, Devmajor: 4095, Devminor: 1048575}},
		{Header: tar.Header{Typeflag: tar.TypeFifo, Name: "fifo", Mode: 0o600}},
		Symlink("short", "target"),
		{Header: tar.Header{Typeflag: tar.TypeSymlink, Name: "long-link", Linkname: strings.Repeat("t/", 200), Uid: 5, Gid: 6, ModTime: at("2001-01-01T00:00:00.1Z")}},
		Reg(deep+strings.Repeat("n", 255), "deep", 0o640),
		Reg("näme with\nnewline\xff and bytes", "odd", 0o600),
		Reg("large", strings.Repeat("0123456789abcdef", 400_000), 0o644),
		Reg("block", strings.Repeat("b", 4096), 0o644),
	}
	want := map[string]got{}
	types := map[byte]uint32{tar.TypeReg: unix.S_IFREG, tar.TypeDir: unix.S_IFDIR, tar.TypeSymlink: unix.S_IFLNK,
		tar.TypeChar: unix.S_IFCHR, tar.TypeBlock: unix.S_IFBLK, tar.TypeFifo: unix.S_IFIFO}
	clamped := map[string]string{"before1901": "1901-12-13T20:45:52Z"}
	for _, f := range files {
		name := filepath.Clean(f.Name)
		g := got{Mode: fmt.Sprintf("%o", types[f.Typeflag]|uint32(f.Mode)), Owner: fmt.Sprintf("%d:%d", f.Uid, f.Gid), Body: f.Body,
			Target: f.Linkname, Xattrs: map[string]string{}}
		mtime := f.ModTime
		if mtime.IsZero() {
			mtime = Epoch
		}
		g.MTime = mtime.UTC().Format(time.RFC3339Nano)
		if c := clamped[name]; c != "" {
			g.MTime = c
		}
		if f.Typeflag == tar.TypeReg || f.Typeflag == tar.TypeSymlink {
			g.Links = 1
		}
		if f.Typeflag == tar.TypeSymlink {
			g.Mode = fmt.Sprintf("%o", unix.S_IFLNK|0o777)
		}
		if f.Typeflag == tar.TypeChar || f.Typeflag == tar.TypeBlock {
			g.Dev = fmt.Sprintf("%d:%d", f.Devmajor, f.Devminor)
		}
		if name != "left-out" {
			for k, v := range f.PAXRecords {
				g.Xattrs[strings.TrimPrefix(k, xattrRecord)] = v
			}
		}
		want[name] = g
	}
	for d := filepath.Clean(deep); d != "."; d = filepath.Dir(d) {
		want[d] = got{Mode: "40755", Owner: "0:0", MTime: "1970-01-01T00:00:00Z", Xattrs: map[string]string{}}
	}
	for name, pack := range map[string]func(testing.TB, []byte) []byte{"plain": nil, "gzip": PackGzip, "zstd": PackZstd} {
		t.Run(name, func(t *testing.T) {
			path, err := build(t, layersOf(t, pack, MakeLayer(t, files...)), DefaultLimits())
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, mounted(t, path)); diff != "" {
				t.Errorf("files (-want +got):\n%s", diff)
			}
		})
	}
}

// TestSparse takes in a file as GNU tar writes it, in pieces.
func TestSparse(t *testing.T) {
	tarPath, err := exec.LookPath("tar")
	if err != nil {
		t.Skip("tar is not installed")
	}
	dir := t.TempDir()
	f, err := os.Create(filepath.Join(dir, "holes"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	want := make([]byte, 1<<20)
	for _, at := range []int{8192, 500_000} {
		copy(want[at:], "island")
		if _, err := f.WriteAt([]byte("island"), int64(at)); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Truncate(1 << 20); err != nil {
		t.Fatal(err)
	}
	for _, format := range [][]string{{"--format=gnu"}, {"--format=pax"}, {"--format=pax", "--sparse-version=0.1"}} {
		b, err := exec.Command(tarPath, append(format, "-cS", "-C", dir, "holes")...).Output()
		if err != nil {
			t.Skipf("this tar writes no sparse files: %v", err)
		}
		if len(b) > 1<<19 {
			t.Skip("the file system of the test has no holes")
		}
		after := MakeLayer(t, Reg("other", "x", 0o644))
		path, err := build(t, layersOf(t, PackGzip, b, after), DefaultLimits())
		if err != nil {
			t.Fatalf("%v: %v", format, err)
		}
		if got := mounted(t, path)["holes"].Body; got != string(want) {
			t.Errorf("%v: content differs", format)
		}
		limits := DefaultLimits()
		limits.Bytes = 1 << 20
		if _, err := build(t, layersOf(t, nil, b), limits); err == nil || !strings.Contains(err.Error(), "unpacks to more") {
			t.Errorf("%v: got error %v, want the limit to count filled holes", format, err)
		}
	}
}

func TestSameLayersSameBytes(t *testing.T) {
	var files []File
	for i := range 500 {
		files = append(files, File{Header: tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("d%d/f%d", i%7, i), Mode: 0o644,
			PAXRecords: map[string]string{xattrRecord + "user.b": "1", xattrRecord + "user.a": "2", xattrRecord + "security.x": strings.Repeat("v", 90)}},
			Body: fmt.Sprint(i)})
	}
	tars := [][]byte{MakeLayer(t, files...), MakeLayer(t, Whiteout("", "d3"), Link("l", "d1/f1"))}
	var first string
	for i, pack := range []func(testing.TB, []byte) []byte{nil, nil, PackGzip, PackZstd} {
		path, err := build(t, layersOf(t, pack, tars...), DefaultLimits())
		if err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		sum := fmt.Sprintf("%x", sha256.Sum256(b))
		if i == 0 {
			first = sum
		} else if sum != first {
			t.Errorf("build %d gave other bytes", i)
		}
	}
}

func TestCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	out, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	if err := Ext4(ctx, layersOf(t, PackGzip, MakeLayer(t, Reg("a", "", 0))), t.TempDir(), out, DefaultLimits()); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
}
