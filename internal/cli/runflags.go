package cli

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"creel/internal/cli/policycmd"
	"creel/internal/config"
	"creel/internal/sandbox"

	"github.com/docker/go-units"
	"github.com/spf13/pflag"
)

// runFlags are the flags of run, with Docker's names and meaning.
type runFlags struct {
	interactive, tty, readOnly, help bool
	rm, detach, quiet, canaries      bool
	env, envFiles, labels, tmpfs     []string
	publish, mounts                  []string
	shm, detachKeys                  string
	sigProxy                         bool
	workdir, user, entrypoint        string
	hostname, name, memory, disk     string
	cpus                             float64
	pids                             int64
	timeout                          time.Duration
	pull, platform                   string
	accel, confinement, restart      string
	tier, receipt                    string
	policy                           policycmd.Flags
	flags                            *pflag.FlagSet
}

func (f *runFlags) register(fs *pflag.FlagSet) {
	f.flags = fs
	fs.SetInterspersed(false) // what follows the image belongs to the task
	fs.BoolVarP(&f.interactive, "interactive", "i", false, "keep stdin open")
	fs.BoolVarP(&f.tty, "tty", "t", false, "give the task a terminal")
	fs.StringArrayVarP(&f.env, "env", "e", nil, "set a variable, `NAME=value`; NAME alone takes this environment's")
	fs.StringArrayVar(&f.envFiles, "env-file", nil, "read variables from a `file`, one to a line")
	fs.StringVarP(&f.workdir, "workdir", "w", "", "working `directory` of the task")
	fs.StringVarP(&f.user, "user", "u", "", "user of the task, `name|uid[:group|gid]`")
	fs.StringVar(&f.entrypoint, "entrypoint", "", "replace the image's entrypoint by this `command`")
	fs.StringVarP(&f.hostname, "hostname", "h", "", "host `name` in the sandbox")
	fs.StringVar(&f.name, "name", "", "`name` of the sandbox")
	fs.StringArrayVarP(&f.labels, "label", "l", nil, "label the sandbox, `key=value`")
	fs.Float64Var(&f.cpus, "cpus", 0, "`number` of CPUs, 0.01 to 4")
	fs.StringVarP(&f.memory, "memory", "m", "", "memory limit, such as 256m or 2g; at most 8g")
	fs.Int64Var(&f.pids, "pids-limit", 0, "`number` of processes at most; 0 or -1 is no limit")
	fs.StringVar(&f.disk, "disk", "", "`size` of the writable disk, 64m to 64g (default 10g)")
	fs.StringArrayVar(&f.tmpfs, "tmpfs", nil, "mount a tmpfs, `/path[:size=64m,mode=1777,ro,noexec]`")
	fs.StringArrayVar(&f.mounts, "mount", nil, "as --tmpfs, `type=tmpfs,target=/path[,tmpfs-size=64m][,tmpfs-mode=1777]`")
	fs.StringVar(&f.shm, "shm-size", "", "`size` of /dev/shm (default 64m)")
	fs.BoolVar(&f.readOnly, "read-only", false, "make the root file system read-only")
	fs.BoolVar(&f.rm, "rm", false, "remove the sandbox when it ends; always so in the foreground")
	fs.BoolVarP(&f.detach, "detach", "d", false, "run in the background, print the ID, and keep record, logs and disk until rm")
	registerDetachKeys(fs, &f.detachKeys)
	fs.BoolVar(&f.sigProxy, "sig-proxy", true, "pass signals on to the task")
	fs.BoolVarP(&f.quiet, "quiet", "q", false, "print no warnings, and not how the task ended")
	fs.StringVar(&f.restart, "restart", "no", "refused until there is a daemon; only `no`")
	fs.DurationVar(&f.timeout, "timeout", 0, "stop the task after this `duration`, such as 10m; its VM is ended 5s later at the latest")
	fs.StringVar(&f.pull, "pull", "missing", "pull the image before the run: missing, always or never")
	fs.StringVar(&f.platform, "platform", "", "platform of an image that is pulled, `os/architecture`, such as linux/amd64")
	fs.StringArrayVarP(&f.publish, "publish", "p", nil, "let connections in, `[ip:][host:]guest[/proto]`; on 127.0.0.1 unless an address is given")
	fs.BoolVar(&f.canaries, "canaries", false, "plant credentials that open nothing where attackers look; their use is an alert")
	f.policy.Register(fs)
	fs.StringVar(&f.tier, "tier", "", "ceiling on what the task may ask for: untrusted, restricted or trusted (setting tier)")
	fs.StringVar(&f.receipt, "receipt", "", "write a signed receipt of the run to this `file`")
	fs.StringVar(&f.accel, "accel", string(sandbox.AccelAuto), "what executes guest code: auto, kvm or tcg")
	fs.StringVar(&f.confinement, "confinement", string(sandbox.ConfinementFull),
		"how the VMM is locked in: full, or reduced where user namespaces cannot be had")
	fs.BoolVar(&f.help, "help", false, "help for run") // -h is the host name, as in Docker
}

// spec translates the flags and the words behind them.
func (f *runFlags) spec(args []string, lookup func(string) (string, bool)) (sandbox.Spec, error) {
	spec := sandbox.Spec{
		ID: sandbox.NewID(), Name: f.name, Image: args[0], Command: args[1:],
		Workdir: f.workdir, User: f.user, Hostname: f.hostname,
		Keep: f.detach, KeepDetached: f.tty && f.interactive && !f.rm, TTY: f.tty, Interactive: f.interactive, ReadOnly: f.readOnly, Timeout: f.timeout,
		Accel: sandbox.Accel(f.accel), Confinement: sandbox.Confinement(f.confinement),
		Tier: f.tier, Canaries: f.canaries,
	}
	if !slices.Contains([]string{"missing", "always", "never"}, f.pull) {
		return spec, fmt.Errorf("--pull %q: want missing, always or never", f.pull)
	}
	if f.restart != "no" {
		return spec, fmt.Errorf("--restart %s: nothing could restart the task, since there is no daemon yet; use systemd or a loop", f.restart)
	}
	if f.receipt != "" && f.detach {
		return spec, errors.New("--receipt with -d: there is none before the task has ended; use `creel receipt SANDBOX` then")
	}
	if f.rm && f.detach {
		return spec, errors.New("--rm with -d: a task in the background is kept until `creel rm`; leave one of them out")
	}
	if f.flags.Changed("entrypoint") {
		spec.Entrypoint = []string{}
		if f.entrypoint != "" {
			spec.Entrypoint = []string{f.entrypoint}
		}
	}
	var err error
	if spec.Ports, err = publishPorts(f.publish); err != nil {
		return spec, err
	}
	if spec.Env, err = environment(f.env, f.envFiles, lookup); err != nil {
		return spec, err
	}
	if spec.Labels, err = labels(f.labels); err != nil {
		return spec, err
	}
	if spec.Mounts, err = f.tmpfsMounts(); err != nil {
		return spec, err
	}
	spec.Resources, err = f.resources()
	return spec, err
}

// fillIn takes what no flag said from the configuration.
func (f *runFlags) fillIn(spec *sandbox.Spec, c config.Config) {
	unset := func(flag string) bool { return !f.flags.Changed(flag) }
	if unset("memory") {
		spec.Resources.MemoryBytes = c.MemoryBytes
	}
	if unset("cpus") {
		spec.Resources.CPUs = c.CPUs
	}
	if unset("disk") {
		spec.Resources.DiskBytes = c.DiskBytes
	}
	if unset("timeout") {
		spec.Timeout = c.Timeout
	}
	if unset("tier") {
		spec.Tier = c.Tier
	}
	if unset("accel") {
		spec.Accel = c.Accel
	}
	if unset("confinement") {
		spec.Confinement = c.Confinement
	}
}

// warnings is where those of the flags go.
func (f *runFlags) warnings(env Env) io.Writer {
	if f.quiet {
		return io.Discard
	}
	return env.Err
}

// progress prints what a launch says on the way.
func (f *runFlags) progress(env Env) func(string) {
	say := progressTo(env)
	return func(line string) {
		if !f.quiet || !strings.HasPrefix(line, "warning: ") {
			say(line)
		}
	}
}

func (f *runFlags) resources() (sandbox.Resources, error) {
	r := sandbox.Resources{CPUs: f.cpus, PIDs: max(f.pids, 0)}
	var err error
	if r.MemoryBytes, err = size("memory", f.memory); err != nil {
		return r, err
	}
	r.DiskBytes, err = size("disk", f.disk)
	return r, err
}

// size reads bytes with Docker's binary suffixes; empty is 0.
func size(flag, s string) (int64, error) {
	if s == "" {
		return 0, nil
	}
	n, err := units.RAMInBytes(s)
	if err != nil || n <= 0 {
		return 0, fmt.Errorf("--%s %q: want a size such as 512m or 2g", flag, s)
	}
	return n, nil
}

// environment is what -e and --env-file set; a name without a value takes that
// of this process.
func environment(vars, files []string, lookup func(string) (string, bool)) ([]string, error) {
	var lines []string
	for _, name := range files {
		fromFile, err := envFile(name)
		if err != nil {
			return nil, err
		}
		lines = append(lines, fromFile...)
	}
	var env []string
	for _, line := range append(lines, vars...) {
		name, _, given := strings.Cut(line, "=")
		if name == "" {
			return nil, fmt.Errorf("-e %q: want NAME=value or NAME", line)
		}
		if given {
			env = append(env, line)
		} else if value, set := lookup(name); set {
			env = append(env, name+"="+value)
		}
	}
	return env, nil
}

// envFile reads Docker's format: a variable to a line, '#' begins a comment
// line, nothing is unquoted.
func envFile(name string) ([]string, error) {
	file, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("--env-file: %w", err)
	}
	defer file.Close()
	var lines []string
	scanner := bufio.NewScanner(file)
	for n := 1; scanner.Scan(); n++ {
		line := strings.TrimLeft(scanner.Text(), " \t")
		if line == "" || line[0] == '#' {
			continue
		}
		if key, _, _ := strings.Cut(line, "="); key == "" || strings.ContainsAny(key, " \t") {
			return nil, fmt.Errorf("--env-file %s line %d: want NAME=value", name, n)
		}
		lines = append(lines, line)
	}
	if err := scanner.Err(); err != nil {
		return nil, fmt.Errorf("--env-file %s: %w", name, err)
	}
	return lines, nil
}

func labels(list []string) (map[string]string, error) {
	if len(list) == 0 {
		return nil, nil
	}
	out := map[string]string{}
	for _, l := range list {
		key, value, _ := strings.Cut(l, "=")
		if key == "" {
			return nil, fmt.Errorf("--label %q: want key=value", l)
		}
		out[key] = value
	}
	return out, nil
}

// tmpfsMounts are what --tmpfs, --mount and --shm-size ask for.
func (f *runFlags) tmpfsMounts() (all []sandbox.Mount, err error) {
	add := func(m sandbox.Mount, merr error) {
		all, err = append(all, m), errors.Join(err, merr)
	}
	for _, t := range f.tmpfs {
		add(tmpfsMount(t))
	}
	for _, m := range f.mounts {
		add(longMount(m))
	}
	if f.shm != "" {
		bytes, err := size("shm-size", f.shm)
		add(sandbox.Mount{Kind: sandbox.MountTmpfs, Target: "/dev/shm", SizeBytes: bytes, NoExec: true}, err)
	}
	return all, err
}

// longMount reads Docker's long form of a tmpfs, type=tmpfs,target=/path.
func longMount(s string) (sandbox.Mount, error) {
	m := sandbox.Mount{Kind: sandbox.MountTmpfs, NoExec: true}
	kind := "volume" // Docker's
	for _, o := range strings.Split(s, ",") {
		key, value, _ := strings.Cut(o, "=")
		var err error
		switch key {
		case "type":
			kind = value
		case "target", "destination", "dst":
			m.Target = path.Clean(value)
		case "tmpfs-size":
			m.SizeBytes, err = size("mount tmpfs-size", value)
		case "tmpfs-mode":
			m.Mode, err = fileMode(value)
		case "readonly", "ro":
			m.ReadOnly = value == "" || value == "true" || value == "1"
		}
		if err != nil {
			return m, fmt.Errorf("--mount %q: %s: %w", s, o, err)
		}
	}
	if kind != "tmpfs" {
		return m, fmt.Errorf("--mount %q: %s", s, noMount)
	}
	if m.Target == "" {
		return m, fmt.Errorf("--mount %q: want type=tmpfs,target=/path", s)
	}
	return m, nil
}

func fileMode(s string) (uint32, error) {
	mode, err := strconv.ParseUint(s, 8, 32)
	if err != nil {
		return 0, fmt.Errorf("want an octal mode such as 1777")
	}
	return uint32(mode), nil
}

// tmpfsMount reads Docker's form, /path[:option,option].
func tmpfsMount(s string) (sandbox.Mount, error) {
	target, options, _ := strings.Cut(s, ":")
	m := sandbox.Mount{Kind: sandbox.MountTmpfs, Target: path.Clean(target), NoExec: true}
	for _, o := range strings.FieldsFunc(options, func(r rune) bool { return r == ',' }) {
		key, value, _ := strings.Cut(o, "=")
		var err error
		switch key {
		case "size":
			m.SizeBytes, err = size("tmpfs size", value)
		case "mode":
			m.Mode, err = fileMode(value)
		case "ro":
			m.ReadOnly = true
		case "exec":
			m.NoExec = false
		default:
			if !slices.Contains([]string{"rw", "noexec", "nosuid", "nodev"}, o) {
				err = fmt.Errorf("option is not known; want size=, mode=, ro, rw, exec, noexec, nosuid or nodev")
			}
		}
		if err != nil {
			return m, fmt.Errorf("--tmpfs %q: %s: %w", s, o, err)
		}
	}
	return m, nil
}
