package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"creel/internal/cli/command"
	"creel/internal/image"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"
)

func newImage(env Env) *cobra.Command {
	return command.Group("image", "Manage images",
		newImagePull(env), newImagePush(env), newImageTag(env), newImageInspect(env), newImageSave(env), newImagePrune(env),
		newImageLoad(env), newImageImport(env), newImageList(env), newImageRemove(env))
}

func newImageLoad(env Env) *cobra.Command {
	var input string
	c := &cobra.Command{
		Use:   "load [-i FILE|DIRECTORY]",
		Short: "Load images from a `docker save` archive or an OCI layout",
		Example: "  docker save debian | creel image load\n" +
			"  creel image load -i images.tar",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			app, err := env.Open(c.Context())
			if err != nil {
				return err
			}
			var images []image.Image
			if input == "" || input == "-" {
				images, err = app.Images.Load(c.Context(), env.In)
			} else {
				images, err = app.Images.LoadPath(c.Context(), input)
			}
			if err != nil {
				return err
			}
			for _, img := range images {
				fmt.Fprintf(env.Out, "loaded %s\n", strings.Join(append(img.Names, shortID(img.ID)), " "))
			}
			return nil
		},
	}
	c.Flags().StringVarP(&input, "input", "i", "", "read this `file` or OCI layout directory (default standard input)")
	return c
}

func newImageImport(env Env) *cobra.Command {
	var cfg image.Config
	c := &cobra.Command{
		Use:   "import FILE|- NAME[:TAG]",
		Short: "Make an image from a tar of a root file system",
		Example: "  creel image import rootfs.tar debian\n" +
			"  docker export web | creel image import - web:copy",
		Args: cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			app, err := env.Open(c.Context())
			if err != nil {
				return err
			}
			var from io.Reader = env.In
			if args[0] != "-" {
				f, err := os.Open(args[0])
				if err != nil {
					return err
				}
				defer f.Close()
				from = f
			}
			img, err := app.Images.Import(c.Context(), from, args[1], cfg)
			if err != nil {
				return err
			}
			fmt.Fprintf(env.Out, "imported %s %s\n", strings.Join(img.Names, " "), shortID(img.ID))
			return nil
		},
	}
	c.Flags().StringArrayVar(&cfg.Cmd, "cmd", []string{"/bin/sh"}, "the image's command; repeat the flag for each `word`")
	c.Flags().StringArrayVar(&cfg.Entrypoint, "entrypoint", nil, "the image's entrypoint; repeat the flag for each `word`")
	c.Flags().StringArrayVar(&cfg.Env, "env", nil, "a variable of the image, `NAME=value`")
	c.Flags().StringVar(&cfg.WorkingDir, "workdir", "", "the image's working `directory`")
	c.Flags().StringVar(&cfg.User, "user", "", "the image's `user`")
	return c
}

func newImageList(env Env) *cobra.Command {
	return &cobra.Command{
		Use: "ls", Short: "List images", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			app, err := env.Open(c.Context())
			if err != nil {
				return err
			}
			images, err := app.Images.List(c.Context())
			if err != nil {
				return err
			}
			w := command.Table(env.Out, "NAME", "ID", "CREATED", "SIZE")
			for _, img := range images {
				names := img.Names
				if len(names) == 0 {
					names = []string{"<none>"}
				}
				for _, n := range names {
					command.Row(w, n, shortID(img.ID), ago(img.Created), units.HumanSize(float64(img.SizeBytes)))
				}
			}
			return w.Flush()
		},
	}
}

func newImageRemove(env Env) *cobra.Command {
	return &cobra.Command{
		Use: "rm IMAGE...", Short: "Remove images",
		Example: "  creel image rm web:copy",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			app, err := env.Open(c.Context())
			if err != nil {
				return err
			}
			var errs []error
			for _, ref := range args {
				if _, err := app.Images.Remove(c.Context(), ref); err != nil {
					errs = append(errs, err)
					continue
				}
				fmt.Fprintf(env.Out, "removed %s\n", ref)
			}
			return errors.Join(errs...)
		},
	}
}

// shortID is the first twelve digits of a digest.
func shortID(digest string) string {
	_, hex, _ := strings.Cut(digest, ":")
	return hex[:min(len(hex), 12)]
}

func ago(t time.Time) string {
	if t.IsZero() || t.Unix() <= 0 {
		return "-"
	}
	return units.HumanDuration(time.Since(t)) + " ago"
}
