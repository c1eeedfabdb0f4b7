package integration

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"creel/test/rig"

	"github.com/google/go-cmp/cmp"
)

func TestCopyInAndOut(t *testing.T) {
	r := machines(t)
	name := background(t, r, "debian", "sleep", "1000")
	dir := t.TempDir()
	tree := filepath.Join(dir, "tree")
	if err := os.MkdirAll(filepath.Join(tree, "sub"), 0o750); err != nil {
		t.Fatal(err)
	}
	big := bytes.Repeat([]byte("creel"), 1<<18)
	for file, mode := range map[string]os.FileMode{"plain": 0o640, "sub/run": 0o755} {
		path := filepath.Join(tree, file)
		if err := os.WriteFile(path, big, mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("sub/run", filepath.Join(tree, "link")); err != nil {
		t.Fatal(err)
	}
	r.Must(t, "cp", tree, name+":/in")
	got := r.Must(t, "exec", name, "sh", "-c", "cd /in && find . -printf '%p %y %m %U:%G %l\n' | sort && cmp plain sub/run && sha256sum plain")
	want := []string{". d 750 0:0 ", "./link l 777 0:0 sub/run", "./plain f 640 0:0 ", "./sub d 750 0:0 ", "./sub/run f 755 0:0 ", sha256Hex(big) + "  plain"}
	if diff := cmp.Diff(want, lines(got)); diff != "" {
		t.Errorf("in the sandbox (-want +got):\n%s", diff)
	}
	r.Must(t, "exec", name, "sh", "-c", "chown 12:34 /in/plain && chmod 4711 /in/sub/run && ln /in/plain /in/hard")
	r.Must(t, "cp", name+":/in", filepath.Join(dir, "out"))
	for file, mode := range map[string]os.FileMode{"plain": 0o640, "sub/run": 0o711} {
		back, err := os.ReadFile(filepath.Join(dir, "out", file))
		if err != nil || !bytes.Equal(back, big) {
			t.Errorf("%s came back with %d bytes, %v", file, len(back), err)
		}
		if info, err := os.Stat(filepath.Join(dir, "out", file)); err == nil && info.Mode().Perm() != mode {
			t.Errorf("%s came back as %v, want %v", file, info.Mode(), mode)
		}
	}
	t.Run("ended and kept", func(t *testing.T) {
		r.Must(t, "stop", "-t", "0", name)
		listing := tarListing(t, r.Must(t, "cp", name+":/in", "-"))
		want := []string{"in/ 750 0:0", "in/hard 640 12:34", "in/link 777 0:0", "in/plain 640 12:34", "in/sub/ 750 0:0", "in/sub/run 4711 0:0"}
		if diff := cmp.Diff(want, listing); diff != "" {
			t.Errorf("the archive (-want +got):\n%s", diff)
		}
		r.Must(t, "cp", filepath.Join(tree, "plain"), name+":/in/late")
		if got := r.Must(t, "cp", name+":/in/late", "-"); !strings.Contains(got, string(big)) {
			t.Error("what was copied into the ended sandbox is not there")
		}
	})
}

// A copy that is told to end removes what it began; one that is killed leaves no
// more than a directory whose name says what it is.
func TestCopyThatIsEndedLeavesNothing(t *testing.T) {
	r := machines(t)
	name := background(t, r, "debian", "sleep", "1000")
	r.Must(t, "exec", name, "sh", "-c", "mkdir /big && truncate -s 4G /big/file")
	for _, tc := range []struct {
		signal syscall.Signal
		code   int
		left   string
	}{{syscall.SIGTERM, 143, ""}, {syscall.SIGINT, 130, ""}, {syscall.SIGKILL, -1, ".creel-cp-*"}} {
		dir := t.TempDir()
		if err := os.Chmod(dir, 0o777); err != nil {
			t.Fatal(err)
		}
		run := r.Start(t, "cp", name+":/big", dir)
		awaitFile(t, filepath.Join(dir, ".creel-cp-*", "content", "file"))
		run.Cmd.Process.Signal(tc.signal)
		if code := run.Wait(); code != tc.code {
			t.Errorf("%v: exit code %d, want %d; %s", tc.signal, code, tc.code, run.Stderr)
		}
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if match, _ := filepath.Match(tc.left, e.Name()); !match {
				t.Errorf("%v: left behind: %s", tc.signal, e.Name())
			}
		}
	}
}

// awaitFile waits for one file of a pattern.
func awaitFile(t *testing.T, pattern string) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	limit := time.NewTimer(rig.Patience)
	defer limit.Stop()
	for {
		if found, _ := filepath.Glob(pattern); len(found) > 0 {
			return
		}
		select {
		case <-limit.C:
			t.Fatalf("there is no %s", pattern)
		case <-tick.C:
		}
	}
}

// tarListing describes the entries of an archive, in order of their names.
func tarListing(t *testing.T, archive string) []string {
	t.Helper()
	var out []string
	for tr := tar.NewReader(strings.NewReader(archive)); ; {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, fmt.Sprintf("%s %o %d:%d", h.Name, h.Mode&0o7777, h.Uid, h.Gid))
	}
	slices.Sort(out)
	return out
}

func TestCopyRefuses(t *testing.T) {
	r := machines(t)
	name := background(t, r, "debian", "sleep", "1000")
	for want, args := range map[string][]string{
		"only one":                  {"a", "b"},
		"no-such-file":              {name + ":/no-such-file", t.TempDir()},
		"no such sandbox":           {"no-such-sandbox:/etc", t.TempDir()},
		"no such directory in the":  {"/etc/passwd", name + ":/no-such-dir/"},
		"is a file in the sandbox":  {"/etc", name + ":/etc/passwd"},
		"not a file, directory or ": {name + ":/dev/null", t.TempDir()},
	} {
		if got := r.Run(t, append([]string{"cp"}, args...)...); got.Code != 1 || !strings.Contains(got.Err, want) {
			t.Errorf("cp %q: %+v, want %q", args, got, want)
		}
	}
}
