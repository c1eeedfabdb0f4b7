// Package app wires Creel together by hand, in one place: the front doors, the
// keeper and the holder. It must not hold logic of its own beyond the choice
// of what goes where.
package app

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math"
	"math/rand/v2"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"syscall"

	"golang.org/x/sys/unix"

	"creel/internal/audit"
	"creel/internal/cli"
	"creel/internal/cli/hostcmd"
	"creel/internal/config"
	"creel/internal/confine"
	"creel/internal/doctor"
	"creel/internal/engine"
	"creel/internal/engine/store"
	"creel/internal/guest/blob"
	"creel/internal/guest/host"
	"creel/internal/image"
	"creel/internal/image/registry"
	"creel/internal/kernel"
	"creel/internal/policy/tier"
	"creel/internal/printable"
	"creel/internal/sandbox"
	"creel/internal/scratch"
	secrets "creel/internal/secret/store"
	"creel/internal/template"
	"creel/internal/vm"
	"creel/internal/vm/accel"
	"creel/internal/vm/qemu"
)

// First arguments of the processes that are re-execs of this program.
const (
	KeeperArg  = "keeper"
	HolderArg  = "holder"
	StandbyArg = "standby"
)

// self is this program, whatever path it was started by.
const self = "/proc/self/exe"

// Users that a VMM runs as while a template is built or KVM is probed, where
// Creel is root; beside those of the sandboxes.
const (
	builderUIDBase  = 0x68000000
	builderUIDCount = 1 << 24
)

// ownUser confines a VMM that belongs to no sandbox.
func ownUser(level sandbox.Confinement, dir string) vm.Confinement {
	uid := builderUIDBase + rand.IntN(builderUIDCount)
	return vm.Confinement{Level: level, UID: uid, GID: uid, Dir: dir}
}

func kernelDir(state string) string { return filepath.Join(state, "kernels") }

func auditDir(state string) string { return filepath.Join(state, "audit") }

// open prepares what commands act with. It starts nothing.
func open(logging cli.Logging, to io.Writer) (*cli.App, error) {
	cfg, _, err := config.Load(os.LookupEnv)
	if err != nil {
		return nil, err
	}
	log := newLogger(cmp.Or(logging.Level, cfg.LogLevel), cmp.Or(logging.Format, cfg.LogFormat), to)
	dir := cfg.StateDir
	if err := store.Prepare(dir); err != nil {
		return nil, err
	}
	images, err := image.Open(filepath.Join(dir, "images"))
	if err != nil {
		return nil, err
	}
	tiersText, tiers, err := readTiers(cfg.TiersFile)
	if err != nil {
		return nil, err
	}
	ledger := ledgerIn(auditDir(dir), cfg.AuditQuota, log)
	templates, err := openTemplates(dir, log)
	if err != nil {
		return nil, err
	}
	accelerators := accelerators{dir}
	eng := engine.New(engine.Options{
		Dir: dir, Images: images, Templates: templates, Ledger: ledger, AuditDir: auditDir(dir), Tiers: tiers,
		Secrets: secretsOf(cfg), Accel: accelerators,
		Scratch: makeScratch(dir), Standby: standbyPool(cfg),
		KeeperCommand: []string{self, KeeperArg}, Settings: config.Variables(), Log: log,
	})
	return &cli.App{
		Engine: eng, Images: images, Templates: templates, KernelDir: kernelDir(dir),
		Registry: registry.Options{Mirrors: cfg.Mirrors}, PruneAfter: cfg.PruneAfter,
		Tiers: tiersText, RotateKey: ledger.RotateKey, PruneAudit: ledger.Prune,
		Doctor: doctor.Deps{
			StateDir: dir, KernelDir: kernelDir(dir),
			Accel: func(ctx context.Context) (accel.Choice, error) {
				return accelerators.Choose(ctx, cfg.Accel, possibleLevel(cfg.Confinement))
			},
			Namespaces: confine.Available, Templates: templates.List, Leftovers: eng.Leftovers,
			Record: func(ctx context.Context) (broken, doubt error) { return audit.Inspect(ctx, auditDir(dir)) },
			Images: func(ctx context.Context) error { _, err := images.List(ctx); return err },
			Damaged: func() ([]string, error) {
				found, err := eng.Damaged()
				var ids []string
				for _, f := range found {
					ids = append(ids, f.Record.Config.Spec.ID.Short())
				}
				return ids, err
			},
		},
	}, nil
}

// makeScratch makes writable disks of the pristine ones of a state directory.
func makeScratch(stateDir string) func(context.Context, string, int64, scratch.Kind) error {
	return func(ctx context.Context, path string, size int64, kind scratch.Kind) error {
		return scratch.New(ctx, filepath.Join(stateDir, "scratch"), path, size, kind)
	}
}

// openSecrets opens the secrets alone: nothing else has to be in order to
// change or check them.
func openSecrets() (*secrets.Store, error) {
	cfg, _, err := config.Load(os.LookupEnv)
	if err != nil {
		return nil, err
	}
	if _, err := os.Lstat(cfg.StateDir); errors.Is(err, fs.ErrNotExist) {
		return secretsOf(cfg), nil // only who sets one makes it
	}
	if err := store.Prepare(cfg.StateDir); err != nil {
		return nil, err
	}
	return secretsOf(cfg), nil
}

func secretsOf(cfg config.Config) *secrets.Store {
	return secrets.Open(secrets.Options{Dir: filepath.Join(cfg.StateDir, "secrets"), Identity: cfg.SecretsIdentity})
}

// readTiers reads the operator's tiers, where there are any, else those that
// ship.
func readTiers(file string) ([]byte, tier.Tiers, error) {
	if file == "" {
		return tier.DefaultText(), tier.Default(), nil
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, nil, fmt.Errorf("read tiers: %w; see the setting tiersFile", err)
	}
	tiers, err := tier.Parse(text)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", file, err)
	}
	return text, tiers, nil
}

func newLogger(levelName, format string, w io.Writer) *slog.Logger {
	var level slog.Level
	if err := level.UnmarshalText([]byte(levelName)); err != nil {
		level = slog.LevelWarn
	}
	options := &slog.HandlerOptions{Level: level}
	if format == "json" {
		return slog.New(slog.NewJSONHandler(w, options))
	}
	return slog.New(slog.NewTextHandler(w, options))
}

// openTemplates opens the store with all that building needs. A VMM that is
// missing on this machine is said to be when something has to be built.
func openTemplates(dir string, log *slog.Logger) (*template.Store, error) {
	agent, missingAgent := blob.Agent()
	o := template.Options{
		Dir: filepath.Join(dir, "templates"), RuntimeDir: filepath.Join(dir, "holders"),
		Boot:        func(ctx context.Context, req template.Request) (template.Boot, error) { return bootOf(ctx, dir, req) },
		Kernel:      func() (kernel.Kernel, error) { return kernel.Latest(kernelDir(dir)) },
		Agent:       agent,
		Guest:       func(control net.Conn) template.Guest { return host.New(control) },
		Confinement: ownUser,
		Holder:      []string{self, HolderArg}, Log: log,
	}
	driver, missing := qemu.New(qemu.Options{})
	o.VMM = func(ctx context.Context) (template.VMM, error) {
		if err := cmp.Or(missing, missingAgent); err != nil {
			return template.VMM{}, err
		}
		return vmmIdentity(ctx, driver, dir)
	}
	if missing == nil {
		o.Driver = driver
	}
	return template.Open(o)
}

// Stages ends the process where it is one of the small ones that have to begin
// before anything else does.
func Stages(args []string) {
	if len(args) < 2 {
		return
	}
	switch args[1] {
	case confine.StageArg:
		confine.StageMain()
	case accel.StageArg:
		accel.StageMain()
	}
}

// frontDoor is what the command line is given.
func frontDoor(version string, streams cli.Streams) cli.Env {
	var logging cli.Logging
	return cli.Env{
		Streams: streams, Version: version, Logging: &logging,
		Open:  func(context.Context) (*cli.App, error) { return open(logging, printable.NewWriter(streams.Err)) },
		Parts: func(ctx context.Context) []hostcmd.Part { return parts(ctx, version) },
		AuditDir: func() (string, error) {
			cfg, _, err := config.Load(os.LookupEnv)
			return auditDir(cfg.StateDir), err
		},
		Secrets: func(context.Context) (*secrets.Store, error) { return openSecrets() },
	}
}

// Main is the rest of what this program can be. It returns the exit code.
func Main(ctx context.Context, version string, args []string) int {
	var err error
	switch {
	case len(args) > 1 && args[1] == KeeperArg:
		err = keeperMain(ctx)
	case len(args) > 2 && args[1] == StandbyArg:
		err = standbyMain(ctx, args[2])
	case len(args) > 1 && args[1] == HolderArg:
		err = template.HolderMain(ctx, args[2:])
	default:
		// A command is gone before it is worth collecting what it allocates.
		debug.SetGCPercent(400)
		// What the caller left open is not for keepers and holders: they
		// outlive it, and somebody may wait for the end of a pipe.
		if err := unix.CloseRange(3, math.MaxInt32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
			fmt.Fprintf(os.Stderr, "creel: keep inherited files to this process: %v\n", err)
			return 1
		}
		// With a reader that is gone, writing is an error like any other.
		signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
		return cli.Main(ctx, frontDoor(version, cli.Streams{In: os.Stdin, Out: os.Stdout, Err: os.Stderr}), args[1:])
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "creel %s: %v\n", args[1], err)
		return 1
	}
	return 0
}
