package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"creel/internal/archive"
	"creel/internal/guest/api"
	"creel/internal/keeper/socket"

	"github.com/spf13/cobra"
)

func newCopy(env Env) *cobra.Command {
	return &cobra.Command{
		Use:   "cp SANDBOX:PATH DEST|-  or  creel cp SOURCE|- SANDBOX:PATH",
		Short: "Copy files between a sandbox and here; also one that has ended but is kept",
		Example: "  creel cp web:/etc/hostname .\n  creel cp ./src web:/work\n" +
			"  creel cp web:/work - | tar t",
		Args: cobra.ExactArgs(2), ValidArgsFunction: completeFiles(env),
		RunE: func(c *cobra.Command, args []string) error {
			from, fromPath, isFrom := sandboxPath(args[0])
			to, toPath, isTo := sandboxPath(args[1])
			switch {
			case isFrom == isTo:
				return errors.New("one of source and destination has to be SANDBOX:PATH, and only one")
			case isFrom:
				return withFiles(c.Context(), env, from, func(k *socket.Client) error {
					return copyFrom(c.Context(), env, k, fromPath, args[1])
				})
			default:
				return withFiles(c.Context(), env, to, func(k *socket.Client) error {
					return copyTo(c.Context(), env, k, args[0], toPath)
				})
			}
		},
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
	app, err := env.Open(ctx)
	if err != nil {
		return err
	}
	f, err := app.Engine.Find(ctx, ref)
	if err != nil {
		return err
	}
	if f.Running() {
		return withClient(ctx, app, f, do)
	}
	helper, err := app.Engine.Files(ctx, f)
	if err != nil {
		return err
	}
	return errors.Join(do(helper.Client), helper.Release(context.WithoutCancel(ctx)))
}

// copyTo puts a local file or directory, or a tar on stdin, into the sandbox.
func copyTo(ctx context.Context, env Env, k *socket.Client, src, dst string) error {
	if src == "-" {
		return k.CopyIn(ctx, api.CopyRequest{Path: dst}, env.In)
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
	r, w := io.Pipe()
	go func() { w.CloseWithError(archive.Pack(w, src, name)) }()
	err = k.CopyIn(ctx, api.CopyRequest{Path: dir, NoOverwriteDirNonDir: true}, r)
	r.Close()
	return err
}

// copyFrom takes a file or directory of the sandbox.
func copyFrom(ctx context.Context, env Env, k *socket.Client, src, dst string) error {
	tarball, err := k.CopyOut(ctx, src)
	if err != nil {
		return err
	}
	defer tarball.Close()
	if dst == "-" {
		_, err := io.Copy(env.Out, tarball)
		return err
	}
	dir, name := filepath.Dir(filepath.Clean(dst)), filepath.Base(filepath.Clean(dst))
	if info, err := os.Stat(dst); err == nil && info.IsDir() {
		dir, name = dst, "" // the names of the archive
	} else if err != nil && strings.HasSuffix(dst, "/") {
		return fmt.Errorf("%s: no such directory", dst)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	return archive.Unpack(root, tarball, name)
}
