package network

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"creel/internal/guest/host"
	"creel/internal/procs"
	"creel/internal/sandbox"
	"creel/internal/vm/qemu"
)

// traffic is the program that makes it in a guest.
//
//go:embed traffic.py
var traffic string

// trafficIn is the command line of the program.
func trafficIn(what, url string, count, mtu int) []string {
	return []string{"python3", "-c", traffic, what, url, strconv.Itoa(count), strconv.Itoa(mtu)}
}

// figure is the one that a program printed.
func figure(out []byte) (float64, error) {
	v, err := strconv.ParseFloat(strings.TrimSpace(string(out)), 64)
	if err != nil {
		return 0, fmt.Errorf("read what the guest measured: %w", err)
	}
	return v, nil
}

// bare is a machine of the same kernel, agent and image as Creel's, whose card
// leads somewhere else, without boundary and confinement.
type bare struct{ guest *host.Client }

// userNet is QEMU's own user networking with the addresses that the guest has.
// The gateway's is the host's loopback.
const userNet = "user,id=net,net=192.168.127.0/24,host=192.168.127.1,dhcpstart=192.168.127.15"

// withUser is a machine on QEMU's own user networking, and withPasst one on
// passt. Both are started once.
func (b *Bench) withUser(ctx context.Context) (*bare, error) {
	if b.user == nil {
		near, far, err := procs.Files()
		if err != nil {
			return nil, err
		}
		b.Ends.Push("network", near.Close)
		if b.user, err = b.bare(ctx, userNet, far); err != nil {
			return nil, err
		}
	}
	return b.user, nil
}

func (b *Bench) withPasst(ctx context.Context) (*bare, error) {
	if b.passt != nil {
		return b.passt, nil
	}
	path := filepath.Join(b.Peers, "usr/bin/passt")
	if _, err := os.Stat(path); err != nil {
		return nil, Absent("no passt in " + b.Peers)
	}
	near, far, err := procs.Files()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(path, "--foreground", "--quiet", "--ipv4-only", "--mtu", strconv.Itoa(ownMTU),
		"--address", "192.168.127.2", "--netmask", "24", "--gateway", "192.168.127.1", "--fd", "3")
	cmd.ExtraFiles, cmd.Stderr = []*os.File{near}, os.Stderr
	if err := b.child("passt", cmd); err != nil {
		return nil, errors.Join(err, near.Close(), far.Close())
	}
	near.Close()
	if b.passt, err = b.bare(ctx, "", far); err != nil {
		return nil, err
	}
	return b.passt, nil
}

// child starts a process that the rig ends.
func (b *Bench) child(what string, cmd *exec.Cmd) error {
	// A session of its own, as a keeper and its VMM have: where processors are
	// short they are shared out by session.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", what, err)
	}
	b.Ends.Push(what, func() error {
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		cmd.Wait()
		return nil
	})
	return nil
}

// bare boots one. Its card is netdev in QEMU's words, "" for the driver's own
// on network, which it takes over.
func (b *Bench) bare(ctx context.Context, netdev string, network *os.File) (*bare, error) {
	defer network.Close()
	c, vmm, err := b.Machine(ctx)
	if err != nil {
		return nil, err
	}
	args, rest := qemu.Plan(c)
	if i := slices.Index(args, "-netdev"); netdev != "" {
		args[i+1] = netdev
	}
	control, far, err := b.sockets()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(vmm, args...)
	cmd.Stderr = os.Stderr
	cmd.ExtraFiles = append(append(slices.Clone(far), network, c.Memory), rest...)
	if err := b.child("machine", cmd); err != nil {
		return nil, err
	}
	for _, f := range far {
		f.Close()
	}
	guest := host.New(control)
	return &bare{guest}, b.Ready(ctx, guest)
}

// measure runs the program in the machine.
func (b *bare) measure(ctx context.Context, what, url string, count, mtu int) (float64, error) {
	x, err := b.guest.Exec(ctx, sandbox.Process{Args: trafficIn(what, url, count, mtu)})
	if err != nil {
		return 0, err
	}
	defer x.Close()
	x.Stdin().Close()
	complaint := make(chan []byte, 1)
	go func() {
		said, _ := io.ReadAll(io.LimitReader(x.Stderr(), 4<<10))
		complaint <- said
	}()
	out, err := io.ReadAll(io.LimitReader(x.Stdout(), 4<<10))
	said := <-complaint
	exit, werr := x.Wait(ctx)
	if err := errors.Join(err, werr); err != nil {
		return 0, err
	}
	if exit.Code != 0 {
		return 0, fmt.Errorf("the guest's program ended with %d: %s", exit.Code, said)
	}
	return figure(out)
}

// sockets are those for commands, control and shares; nobody but the control's
// is spoken to.
func (b *Bench) sockets() (control net.Conn, far []*os.File, err error) {
	for i := range 3 {
		near, theirs, err := procs.Files()
		if err != nil {
			return nil, nil, err
		}
		b.Ends.Push("socket", near.Close)
		far = append(far, theirs)
		if i != 1 {
			continue
		}
		if control, err = net.FileConn(near); err != nil {
			return nil, nil, err
		}
		b.Ends.Push("control", func() error {
			control.Close() // its user may have
			return nil
		})
	}
	return control, far, nil
}
