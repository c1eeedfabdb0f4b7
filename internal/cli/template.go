package cli

import (
	"errors"
	"fmt"
	"time"

	"creel/internal/cli/command"
	"creel/internal/engine"
	"creel/internal/image"
	"creel/internal/sandbox"
	"creel/internal/vm"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"
)

func newTemplate(env Env) *cobra.Command {
	return command.Group("template", "Manage templates: machines that were booted once and frozen",
		newTemplateBuild(env), newTemplateList(env), newTemplateInspect(env), newTemplateVerify(env), newTemplateRemove(env))
}

func newTemplateBuild(env Env) *cobra.Command {
	var memory, accel, confinement string
	var cpus float64
	c := &cobra.Command{
		Use: "build IMAGE", Short: "Boot an image once and freeze it, so that runs start from it",
		Example: "  creel template build debian\n  creel template build -m 2g --cpus 2 debian",
		Args:    cobra.ExactArgs(1), ValidArgsFunction: completeFirst(imageNames(env)),
		RunE: func(c *cobra.Command, args []string) error {
			app, err := env.Open(c.Context())
			if err != nil {
				return err
			}
			bytes, err := size("memory", memory)
			if err != nil {
				return err
			}
			shape, err := vm.ShapeFor(bytes, cpus)
			if err != nil {
				return err
			}
			img, err := app.Images.Resolve(c.Context(), args[0])
			if err != nil {
				return err
			}
			if err := image.CheckPlatform(img.Platform); err != nil {
				return fmt.Errorf("image %s: %w", args[0], err)
			}
			wish := engine.TemplateWish{Shape: shape, Accel: sandbox.Accel(accel), Confinement: sandbox.Confinement(confinement)}
			began := time.Now()
			m, err := app.Engine.Template(c.Context(), img, wish, progressTo(env))
			if err != nil {
				return err
			}
			fmt.Fprintf(env.Out, "%s %s %s, ready in %s\n", m.Digest, m.Shape, m.Accel, time.Since(began).Round(time.Millisecond))
			return nil
		},
	}
	c.Flags().StringVarP(&memory, "memory", "m", "", "memory that a run may ask for, such as 2g (default 512m)")
	c.Flags().Float64Var(&cpus, "cpus", 0, "`number` of CPUs that a run may ask for (default 1)")
	c.Flags().StringVar(&accel, "accel", string(sandbox.AccelAuto), "what executes guest code: auto, kvm or tcg")
	c.Flags().StringVar(&confinement, "confinement", string(sandbox.ConfinementFull), "how the VMM is locked in: full or reduced")
	return c
}

func progressTo(env Env) func(string) {
	return func(line string) { fmt.Fprintf(env.Err, "creel: %s\n", line) }
}

// templateRow is what `creel template ls --format` templates see.
type templateRow struct {
	ID, Image, Shape, Accel, Kernel, Created, CreatedAt string
}

var templateColumns = command.Columns{Shown: 6, Fields: [][2]string{
	{"ID", "TEMPLATE"}, {"Image", "IMAGE"}, {"Shape", "SHAPE"}, {"Accel", "ACCEL"}, {"Kernel", "KERNEL"}, {"Created", "CREATED"},
	{"CreatedAt", "CREATED AT"},
}}

func newTemplateList(env Env) *cobra.Command {
	var list command.Listing
	c := &cobra.Command{
		Use: "ls", Short: "List templates", Args: cobra.NoArgs,
		Example: "  creel template ls\n  creel template ls --format '{{.ID}} {{.Image}}'",
		RunE: func(c *cobra.Command, _ []string) error {
			app, err := env.existing(c.Context())
			if tellNoState(env, err) {
				return command.PrintList(env.Out, []templateRow(nil), list, templateColumns)
			}
			if err != nil {
				return err
			}
			manifests, damaged := app.Templates.List(c.Context())
			var rows []templateRow
			for _, m := range manifests {
				r := templateRow{
					ID: m.Digest, Image: m.Image, Shape: m.Shape.String(), Accel: string(m.Accel), Kernel: m.Kernel.Version,
					Created: command.Ago(m.Created), CreatedAt: m.Created.Format(time.RFC3339),
				}
				if !list.Long {
					r.ID, r.Image = command.ShortID(m.Digest), command.ShortID(m.Image)
				}
				rows = append(rows, r)
			}
			return errors.Join(command.PrintList(env.Out, rows, list, templateColumns), damaged)
		},
	}
	list.Register(c.Flags())
	return c
}

func newTemplateInspect(env Env) *cobra.Command {
	return &cobra.Command{
		Use: "inspect TEMPLATE", Short: "Show a template's manifest: every part by its SHA-256",
		Example: "  creel template inspect 3f9a1c",
		Args:    cobra.ExactArgs(1), ValidArgsFunction: completeTemplates(env),
		RunE: func(c *cobra.Command, args []string) error {
			app, err := env.Open(c.Context())
			if err != nil {
				return err
			}
			m, err := app.Templates.Inspect(c.Context(), args[0])
			if err != nil {
				return err
			}
			return command.PrintJSON(env.Out, m)
		},
	}
}

func newTemplateVerify(env Env) *cobra.Command {
	return &cobra.Command{
		Use: "verify TEMPLATE", Short: "Hash every part of a template again and compare",
		Example: "  creel template verify 3f9a1c",
		Args:    cobra.ExactArgs(1), ValidArgsFunction: completeTemplates(env),
		RunE: func(c *cobra.Command, args []string) error {
			app, err := env.Open(c.Context())
			if err != nil {
				return err
			}
			m, err := app.Templates.Inspect(c.Context(), args[0])
			if err != nil {
				return err
			}
			checks, err := app.Templates.Verify(c.Context(), m.Digest)
			for _, p := range checks {
				verdict := "ok"
				if p.Err != nil {
					verdict = p.Err.Error()
				}
				fmt.Fprintf(env.Out, "%-10s %8s  %s\n", p.Part, units.HumanSize(float64(p.Bytes)), verdict)
			}
			return err
		},
	}
}

func newTemplateRemove(env Env) *cobra.Command {
	return &cobra.Command{
		Use: "rm TEMPLATE...", Short: "Remove templates; runs that use one go on",
		Example: "  creel template rm 3f9a1c 77b0e2",
		Args:    cobra.MinimumNArgs(1), ValidArgsFunction: completeTemplates(env),
		RunE: func(c *cobra.Command, args []string) error {
			app, err := env.Open(c.Context())
			if err != nil {
				return err
			}
			var errs []error
			for _, ref := range args {
				m, damaged := app.Templates.Inspect(c.Context(), ref)
				err := app.Templates.Remove(c.Context(), ref)
				if err == nil && damaged == nil {
					err = app.Engine.EndStandby(m.Digest)
				}
				if err != nil {
					errs = append(errs, err)
					continue
				}
				fmt.Fprintf(env.Out, "removed %s\n", ref)
			}
			return errors.Join(errs...)
		},
	}
}
