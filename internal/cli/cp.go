package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"

	"creel/internal/archive"
	"creel/internal/cli/command"
	"creel/internal/guest/api"
	"creel/internal/keeper/socket"

	"github.com/spf13/cobra"
)

func newCopy(env Env) *cobra.Command {
	var how copyOut
	c := &cobra.Command{
		Use:   "cp SANDBOX:PATH DEST|-  or  creel cp SOURCE|- SANDBOX:PATH",
		Short: "Copy files between a sandbox and here; also one that has ended but is kept",
		Long: "Copy files between a sandbox and here, by the rules of `docker cp`; also from and to a sandbox\n" +
			"that has ended but is kept.\n\n" +
			"What comes out of a sandbox is put in its place once all of it has come, under the name that was\n" +
			"asked for. A directory that is there already is merged with: its files are replaced where the copy\n" +
			"has the same names, and a line tells how many were. A merge that would make or change what programs\n" +
			"here run or trust for its name, such as .git/hooks, .git/config, .bashrc or .ssh, is refused, and\n" +
			"lists it: copy to a new directory, name such a file to copy it alone, or use --force. The list is\n" +
			"short: look at what else you run of a copy, such as a Makefile.\n\n" +
			"The copy may be files, directories and links that stay inside it; anything else is refused, but\n" +
			"--skip-links leaves out links that lead elsewhere, which a Python venv has. The files are yours,\n" +
			"with the modes that your umask leaves. With - the archive is passed on as the sandbox made it: look\n" +
			"at it before you unpack it.",
		Example: "  creel cp web:/etc/hostname .\n  creel cp ./src web:/work\n" +
			"  creel cp web:/work - | tar t",
		Args: cobra.ExactArgs(2), ValidArgsFunction: completeFiles(env),
		RunE: func(c *cobra.Command, args []string) error {
			ctx, done := interruptible(c.Context())
			defer done()
			from, fromPath, isFrom := sandboxPath(args[0])
			to, toPath, isTo := sandboxPath(args[1])
			switch {
			case isFrom == isTo:
				return errors.New("one of source and destination has to be SANDBOX:PATH, and only one")
			case how != copyOut{} && (isTo || args[1] == "-"):
				return errors.New("--force and --skip-links are for a copy from a sandbox to a file or directory here; leave them out")
			case isFrom:
				return withFiles(ctx, env, from, func(k *socket.Client) error {
					return copyFrom(ctx, env, k, fromPath, args[1], how)
				})
			default:
				return withFiles(ctx, env, to, func(k *socket.Client) error {
					return copyTo(ctx, env, k, args[0], toPath)
				})
			}
		},
	}
	c.Flags().BoolVar(&how.force, "force", false, "let a merge make and replace files that programs here run or trust, such as .git/hooks and .bashrc")
	c.Flags().BoolVar(&how.skipLinks, "skip-links", false, "leave out symbolic links that lead out of what is copied, and tell how many")
	return c
}

// copyOut is how a copy out of a sandbox is done.
type copyOut struct{ force, skipLinks bool }

// interruptible ends its context at the first signal that asks this process to
// end, so that it can remove what it began. The second one ends the process.
func interruptible(ctx context.Context) (_ context.Context, done func()) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(ctx, func() { signal.Stop(signals) })
	go func() { // ends with ctx
		select {
		case s := <-signals:
			cancel(&ExitError{Code: 128 + int(s.(syscall.Signal)), Err: errors.New("the copy was interrupted")})
		case <-ctx.Done():
		}
	}()
	return ctx, func() {
		stop()
		signal.Stop(signals)
		cancel(nil)
	}
}

// sandboxPath splits NAME:PATH. A path with a slash before its first colon is
// local.
func sandboxPath(s string) (name, p string, ok bool) {
	name, p, ok = strings.Cut(s, ":")
	if !ok || name == "" || strings.ContainsAny(name, "/.") && !strings.Contains(s, ":/") {
		return "", "", false
	}
	if strings.Contains(name, "/") || name == "." || name == ".." {
		return "", "", false
	}
	if !path.IsAbs(p) {
		p = "/" + p
	}
	return name, p, true
}

// withFiles connects to a sandbox's files: through its keeper while it runs,
// through a helper clone with its disk and no task when it has ended.
func withFiles(ctx context.Context, env Env, ref string, do func(*socket.Client) error) error {
	app, err := env.existing(ctx)
	if err != nil {
		return err
	}
	f, err := app.Engine.Find(ctx, ref)
	if err != nil {
		return err
	}
	copying := do
	do = func(k *socket.Client) error { return missingIn(ref, copying(k)) }
	if f.Running() {
		return withClient(ctx, app, f, do)
	}
	helper, err := app.Engine.Files(ctx, f)
	if err != nil {
		return err
	}
	return errors.Join(do(helper.Client), helper.Release(context.WithoutCancel(ctx)))
}

// missing is the end of what the agent says where a path is not there.
var missing = regexp.MustCompile(`(/[^:]*): (no such file or directory|not a directory)$`)

// missingIn says of a path that is not there in which sandbox it is not.
func missingIn(ref string, err error) error {
	if api.ErrorCode(err) != api.CodeNotFound {
		return err
	}
	if found := missing.FindStringSubmatch(err.Error()); found != nil {
		return fmt.Errorf("%s: %s in sandbox %s", found[1], found[2], ref)
	}
	return fmt.Errorf("sandbox %s: %w", ref, err)
}

// copyTo puts a local file or directory, or a tar on stdin, into the sandbox.
func copyTo(ctx context.Context, env Env, k *socket.Client, src, dst string) error {
	if src == "-" {
		return sendTo(ctx, k, api.CopyRequest{Path: dst}, func(w io.Writer) error {
			_, err := io.Copy(w, env.In)
			return err
		})
	}
	info, err := os.Lstat(src)
	if err != nil {
		return err
	}
	dir, name := path.Dir(path.Clean(dst)), path.Base(path.Clean(dst))
	contents := strings.HasSuffix(src, "/.") || src == "."
	stat, err := k.Stat(ctx, dst)
	switch {
	case err == nil && fs.FileMode(stat.Mode).IsDir():
		dir, name = dst, filepath.Base(src)
	case err == nil && info.IsDir():
		return fmt.Errorf("%s is a file in the sandbox and %s a directory", dst, src)
	case err != nil && api.ErrorCode(err) != api.CodeNotFound:
		return err
	case err != nil && strings.HasSuffix(dst, "/") && !info.IsDir():
		return fmt.Errorf("%s: no such directory in the sandbox", dst)
	}
	if contents && err == nil {
		name = "."
	}
	return sendTo(ctx, k, api.CopyRequest{Path: dir, NoOverwriteDirNonDir: true}, func(w io.Writer) error {
		return archive.Pack(w, src, name)
	})
}

// sendTo sends an archive until it is whole or ctx ends, even if what it is made
// from gives nothing.
func sendTo(ctx context.Context, k *socket.Client, req api.CopyRequest, write func(io.Writer) error) error {
	r, w := io.Pipe()
	go func() { w.CloseWithError(write(w)) }() // may wait for standard input when nobody reads any more
	defer context.AfterFunc(ctx, func() { r.CloseWithError(context.Cause(ctx)) })()
	err := k.CopyIn(ctx, req, r)
	r.Close()
	return causeOf(ctx, err)
}

// causeOf is why ctx ended, of which err is only the consequence.
func causeOf(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// copyFrom takes a file or directory of the sandbox, which has the last word on
// nothing: not on names, and not on what is done here before all has come.
func copyFrom(ctx context.Context, env Env, k *socket.Client, src, dst string, how copyOut) error {
	if dst == "-" && command.IsTerminal(env.Out) {
		return errors.New("an archive is not for a terminal; use a pipe, such as `| tar tv`")
	}
	to, err := destinationOf(dst)
	if err != nil {
		return err
	}
	tarball, err := k.CopyOut(ctx, src)
	if err != nil {
		return err
	}
	defer tarball.Close()
	defer context.AfterFunc(ctx, func() { tarball.Close() })()
	if dst == "-" {
		_, err = io.Copy(command.Raw(env.Out), tarball)
	} else {
		err = to.take(tarball, src, how, env.Err)
	}
	return causeOf(ctx, err)
}

// destination is a place here for what comes out of a sandbox.
type destination struct {
	dir    string // that is there
	name   string // in dir; "" where dir itself was named
	exists bool   // the name
	isDir  bool   // no file may be made of the name
}

// destinationOf does as `docker cp`: what is copied goes into a directory that
// is there, and has the name given otherwise. A link that the user names is
// followed.
func destinationOf(dst string) (destination, error) {
	clean := filepath.Clean(dst)
	to := destination{dir: filepath.Dir(clean), name: filepath.Base(clean), isDir: strings.HasSuffix(dst, "/") || strings.HasSuffix(dst, "/.")}
	info, err := os.Stat(dst)
	switch {
	case err == nil && info.IsDir():
		return destination{dir: dst, isDir: true, exists: true}, nil
	case err == nil && !info.Mode().IsRegular():
		return to, fmt.Errorf("%s is neither a file nor a directory; copy to - for the archive on standard output", dst)
	case err == nil:
		real, err := filepath.EvalSymlinks(dst)
		to.dir, to.name, to.exists = filepath.Dir(real), filepath.Base(real), true
		return to, err
	case !errors.Is(err, fs.ErrNotExist):
		return to, err
	}
	if _, err := os.Lstat(dst); err == nil {
		return to, fmt.Errorf("%s is a link that leads nowhere; remove it, or copy to where it leads", dst)
	}
	return to, nil
}

// take puts the archive of src in its place when all of it has come, and tells
// what a user who looks at the exit code alone would miss.
func (to destination) take(tarball io.Reader, src string, how copyOut, tell io.Writer) error {
	root, err := os.OpenRoot(to.dir)
	if err != nil {
		return err
	}
	defer root.Close()
	top := cmp.Or(strings.TrimPrefix(path.Join("/", src), "/"), ".")
	content := top == "." || strings.HasSuffix(src, "/.")
	reader := archive.NewReader(tarball, path.Base(top), archive.DefaultLimits())
	reader.SkipLinks = how.skipLinks
	staged, err := archive.Stage(root, reader)
	if err != nil {
		return err
	}
	name := to.name
	switch {
	case !staged.IsDir() && (content || strings.HasSuffix(src, "/")):
		err = fmt.Errorf("%s is not a directory in the sandbox", src)
	case !staged.IsDir() && to.isDir && !to.exists:
		err = fmt.Errorf("%s: no such directory", filepath.Join(to.dir, to.name))
	case name == "" && content:
		name = "."
	case name == "":
		name = path.Base(top)
	}
	var placed archive.Placed
	if err == nil {
		placed, err = staged.Place(name, how.force)
	}
	if err := errors.Join(err, staged.Close()); err != nil {
		return err
	}
	told(tell, filepath.Join(to.dir, name), placed, reader.Left())
	return nil
}

// told writes what was done to files that were not named.
func told(w io.Writer, where string, placed archive.Placed, left archive.LinksOut) {
	var lines []string
	if placed.Merged {
		lines = append(lines, fmt.Sprintf("replaced %s and made %d below %s", counted(placed.Replaced, "file"), placed.Made, where))
	}
	if placed.Trusted.Count > 0 {
		lines = append(lines, "programs here run or trust some of the copy; look at it before you use them there: "+placed.Trusted.String(maxTold))
	}
	if left.Count > 0 {
		lines = append(lines, fmt.Sprintf("left out %s out of what is copied: %s", counted(left.Count, "link"), left))
	}
	for _, line := range lines {
		fmt.Fprintf(w, "creel: %s\n", line)
	}
}

func counted(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return fmt.Sprintf("%d %s", n, what)
}

// maxTold is how many trusted files a note names.
const maxTold = 3
