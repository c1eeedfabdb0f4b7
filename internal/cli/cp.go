package cli

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"creel/internal/guest/api"
	"creel/internal/keeper"

	"github.com/spf13/cobra"
)

func newCopy(env Env) *cobra.Command {
	return &cobra.Command{
		Use:   "cp SANDBOX:PATH DEST|-  or  creel cp SOURCE|- SANDBOX:PATH",
		Short: "Copy files between a sandbox and here; also one that has ended but is kept",
		Example: "  creel cp web:/etc/hostname .\n  creel cp ./src web:/work\n" +
			"  creel cp web:/work - | tar t",
		Args: cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			from, fromPath, isFrom := sandboxPath(args[0])
			to, toPath, isTo := sandboxPath(args[1])
			switch {
			case isFrom == isTo:
				return errors.New("one of source and destination has to be SANDBOX:PATH, and only one")
			case isFrom:
				return withFiles(c.Context(), env, from, func(k *keeper.Client) error {
					return copyFrom(c.Context(), env, k, fromPath, args[1])
				})
			default:
				return withFiles(c.Context(), env, to, func(k *keeper.Client) error {
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
func withFiles(ctx context.Context, env Env, ref string, do func(*keeper.Client) error) error {
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
func copyTo(ctx context.Context, env Env, k *keeper.Client, src, dst string) error {
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
	go func() { w.CloseWithError(writeTar(w, src, name)) }()
	err = k.CopyIn(ctx, api.CopyRequest{Path: dir, NoOverwriteDirNonDir: true}, r)
	r.Close()
	return err
}

// writeTar packs src, which it names name.
func writeTar(w io.Writer, src, name string) error {
	tw := tar.NewWriter(w)
	err := filepath.WalkDir(src, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(src, p)
		if err != nil {
			return err
		}
		return writeEntry(tw, p, path.Join(name, filepath.ToSlash(rel)), d)
	})
	return errors.Join(err, tw.Close())
}

func writeEntry(tw *tar.Writer, p, name string, d fs.DirEntry) error {
	info, err := d.Info()
	if err != nil {
		return err
	}
	link := ""
	if info.Mode()&fs.ModeSymlink != 0 {
		if link, err = os.Readlink(p); err != nil {
			return err
		}
	}
	h, err := tar.FileInfoHeader(info, link)
	if err != nil {
		return fmt.Errorf("pack %s: %w", p, err)
	}
	h.Name = name
	if info.IsDir() {
		h.Name += "/"
	}
	h.Uid, h.Gid, h.Uname, h.Gname = 0, 0, "", "" // as Docker: what comes in is root's
	if err := tw.WriteHeader(h); err != nil || !info.Mode().IsRegular() {
		return err
	}
	f, err := os.Open(p)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(tw, f)
	return err
}

// copyFrom takes a file or directory of the sandbox.
func copyFrom(ctx context.Context, env Env, k *keeper.Client, src, dst string) error {
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
	return extract(root, tar.NewReader(tarball), name)
}

// extract unpacks a sandbox's archive below root, which no entry and no link
// in it can leave. What is not a file, directory or symlink is refused: a
// sandbox could otherwise plant a device here.
func extract(root *os.Root, tr *tar.Reader, rename string) error {
	for {
		h, err := tr.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read the sandbox's archive: %w", err)
		}
		name := path.Clean(h.Name)
		if rename != "" {
			_, below, _ := strings.Cut(name, "/")
			name = path.Join(rename, below)
		}
		if err := extractEntry(root, tr, h, filepath.FromSlash(name)); err != nil {
			return fmt.Errorf("unpack %s: %w", h.Name, err)
		}
	}
}

func extractEntry(root *os.Root, tr *tar.Reader, h *tar.Header, name string) error {
	mode := h.FileInfo().Mode().Perm()
	switch h.Typeflag {
	case tar.TypeDir:
		if err := root.MkdirAll(name, 0o700); err != nil {
			return err
		}
		return root.Chmod(name, mode|0o700)
	case tar.TypeReg:
		f, err := root.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, mode)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, tr)
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
		return root.Chtimes(name, h.ModTime, h.ModTime)
	case tar.TypeSymlink:
		err := root.Symlink(h.Linkname, name)
		if errors.Is(err, fs.ErrExist) {
			if err = root.Remove(name); err == nil {
				err = root.Symlink(h.Linkname, name)
			}
		}
		return err
	case tar.TypeLink:
		return root.Link(path.Clean(h.Linkname), name)
	default:
		return errors.New("not a file, directory or link; copy to - to get the archive as it is")
	}
}
