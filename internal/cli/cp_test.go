package cli

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"creel/internal/archive"
	"creel/internal/cli/command"
	"creel/internal/guest/api"
	"creel/internal/keeper/socket"
	"creel/internal/sandbox"
	"creel/internal/wire"

	"github.com/google/go-cmp/cmp"
)

// hostileKeeper answers a copy with whatever send writes: what the guest behind
// an honest keeper could.
func hostileKeeper(t *testing.T, send func(io.Writer)) *socket.Client {
	t.Helper()
	id := sandbox.NewID()
	ours, theirs := net.Pipe()
	keeper := wire.NewConn(theirs, wire.Options{Handler: func(ctx context.Context, s *wire.Stream) {
		switch s.Op() {
		case socket.OpHello:
			s.Send(ctx, socket.HelloReply{Version: socket.Version, ID: id})
		case api.OpCopyOut:
			s.Send(ctx, api.Reply{})
			w := s.Writer(api.ChannelOut)
			send(w)
			w.Close()
		case api.OpCopyIn:
			<-ctx.Done() // takes no more than a window
		}
	}})
	t.Cleanup(func() { keeper.Close() })
	c, err := socket.NewClient(t.Context(), ours, id)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func tarball(t *testing.T, headers ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		if h.Mode == 0 {
			h.Mode = 0o755
		}
		if h.Typeflag == tar.TypeReg {
			h.Size = 3
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			io.WriteString(w, "new")
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// listing is all that is below dir, and what files hold.
func listing(t *testing.T, dir string) []string {
	t.Helper()
	all := []string{}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == dir {
			return err
		}
		line, _ := filepath.Rel(dir, p)
		switch {
		case d.IsDir():
			line += "/"
		case d.Type() == fs.ModeSymlink:
			to, _ := os.Readlink(p)
			line += " -> " + to
		default:
			data, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			line += " " + string(data)
		}
		all = append(all, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// home is the working directory of a user with something to lose.
func home(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "home")
	for _, d := range []string{dir, filepath.Join(dir, "have")} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, content := range map[string]string{".bashrc": "old", "file": "old", "../victim": "old", "have/kept": "old"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Symlink("have", filepath.Join(dir, "to-have")), os.Symlink("file", filepath.Join(dir, "to-file")),
		os.Symlink("nowhere", filepath.Join(dir, "to-nothing"))); err != nil {
		t.Fatal(err)
	}
	t.Chdir(dir)
	return dir
}

// The attacks of issue 11, and their neighbours: nothing here may change.
func TestCopyCannotBeTurnedAgainstItsUser(t *testing.T) {
	top := tar.Header{Name: "out/", Typeflag: tar.TypeDir}
	for name, headers := range map[string][]tar.Header{
		"another file":             {{Name: ".bashrc", Typeflag: tar.TypeReg}},
		"another file behind":      {top, {Name: ".bashrc", Typeflag: tar.TypeReg}},
		"another directory":        {{Name: ".ssh/", Typeflag: tar.TypeDir}, {Name: ".ssh/authorized_keys", Typeflag: tar.TypeReg}},
		"dots behind the name":     {{Name: "out/../../victim", Typeflag: tar.TypeReg}},
		"dots before it":           {{Name: "../../x", Typeflag: tar.TypeReg}},
		"link, then written to":    {{Name: "out", Typeflag: tar.TypeSymlink, Linkname: ".bashrc"}, {Name: "out", Typeflag: tar.TypeReg}},
		"link in it, then written": {top, {Name: "out/l", Typeflag: tar.TypeSymlink, Linkname: "../.bashrc"}, {Name: "out/l", Typeflag: tar.TypeReg}},
		"fifo with an escape":      {{Name: "out\x1b]0;owned\x07", Typeflag: tar.TypeFifo}},
	} {
		for _, dst := range []string{".", "new", "file", "have", "have/"} {
			dir := home(t)
			before := listing(t, filepath.Dir(dir))
			var shown bytes.Buffer
			env := Env{Streams: Streams{Out: command.NewOutput(&shown), Err: io.Discard}}
			k := hostileKeeper(t, func(w io.Writer) { w.Write(tarball(t, headers...)) })
			if err := copyFrom(t.Context(), env, k, "/out", dst, copyOut{}); err == nil {
				t.Errorf("%s to %s: accepted", name, dst)
			} else if strings.ContainsAny(err.Error(), "\x1b\x07") {
				t.Errorf("%s to %s: the error %q steers a terminal", name, dst, err)
			}
			if diff := cmp.Diff(before, listing(t, filepath.Dir(dir))); diff != "" {
				t.Errorf("%s to %s: %s", name, dst, diff)
			}
		}
	}
}

func TestCopyOutGoesWhereDockerPutsIt(t *testing.T) {
	dirOut := []tar.Header{{Name: "out/", Typeflag: tar.TypeDir}, {Name: "out/a", Typeflag: tar.TypeReg}}
	fileOut := []tar.Header{{Name: "out", Typeflag: tar.TypeReg}}
	root := []tar.Header{{Name: "./", Typeflag: tar.TypeDir}, {Name: "a", Typeflag: tar.TypeReg}}
	for name, tc := range map[string]struct {
		src, dst string
		archive  []tar.Header
		want     []string // that there is beside what was there
		err      string
	}{
		"file to a directory":             {"/x/out", "have", fileOut, []string{"have/out new"}, ""},
		"file to a directory with /":      {"/x/out", "have/", fileOut, []string{"have/out new"}, ""},
		"file to the working directory":   {"/out", ".", fileOut, []string{"out new"}, ""},
		"file to a link to a directory":   {"/out", "to-have", fileOut, []string{"have/out new"}, ""},
		"file to a new name":              {"/out", "new", fileOut, []string{"new new"}, ""},
		"file over a file":                {"/out", "file", fileOut, []string{"file new"}, ""},
		"file over a link to a file":      {"/out", "to-file", fileOut, []string{"file new"}, ""},
		"file to a link to nothing":       {"/out", "to-nothing", fileOut, nil, "leads nowhere"},
		"file to a directory that is not": {"/out", "new/", fileOut, nil, "no such directory"},
		"file below what is not":          {"/out", "new/new", fileOut, nil, "no such file"},
		"file below a file":               {"/out", "file/new", fileOut, nil, "not a directory"},
		"file as a directory":             {"/out/.", "new", fileOut, nil, "not a directory in the sandbox"},
		"file with / as a directory":      {"/out/", "have", fileOut, nil, "not a directory in the sandbox"},
		"file over a device":              {"/out", "/dev/null", fileOut, nil, "neither a file nor"},
		"directory to a directory":        {"/out", "have", dirOut, []string{"have/out/", "have/out/a new"}, ""},
		"directory to a new name":         {"/out", "new", dirOut, []string{"new/", "new/a new"}, ""},
		"directory to a new name with /":  {"/out/", "new/", dirOut, []string{"new/", "new/a new"}, ""},
		"directory over a file":           {"/out", "file", dirOut, nil, "not one here"},
		"content to a directory":          {"/out/.", "have", dirOut, []string{"have/a new"}, ""},
		"content to a new name":           {"/out/.", "new", dirOut, []string{"new/", "new/a new"}, ""},
		"root to a directory":             {"/", "have", root, []string{"have/a new"}, ""},
		"a path with dots":                {"/y/../out", "have", fileOut, []string{"have/out new"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			dir := home(t)
			before := listing(t, dir)
			k := hostileKeeper(t, func(w io.Writer) { w.Write(tarball(t, tc.archive...)) })
			err := copyFrom(t.Context(), Env{Streams: Streams{Err: io.Discard}}, k, tc.src, tc.dst, copyOut{})
			if tc.err == "" && err != nil || tc.err != "" && (err == nil || !strings.Contains(err.Error(), tc.err)) {
				t.Errorf("error %v, want %q", err, tc.err)
			}
			var added []string
			for _, line := range listing(t, dir) {
				if !slices.Contains(before, line) {
					added = append(added, line)
				}
			}
			if diff := cmp.Diff(tc.want, added); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// A merge tells what it did, and does not touch what is run or trusted here
// unless it is told to; a link that leads out is left out on demand.
func TestCopyOutTellsWhatItDid(t *testing.T) {
	top := tar.Header{Name: "out/", Typeflag: tar.TypeDir}
	in := func(name string) tar.Header { return tar.Header{Name: "out/" + name, Typeflag: tar.TypeReg} }
	plain := []tar.Header{top, in("file"), in("new"), in("new2")}
	rc := []tar.Header{top, in(".bashrc"), in("new")}
	venv := []tar.Header{top, {Name: "out/python", Typeflag: tar.TypeSymlink, Linkname: "/usr/bin/python3"}, in("cfg")}
	for name, tc := range map[string]struct {
		src, dst string
		how      copyOut
		archive  []tar.Header
		told     string // on standard error
		err      string
		want     []string // added
	}{
		"merge":            {"/out/.", ".", copyOut{}, plain, "creel: replaced 1 file and made 2 below .\n", "", []string{"file new", "new new", "new2 new"}},
		"into a directory": {"/out", "have", copyOut{}, plain, "", "", []string{"have/out/", "have/out/file new", "have/out/new new", "have/out/new2 new"}},
		"start-up file":    {"/out/.", ".", copyOut{}, rc, "", ".bashrc (bash runs it)", nil},
		"with force": {"/out/.", ".", copyOut{force: true}, rc,
			"creel: replaced 1 file and made 1 below .\ncreel: programs here run or trust some of the copy; look at it before you use them there: .bashrc (bash runs it)\n",
			"", []string{".bashrc new", "new new"}},
		"to a new directory": {"/out", "new", copyOut{}, rc,
			"creel: programs here run or trust some of the copy; look at it before you use them there: new/.bashrc (bash runs it)\n",
			"", []string{"new/", "new/.bashrc new", "new/new new"}},
		"named":      {"/root/.bashrc", ".", copyOut{}, []tar.Header{{Name: ".bashrc", Typeflag: tar.TypeReg}}, "", "", []string{".bashrc new"}},
		"venv":       {"/out", "new", copyOut{}, venv, "", "use --skip-links", nil},
		"skip links": {"/out", "new", copyOut{skipLinks: true}, venv, "creel: left out 1 link out of what is copied: out/python -> /usr/bin/python3\n", "", []string{"new/", "new/cfg new"}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := home(t)
			before := listing(t, dir)
			var told bytes.Buffer
			k := hostileKeeper(t, func(w io.Writer) { w.Write(tarball(t, tc.archive...)) })
			err := copyFrom(t.Context(), Env{Streams: Streams{Err: &told}}, k, tc.src, tc.dst, tc.how)
			if tc.err == "" && err != nil || tc.err != "" && (err == nil || !strings.Contains(err.Error(), tc.err)) {
				t.Errorf("error %v, want %q", err, tc.err)
			}
			if diff := cmp.Diff(tc.told, told.String()); diff != "" {
				t.Error(diff)
			}
			var added []string
			for _, line := range listing(t, dir) {
				if !slices.Contains(before, line) {
					added = append(added, line)
				}
			}
			if diff := cmp.Diff(tc.want, added); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// Flags that would do nothing are refused.
func TestCopyFlagsAreForCopiesOut(t *testing.T) {
	for _, args := range [][]string{{"--force", ".", "web:/"}, {"--skip-links", "web:/", "-"}} {
		c := newCopy(Env{})
		c.SetArgs(args)
		c.SilenceErrors, c.SilenceUsage = true, true
		if err := c.ExecuteContext(t.Context()); err == nil || !strings.Contains(err.Error(), "leave them out") {
			t.Errorf("%q: %v", args, err)
		}
	}
}

// A copy that is interrupted, or whose keeper dies, leaves nothing.
func TestCopyThatBreaksOffLeavesNothing(t *testing.T) {
	whole := tarball(t, tar.Header{Name: "out/", Typeflag: tar.TypeDir}, tar.Header{Name: "out/a", Typeflag: tar.TypeReg})
	t.Run("signal", func(t *testing.T) {
		dir := home(t)
		before := listing(t, dir)
		ctx, done := interruptible(t.Context())
		defer done()
		k := hostileKeeper(t, func(w io.Writer) {
			w.Write(whole[:1024])
			<-t.Context().Done() // and no more
		})
		result := make(chan error)
		go func() { result <- copyFrom(ctx, Env{}, k, "/out", ".", copyOut{}) }()
		awaitStage(t, dir)
		if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		exit, ok := errors.AsType[*ExitError](<-result)
		if !ok || exit.Code != 128+int(syscall.SIGTERM) {
			t.Errorf("it ended with %v", exit)
		}
		if diff := cmp.Diff(before, listing(t, dir)); diff != "" {
			t.Error(diff)
		}
	})
	t.Run("the keeper dies", func(t *testing.T) {
		dir := home(t)
		before := listing(t, dir)
		var k *socket.Client
		k = hostileKeeper(t, func(w io.Writer) {
			w.Write(whole[:len(whole)-512])
			awaitStage(t, dir)
			k.Close()
		})
		if err := copyFrom(t.Context(), Env{}, k, "/out", ".", copyOut{}); err == nil {
			t.Error("half an archive was accepted")
		}
		if diff := cmp.Diff(before, listing(t, dir)); diff != "" {
			t.Error(diff)
		}
	})
}

func awaitStage(t *testing.T, dir string) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		if found, _ := filepath.Glob(filepath.Join(dir, archive.StagePrefix+"*")); len(found) == 1 {
			return
		}
		select {
		case <-t.Context().Done():
			return
		case <-tick.C:
		}
	}
}

// A copy in from a standard input that gives nothing ends at a signal, too.
func TestCopyInIsInterrupted(t *testing.T) {
	in, held, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	defer held.Close()
	ctx, done := interruptible(t.Context())
	defer done()
	k := hostileKeeper(t, nil)
	result := make(chan error)
	go func() { result <- copyTo(ctx, Env{Streams: Streams{In: in}}, k, "-", "/in") }()
	if err := syscall.Kill(os.Getpid(), syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if exit, ok := errors.AsType[*ExitError](<-result); !ok || exit.Code != 128+int(syscall.SIGINT) {
		t.Errorf("it ended with %v", exit)
	}
}
