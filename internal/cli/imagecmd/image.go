// Package imagecmd is the commands about images, and the pull before a run. It
// must not know tasks, and must not decide what an image is used for.
package imagecmd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"creel/internal/cli/command"
	"creel/internal/image"
	"creel/internal/image/registry"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"
)

// Env is what the commands need of the rest.
type Env struct {
	command.Streams
	Open func(context.Context) (*Store, error)
}

// Store is the images, and what is around them.
type Store struct {
	*image.Store
	Registry   registry.Options
	PruneAfter time.Duration // younger images without a name stay
	// InUse tells which images, by ID, sandboxes were made from.
	InUse func(context.Context) (map[string]bool, error)
}

// New is `creel image`.
func New(env Env) *cobra.Command {
	return command.Group("image", "Manage images", newPull(env), newLoad(env), newImport(env), newList(env),
		newInspect(env), newTag(env), newSave(env), newPush(env), newRemove(env), newPrune(env))
}

func newLoad(env Env) *cobra.Command {
	var input string
	c := &cobra.Command{
		Use:   "load [-i FILE|DIRECTORY]",
		Short: "Load images from a `docker save` archive or an OCI layout",
		Example: "  docker save debian | creel image load\n" +
			"  creel image load -i images.tar",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			store, err := env.Open(c.Context())
			if err != nil {
				return err
			}
			var images []image.Image
			if input == "" || input == "-" {
				images, err = store.Load(c.Context(), env.In)
			} else {
				images, err = store.LoadPath(c.Context(), input)
			}
			if err != nil {
				return err
			}
			for _, img := range images {
				fmt.Fprintf(env.Out, "loaded %s\n", strings.Join(append(img.Names, command.ShortID(img.ID)), " "))
			}
			return nil
		},
	}
	c.Flags().StringVarP(&input, "input", "i", "", "read this `file` or OCI layout directory (default standard input)")
	return c
}

func newImport(env Env) *cobra.Command {
	var cfg image.Config
	c := &cobra.Command{
		Use:   "import FILE|- NAME[:TAG]",
		Short: "Make an image from a tar of a root file system",
		Example: "  creel image import rootfs.tar debian\n" +
			"  docker export web | creel image import - web:copy",
		Args: cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			store, err := env.Open(c.Context())
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
			img, err := store.Import(c.Context(), from, args[1], cfg)
			if err != nil {
				return err
			}
			fmt.Fprintf(env.Out, "imported %s %s\n", strings.Join(img.Names, " "), command.ShortID(img.ID))
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

func newList(env Env) *cobra.Command {
	return &cobra.Command{
		Use: "ls", Short: "List images", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			store, err := env.Open(c.Context())
			if err != nil {
				return err
			}
			images, damaged := store.List(c.Context())
			w := command.Table(env.Out, "NAME", "ID", "CREATED", "SIZE")
			for _, img := range images {
				names := img.Names
				if len(names) == 0 {
					names = []string{"<none>"}
				}
				for _, n := range names {
					command.Row(w, n, command.ShortID(img.ID), command.Ago(img.Created), units.HumanSize(float64(img.SizeBytes)))
				}
			}
			return errors.Join(w.Flush(), damaged)
		},
	}
}

func newRemove(env Env) *cobra.Command {
	return &cobra.Command{
		Use: "rm IMAGE...", Short: "Remove images",
		Example: "  creel image rm web:copy",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			store, err := env.Open(c.Context())
			if err != nil {
				return err
			}
			var errs []error
			for _, ref := range args {
				if _, err := store.Remove(c.Context(), ref); err != nil {
					errs = append(errs, err)
					continue
				}
				fmt.Fprintf(env.Out, "removed %s\n", ref)
			}
			return errors.Join(errs...)
		},
	}
}
