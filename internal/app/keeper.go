package app

import (
	"context"
	"fmt"
	"io"
	stdlog "log"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"creel/internal/audit"
	"creel/internal/audit/event"
	"creel/internal/boundary/egress"
	"creel/internal/config"
	"creel/internal/confine"
	"creel/internal/keeper"
	"creel/internal/keeper/launch"
	"creel/internal/keeper/socket"
	"creel/internal/template"
	"creel/internal/vm"
	"creel/internal/vm/qemu"
)

const vmmDir = "vmm" // what the VMM's private root is mounted on, in its own namespace

// keeperMain is a keeper process, from start to end.
func keeperMain(ctx context.Context) error {
	l, err := launch.Read(launch.Inherited)
	if err != nil {
		return err
	}
	log, end := keeperLog()
	defer end()
	return keep(ctx, l, nil, log)
}

// keeperLog is what a keeper has to say. A process has one: it is bounded.
func keeperLog() (log *slog.Logger, end func()) {
	lines := keeper.NewLog(os.Stderr)
	return slog.New(slog.NewTextHandler(lines, &slog.HandlerOptions{Level: slog.LevelWarn})), lines.Close
}

// keep is the keeper of one run, with a clone that waited for it or, where
// that is nil, with one that it starts.
func keep(ctx context.Context, l launch.Received, waiting *keeper.Waiting, log *slog.Logger) error {
	defer l.Lock.Close()
	if err := adopt(l.Environ); err != nil {
		return err
	}
	stdlog.SetOutput(io.Discard) // net/http tells it what a hostile upstream sends, as often as that likes
	dir, err := os.OpenRoot(l.Dir)
	if err != nil {
		return fmt.Errorf("open sandbox directory: %w", err)
	}
	records, err := audit.OpenLog(filepath.Join(l.SandboxDir, l.AuditDir), l.AuditKey)
	if err != nil {
		return err
	}
	defer records.Close()
	driver, err := qemu.New(qemu.Options{})
	if err != nil {
		return err
	}
	if err := os.Mkdir(filepath.Join(l.SandboxDir, vmmDir), 0o700); err != nil && !os.IsExist(err) {
		return fmt.Errorf("make the VMM's directory: %w", err)
	}
	listener, err := socket.Listen(l.Dir)
	if err != nil {
		return err
	}
	network, err := networkFor(l)
	if err != nil {
		return err
	}
	run := keeper.New(l.Config, keeper.Deps{
		Driver: driver,
		Confinement: vm.Confinement{
			Level: l.Config.Spec.Confinement, UID: l.UID, GID: l.UID,
			Dir: filepath.Join(l.SandboxDir, vmmDir),
		},
		Parts: func(ctx context.Context) (*keeper.Parts, error) {
			parts, _, err := openParts(ctx, l.StateDir, l.Config.Template, l.SandboxDir, log)
			return parts, err
		},
		Waiting: waiting,
		Audit:   records, Dir: dir, Log: log, Network: network, Memory: keeper.UsualMemory, Room: keeper.RoomOf,
		Confine: func() error {
			achieved, err := confine.Self(confine.Options{
				UID: l.UID, GID: l.UID, WritePaths: []string{l.Dir}, Internet: network.Dialer != nil,
				DataBytes: uint64(keeper.UsualMemory.Data),
			})
			if err != nil {
				return err
			}
			return records.Append(ctx, audit.Event{
				Kind: event.KindConfined, Sandbox: string(l.Config.Spec.ID),
				Data: event.Confined{VMM: string(l.Config.Spec.Confinement), Keeper: achieved},
			})
		},
	})
	go run.Serve(listener, l.OwnerUID)
	run.ServeLauncher(l.Conn)
	err = run.Do(ctx)
	listener.Close()
	return err
}

// adopt makes the environment that a launcher has handed over this process's.
func adopt(environ []string) error {
	os.Clearenv()
	for _, entry := range environ {
		name, value, _ := strings.Cut(entry, "=")
		if err := os.Setenv(name, value); err != nil {
			return fmt.Errorf("set the variable %s: %w", name, err)
		}
	}
	return nil
}

// networkFor reads what the host says of its network, while it can be read. A
// run without a policy has none, and its keeper cannot make one any more.
func networkFor(l launch.Received) (keeper.Network, error) {
	ports, err := keeper.Published(l.Ports, l.Files)
	n := keeper.Network{Ports: ports, Listed: l.Ports, Grants: l.Grants}
	if err != nil {
		return n, err
	}
	if l.Config.Spec.Policy == "" {
		return n, nil
	}
	settings, _, err := config.Load(os.LookupEnv)
	if err != nil {
		return n, err
	}
	system, err := egress.ReadSystem(os.Getenv)
	if err != nil {
		return n, err
	}
	if system.CA, err = readOptional(settings.ProxyCertificates); err != nil {
		return n, fmt.Errorf("%w; see the setting proxyCertificates", err)
	}
	system.ProxyResolves = settings.ProxyResolves
	if n.Dialer, err = egress.New(system); err != nil {
		return n, err
	}
	return n, nil
}

func readOptional(file string) (string, error) {
	if file == "" {
		return "", nil
	}
	text, err := os.ReadFile(file)
	return string(text), err
}

// openParts gets the template's parts from its holder, and the sandbox's disk.
func openParts(ctx context.Context, stateDir, digest, sandboxDir string, log *slog.Logger) (*keeper.Parts, template.Manifest, error) {
	templates, err := openTemplates(stateDir, log)
	if err != nil {
		return nil, template.Manifest{}, err
	}
	m, err := templates.Inspect(ctx, digest)
	if err != nil {
		return nil, m, err
	}
	parts, err := templates.Open(ctx, m)
	if err != nil {
		return nil, m, err
	}
	disk, err := os.OpenFile(filepath.Join(sandboxDir, launch.DiskName), os.O_RDWR, 0)
	if err != nil {
		parts.Close()
		return nil, m, fmt.Errorf("open the writable disk: %w", err)
	}
	return &keeper.Parts{
		Memory: parts.Memory, State: parts.State, CPU: m.CPU, Disks: template.Disks(parts.Root, disk),
		Close: func() error {
			disk.Close()
			return parts.Close()
		},
	}, m, nil
}
