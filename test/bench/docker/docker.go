// Package docker runs a dockerd of Debian's for the bench to compare with:
// [Start] gives a [Daemon] that touches nothing of the host's. The package must
// not install anything, and must not use a daemon that is there already.
package docker

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Daemon is a dockerd of Debian's in mount, network and process namespaces of
// its own: it touches nothing of the host's, and the end of its first process
// is the end of all of it.
type Daemon struct {
	cmd *exec.Cmd
	Dir string // what it stores, and room for its user
	bin string // colon-separated directories
	// group is the control group, below each hierarchy's root, that containers
	// are made in; there is no namespace that would take it away.
	group string
	done  chan struct{}
}

// Absent is what there is no daemon for want of.
type Absent string

func (e Absent) Error() string { return string(e) }

// Start runs the dockerd that was unpacked in unpacked.
func Start(ctx context.Context, unpacked string) (*Daemon, error) {
	if os.Geteuid() != 0 {
		return nil, Absent("dockerd needs root")
	}
	if _, err := os.Stat(filepath.Join(unpacked, "usr/sbin/dockerd")); err != nil {
		return nil, Absent("no docker.io in " + unpacked)
	}
	// Not under the checkout: a socket's path has to be short.
	dir, err := os.MkdirTemp("", "creel-bench-docker-")
	if err != nil {
		return nil, fmt.Errorf("make directory for dockerd: %w", err)
	}
	d := &Daemon{Dir: dir, bin: unpacked + "/usr/bin:" + unpacked + "/usr/sbin", group: filepath.Base(dir), done: make(chan struct{})}
	if err := d.start(ctx); err != nil {
		d.Close()
		return nil, err
	}
	return d, nil
}

func (d *Daemon) start(ctx context.Context) error {
	log, err := os.Create(filepath.Join(d.Dir, "log"))
	if err != nil {
		return fmt.Errorf("create dockerd's log: %w", err)
	}
	defer log.Close()
	const script = `mount --make-rprivate / && mount -t proc proc /proc && ip link set lo up && exec dockerd -H "unix://$0/sock" --data-root "$0/data" --exec-root "$0/exec" -p "$0/pid" ` +
		`--storage-driver overlay2 --iptables=false --ip6tables=false --ip-masq=false --bridge=none ` +
		`--exec-opt native.cgroupdriver=cgroupfs --cgroup-parent "/$1"`
	d.cmd = exec.Command("sh", "-c", script, d.Dir, d.group)
	d.cmd.Env = append(os.Environ(), "PATH="+d.bin+":"+os.Getenv("PATH"))
	d.cmd.Stdout, d.cmd.Stderr = log, log
	// A terminal's interrupt is for the bench, which then ends the daemon.
	d.cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET | syscall.CLONE_NEWPID,
		Pdeathsig:  syscall.SIGKILL, Setpgid: true,
	}
	if err := d.cmd.Start(); err != nil {
		close(d.done)
		return fmt.Errorf("start dockerd: %w", err)
	}
	go func() { d.cmd.Wait(); close(d.done) }()
	return d.ready(ctx)
}

// ready waits until the daemon answers.
func (d *Daemon) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		if d.Command(ctx, "version").Run() == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-d.done:
			return fmt.Errorf("dockerd ended at once: %s", d.lastLine())
		case <-ctx.Done():
			return fmt.Errorf("wait for dockerd: %w: %s", ctx.Err(), d.lastLine())
		}
	}
}

func (d *Daemon) lastLine() string {
	f, err := os.Open(filepath.Join(d.Dir, "log"))
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	last := ""
	for s := bufio.NewScanner(f); s.Scan(); {
		last = s.Text()
	}
	return last
}

// Command is the client of the daemon's own release.
func (d *Daemon) Command(ctx context.Context, args ...string) *exec.Cmd {
	client, _, _ := strings.Cut(d.bin, ":")
	cmd := exec.CommandContext(ctx, filepath.Join(client, "docker"), args...)
	cmd.Env = append(os.Environ(), "DOCKER_HOST=unix://"+d.Dir+"/sock", "DOCKER_CONFIG="+d.Dir+"/client")
	return cmd
}

// Close ends the daemon and all that it started, and removes what it stored.
func (d *Daemon) Close() error {
	if d.cmd != nil && d.cmd.Process != nil {
		d.cmd.Process.Kill() // the first process of its namespace: the rest ends before it
		<-d.done
	}
	return errors.Join(d.removeGroups(), os.RemoveAll(d.Dir))
}

// removeGroups removes the daemon's control group from every hierarchy, of
// which version 2 has one, and version 1 one a controller.
func (d *Daemon) removeGroups() error {
	var errs []error
	for _, pattern := range []string{"/sys/fs/cgroup/", "/sys/fs/cgroup/*/"} {
		found, err := filepath.Glob(pattern + d.group)
		errs = append(errs, err)
		for _, group := range found {
			below, err := filepath.Glob(group + "/*/")
			errs = append(errs, err)
			for _, dir := range append(below, group) {
				errs = append(errs, syscall.Rmdir(dir))
			}
		}
	}
	return errors.Join(errs...)
}
