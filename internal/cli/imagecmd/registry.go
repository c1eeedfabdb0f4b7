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

	"github.com/containerd/errdefs"
	"github.com/docker/go-units"
	"github.com/spf13/cobra"
)

func newPull(env Env) *cobra.Command {
	var platform string
	var quiet bool
	c := &cobra.Command{
		Use: "pull [flags] IMAGE", Short: "Fetch an image from its registry, with your Docker login",
		Example: "  creel image pull debian:bookworm\n  creel image pull --platform linux/amd64 127.0.0.1:5000/tools",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			store, err := env.Open(c.Context())
			if err != nil {
				return err
			}
			img, err := pull(c.Context(), env.Err, store, args[0], Wanted{Platform: platform, Quiet: quiet})
			if err == nil {
				fmt.Fprintf(env.Out, "pulled %s %s\n", strings.Join(img.Names, " "), command.ShortID(img.ID))
			}
			return err
		},
	}
	c.Flags().StringVar(&platform, "platform", "", "platform of the image, `os/architecture`, such as linux/amd64 (default: this machine's)")
	c.Flags().BoolVarP(&quiet, "quiet", "q", false, "no progress")
	return c
}

// Wanted says how an image is pulled.
type Wanted struct {
	When     string // missing, always or never
	Platform string // "": this machine's
	Quiet    bool   // no progress
}

func pull(ctx context.Context, w io.Writer, store *Store, ref string, wanted Wanted) (image.Image, error) {
	o := image.PullOptions{Registry: store.Registry, Platform: wanted.Platform}
	if !wanted.Quiet {
		p := newProgress(w)
		defer p.end()
		o.Progress = p.event
	}
	return store.Pull(ctx, ref, o)
}

// Ensure pulls an image before a run, where that is wanted; w gets the
// progress.
func Ensure(ctx context.Context, w io.Writer, store *Store, ref string, wanted Wanted) error {
	if err := image.CheckPlatform(wanted.Platform); err != nil {
		return fmt.Errorf("--%w", err)
	}
	img, err := store.Resolve(ctx, ref)
	missing := errdefs.IsNotFound(err)
	if wanted.When == "never" || wanted.When == "missing" && !missing {
		return errors.Join(err, runs(ref, img))
	}
	if missing {
		fmt.Fprintf(w, "creel: %s is not here; pulling it\n", ref)
	}
	img, err = pull(ctx, w, store, ref, wanted)
	return errors.Join(err, runs(ref, img))
}

// runs says why an image that is here cannot be run here.
func runs(ref string, img image.Image) error {
	if err := image.CheckPlatform(img.Platform); err != nil {
		return fmt.Errorf("image %s: %w", ref, err)
	}
	return nil
}

func newPush(env Env) *cobra.Command {
	var quiet bool
	c := &cobra.Command{
		Use: "push IMAGE", Short: "Send an image to the registry that its name tells",
		Example: "  creel image tag tools 127.0.0.1:5000/tools\n  creel image push 127.0.0.1:5000/tools",
		Args:    cobra.ExactArgs(1), ValidArgsFunction: CompleteNames(env),
		RunE: func(c *cobra.Command, args []string) error {
			store, err := env.Open(c.Context())
			if err != nil {
				return err
			}
			o := image.PushOptions{Registry: store.Registry}
			if !quiet {
				p := newProgress(env.Err)
				defer p.end()
				o.Progress = p.event
			}
			at, err := store.Push(c.Context(), args[0], o)
			if err == nil {
				fmt.Fprintln(env.Out, at)
			}
			return err
		},
	}
	c.Flags().BoolVarP(&quiet, "quiet", "q", false, "no progress")
	return c
}

func newTag(env Env) *cobra.Command {
	return &cobra.Command{
		Use: "tag IMAGE NAME[:TAG]", Short: "Give an image one more name",
		Example: "  creel image tag debian:latest base:2026-11",
		Args:    cobra.ExactArgs(2), ValidArgsFunction: CompleteNames(env),
		RunE: func(c *cobra.Command, args []string) error {
			store, err := env.Open(c.Context())
			if err != nil {
				return err
			}
			return store.Tag(c.Context(), args[0], args[1])
		},
	}
}

func newInspect(env Env) *cobra.Command {
	var format string
	c := &cobra.Command{
		Use: "inspect IMAGE...", Short: "Show all that is known of images",
		Example: "  creel image inspect --format '{{.ID}} {{.Config.Cmd}}' debian",
		Args:    cobra.MinimumNArgs(1), ValidArgsFunction: CompleteNames(env),
		RunE: func(c *cobra.Command, args []string) error {
			store, err := env.Look(c.Context())
			if err != nil {
				return err
			}
			var all []image.Details
			for _, ref := range args {
				d, err := store.Inspect(c.Context(), ref)
				if err != nil {
					return err
				}
				all = append(all, d)
			}
			if format != "" {
				return command.PrintEach(env.Out, all, format)
			}
			return command.PrintJSON(env.Out, all)
		},
	}
	c.Flags().StringVarP(&format, "format", "f", "", "json, or a Go `template`")
	return c
}

func newSave(env Env) *cobra.Command {
	var output string
	c := &cobra.Command{
		Use: "save [-o FILE] IMAGE...", Short: "Write images as an archive that Docker and Creel load",
		Example: "  creel image save -o images.tar debian",
		Args:    cobra.MinimumNArgs(1), ValidArgsFunction: CompleteNames(env),
		RunE: func(c *cobra.Command, args []string) error {
			store, err := env.Look(c.Context())
			if err != nil {
				return err
			}
			if output == "" || output == "-" {
				if command.IsTerminal(env.Out) {
					return fmt.Errorf("an archive is not for a terminal; use -o FILE, or a pipe")
				}
				return store.Save(c.Context(), args, command.Raw(env.Out))
			}
			return writeFile(output, func(w io.Writer) error { return store.Save(c.Context(), args, w) })
		},
	}
	c.Flags().StringVarP(&output, "output", "o", "", "write to this `file` (default standard output)")
	return c
}

// writeFile makes path with what write gives, whole or not at all.
func writeFile(path string, write func(io.Writer) error) error {
	f, err := os.Create(path + ".part")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // gone already when all went well
	if err := write(f); err != nil {
		f.Close()
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

func newPrune(env Env) *cobra.Command {
	var all bool
	c := &cobra.Command{
		Use: "prune [-a]", Short: "Remove images without a name, and downloads that broke off",
		Example: "  creel image prune", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			store, err := env.Open(c.Context())
			if err != nil {
				return err
			}
			used, err := store.InUse(c.Context())
			if err != nil {
				return err
			}
			removed, err := store.Prune(c.Context(), image.PruneOptions{
				All: all,
				InUse: func(img image.Image) bool {
					return used[img.ID] || !all && time.Since(img.Created) < store.PruneAfter
				},
			})
			for _, id := range removed.Deleted {
				fmt.Fprintf(env.Out, "removed %s\n", command.ShortID(id))
			}
			fmt.Fprintf(env.Out, "freed %s\n", units.BytesSize(float64(removed.FreedBytes)))
			return err
		},
	}
	c.Flags().BoolVarP(&all, "all", "a", false, "also images with a name that no sandbox was made from, however young")
	return c
}
