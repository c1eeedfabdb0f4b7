// Package hostcmd is the commands about this machine: its guest kernel, its
// configuration, what it lacks, and the versions of everything. It must not
// know sandboxes.
package hostcmd

import (
	"context"
	"creel/internal/cli/command"
	"creel/internal/config"
	"creel/internal/doctor"
	"creel/internal/kernel"
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"
)

// Env is what the commands need of the rest.
type Env struct {
	command.Streams
	KernelDir func(context.Context) (string, error)
	Doctor    func(context.Context) (doctor.Deps, error)
	Parts     func(context.Context) []Part
}

// NewKernel is `creel kernel`.
func NewKernel(env Env) *cobra.Command {
	show := func(k kernel.Kernel, err error) error {
		if err == nil {
			fmt.Fprintf(env.Out, "guest kernel %s %s (%s)\n", k.Package, k.Version, k.Release)
		}
		return err
	}
	return command.Group("kernel", "Manage the guest kernel",
		&cobra.Command{
			Use: "fetch", Short: "Download the distribution's cloud kernel package and unpack it; nothing is installed",
			Args: cobra.NoArgs,
			RunE: func(c *cobra.Command, _ []string) error {
				dir, err := env.KernelDir(c.Context())
				if err != nil {
					return err
				}
				return show(kernel.Fetch(c.Context(), dir))
			},
		},
		newImport(env, show),
		&cobra.Command{
			Use: "show", Short: "Show the guest kernel that new templates use",
			Args: cobra.NoArgs,
			RunE: func(c *cobra.Command, _ []string) error {
				dir, err := env.KernelDir(c.Context())
				if err != nil {
					return err
				}
				return show(kernel.Latest(dir))
			},
		},
	)
}

func newImport(env Env, show func(kernel.Kernel, error) error) *cobra.Command {
	var modules string
	c := &cobra.Command{
		Use: "import FILE", Short: "Take a kernel that you have: a Debian package, or an image with its modules",
		Long: `Take a kernel that you have: a Debian package (.deb), or an image, bzImage or
vmlinux, that was built with CONFIG_PVH. An image's modules are in the directory
that --modules names, such as /lib/modules/RELEASE or where
"make modules_install" put them; without it everything that a guest needs has
to be built in: virtio_mmio, virtio_console, virtio_blk, virtio_net, virtio_rng,
overlay, fuse, ext4, and an initramfs. Nothing is installed.`,
		Example: `  creel kernel import linux-image-6.1.0-40-cloud-amd64_6.1.153-1_amd64.deb
  creel kernel import --modules /tmp/mods/lib/modules/6.12.1 arch/x86/boot/bzImage`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			dir, err := env.KernelDir(c.Context())
			if err != nil {
				return err
			}
			isPackage, err := kernel.IsPackage(args[0])
			switch {
			case err != nil:
				return err
			case isPackage && modules != "":
				return errors.New("a kernel package has its own modules; leave --modules out")
			case isPackage:
				return show(kernel.Import(c.Context(), args[0], dir))
			}
			return show(kernel.ImportImage(c.Context(), args[0], modules, dir))
		},
	}
	c.Flags().StringVar(&modules, "modules", "", "directory with the modules of a kernel image")
	return c
}

// NewConfig is `creel config`.
func NewConfig(env Env) *cobra.Command {
	var asJSON bool
	show := &cobra.Command{
		Use: "show", Short: "Show every setting and where its value came from", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			_, values, err := config.Load(os.LookupEnv)
			if err != nil {
				return err
			}
			if asJSON {
				return json.NewEncoder(env.Out).Encode(values)
			}
			w := command.Table(env.Out, "SETTING", "VALUE", "FROM")
			for _, v := range values {
				command.Row(w, v.Name, v.Value, v.Source)
			}
			return w.Flush()
		},
	}
	show.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return command.Group("config", "Show the configuration", show,
		&cobra.Command{
			Use: "path", Short: "Print the file that settings are read from", Args: cobra.NoArgs,
			RunE: func(*cobra.Command, []string) error {
				fmt.Fprintln(env.Out, config.Path(os.LookupEnv))
				return nil
			},
		},
		&cobra.Command{
			Use: "schema", Short: "Print a JSON Schema of the file, for editors", Args: cobra.NoArgs,
			RunE: func(*cobra.Command, []string) error {
				return command.PrintJSON(env.Out, config.Schema())
			},
		},
	)
}
