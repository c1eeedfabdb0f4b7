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

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"
)

// Env is what the commands need of the rest.
type Env struct {
	command.Streams
	Open func(context.Context) (*Store, error)
	// Look is Open for commands that make nothing: where there is no store it
	// makes none, and errs.
	Look func(context.Context) (*Store, error)
	// Nothing tells whether there is no store to list, after it has told the user.
	Nothing func(context.Context) bool
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
	c := command.Group("image", "Manage images")
	for _, name := range []string{"pull", "load", "import", "ls", "inspect", "tag", "save", "push", "rm", "prune"} {
		c.AddCommand(Named(env, name))
	}
	c.AddCommand(
		command.Also(Named(env, "ls"), "list"), command.Also(Named(env, "rm"), "remove"),
		command.Elsewhere("build", "build the image with `docker build -t NAME .`, or another builder, then `docker save NAME | creel image load`"),
		command.Elsewhere("history", "`creel image inspect IMAGE` has the image's layers"),
	)
	return c
}

// Named is one of the commands of `creel image`.
func Named(env Env, name string) *cobra.Command {
	c := map[string]func(Env) *cobra.Command{
		"pull": newPull, "load": newLoad, "import": newImport, "ls": newList, "inspect": newInspect, "tag": newTag,
		"save": newSave, "push": newPush, "rm": newRemove, "prune": newPrune,
	}[name](env)
	command.KnowForeign(c, foreign[name])
	return c
}

const onePlatform = "an image here is of one platform, which `creel image pull --platform` chooses"

// foreign are the flags of `docker image` that the commands have not.
var foreign = map[string][]command.Foreign{
	"pull": {{Name: "disable-content-trust"}, {Name: "all-tags,a", Why: "pull each tag by its name"}},
	"load": {{Name: "quiet,q"}, {Name: "platform", Word: "platform", Why: onePlatform}},
	"import": {
		{Name: "change,c", Word: "instruction", Why: "use --cmd, --entrypoint, --env, --workdir and --user"},
		{Name: "message,m", Word: "text", Why: "images have no message"}, {Name: "platform", Word: "platform", Why: onePlatform},
	},
	"ls": {
		{Name: "all,a"}, {Name: "digests", Why: "use --format 'table {{.Name}}\\t{{.Digest}}\\t{{.ID}}'"},
		{Name: "tree", Why: onePlatform},
	},
	"inspect": {{Name: "platform", Word: "platform", Why: onePlatform}},
	"save":    {{Name: "platform", Word: "platform", Why: onePlatform}},
	"push": {
		{Name: "disable-content-trust"}, {Name: "all-tags,a", Why: "push each tag by its name"},
		{Name: "platform", Word: "platform", Why: onePlatform},
	},
	"rm":    {{Name: "no-prune"}, {Name: "platform", Word: "platform", Why: onePlatform}},
	"prune": {{Name: "force,f"}, {Name: "filter", Word: "filter", Why: "the setting pruneAfter says how old an image without a name has to be"}},
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

func newRemove(env Env) *cobra.Command {
	var force bool
	c := &cobra.Command{
		Use: "rm [-f] IMAGE...", Short: "Remove images",
		Example: "  creel image rm web:copy",
		Args:    cobra.MinimumNArgs(1), ValidArgsFunction: CompleteNames(env),
		RunE: func(c *cobra.Command, args []string) error {
			store, err := env.Open(c.Context())
			if err != nil {
				return err
			}
			var errs []error
			for _, ref := range args {
				_, err := store.Remove(c.Context(), ref)
				switch {
				case err == nil:
					fmt.Fprintf(env.Out, "removed %s\n", ref)
				case force && errdefs.IsNotFound(err): // as Docker: what is not there need not be removed
				default:
					errs = append(errs, err)
				}
			}
			return errors.Join(errs...)
		},
	}
	c.Flags().BoolVarP(&force, "force", "f", false, "no error where there is no such image")
	return c
}
