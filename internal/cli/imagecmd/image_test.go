package imagecmd

import (
	"archive/tar"
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"creel/internal/cli/command"
	"creel/internal/image"
	"creel/internal/image/imagetest"
)

// creel runs command lines against an image store of its own.
func creel(t *testing.T) (run func(args ...string) (stdout, stderr string, code int)) {
	t.Helper()
	store, err := image.Open(filepath.Join(t.TempDir(), "images"))
	if err != nil {
		t.Fatal(err)
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { null.Close() })
	return func(args ...string) (string, string, int) {
		var out, errs bytes.Buffer
		open := func(context.Context) (*Store, error) { return &Store{Store: store}, nil }
		root := New(Env{
			Streams: command.Streams{In: null, Out: &out, Err: &errs},
			Open:    open, Look: open, Nothing: func(context.Context) bool { return false },
		})
		root.SetArgs(args)
		root.SetOut(&out)
		root.SetErr(&errs)
		if err := root.Execute(); err != nil {
			return out.String(), errs.String() + err.Error(), 1
		}
		return out.String(), errs.String(), 0
	}
}

// An image goes the whole way: in as a tar, out to a registry under another
// name, back from there into another store, and out as an archive.
func TestImageGoesThroughARegistry(t *testing.T) {
	there := imagetest.Registry(t) + "/tools:1"
	rootfs := filepath.Join(t.TempDir(), "rootfs.tar")
	layer := imagetest.MakeLayer(t, imagetest.Dir("bin/"), imagetest.Reg("bin/tool", "#!/bin/sh\n", 0o755))
	if err := os.WriteFile(rootfs, layer, 0o600); err != nil {
		t.Fatal(err)
	}
	here, elsewhere := creel(t), creel(t)
	for _, args := range [][]string{
		{"import", rootfs, "tools"}, {"tag", "tools", there}, {"push", there},
	} {
		if _, stderr, code := here(args...); code != 0 {
			t.Fatalf("%q: code %d, %s", args, code, stderr)
		}
	}
	out, progress, code := elsewhere("pull", there)
	if code != 0 || !strings.HasPrefix(out, "pulled ") {
		t.Fatalf("pull: code %d, %q, %s", code, out, progress)
	}
	if strings.Contains(progress, "\x1b") || !strings.Contains(progress, "done") {
		t.Errorf("progress where nobody watches is %q, want plain lines", progress)
	}
	if out, _, _ := elsewhere("inspect", "--format", "{{.Config.Cmd}}", there); out != "[/bin/sh]\n" {
		t.Errorf("inspect says %q", out)
	}
	archive := filepath.Join(t.TempDir(), "tools.tar")
	if _, stderr, code := elsewhere("save", "-o", archive, there); code != 0 {
		t.Fatalf("save: %s", stderr)
	}
	f, err := os.Open(archive)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := tar.NewReader(f).Next(); err != nil {
		t.Errorf("the archive is no tar: %v", err)
	}
	if _, err := os.Stat(archive + ".part"); err == nil {
		t.Error("the unfinished file is still there")
	}
}

func TestImageErrorsSayWhatToDo(t *testing.T) {
	run := creel(t)
	for want, args := range map[string][]string{
		"creel image ls":   {"inspect", "nothing"},
		"linux/amd64":      {"pull", "--platform", "a/b/c/d", "127.0.0.1:1/a"},
		"creel image pull": {"tag", "nothing", "else"},
		"no such file":     {"load", "-i", "/does/not/exist"},
		"is not a command": {"fetch"},
	} {
		if _, stderr, code := run(args...); code == 0 || !strings.Contains(stderr, want) {
			t.Errorf("%q: code %d, %q does not say %q", args, code, stderr, want)
		}
	}
}
