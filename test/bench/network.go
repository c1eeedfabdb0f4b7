package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"creel/internal/audit"
	"creel/internal/guest/host"
	"creel/internal/sandbox"
	"creel/internal/scratch"
	"creel/internal/vm"
	"creel/test/bench/network"
)

// networkRows are those of package network.
func (r *rig) networkRows() (all []row) {
	bench := &network.Bench{
		Ends: &r.ends, State: r.state, Peers: r.peers, Image: r.image,
		Creel: func(ctx context.Context, args ...string) *exec.Cmd { return r.creelIn(ctx, r.state, args...) },
		Record: func(ctx context.Context) (string, audit.SandboxKey, error) {
			ledger, dir, err := r.ledger()
			if err != nil {
				return "", audit.SandboxKey{}, err
			}
			sub := filepath.Join(dir, "edge")
			key, err := ledger.OpenSandbox(ctx, "bench", sub)
			key.MaxBytes = 1 << 40 // as for the rows of records
			return sub, key, err
		},
		Machine: r.bootable,
		Ready:   func(ctx context.Context, guest *host.Client) error { return makeReady(ctx, guest, true) },
	}
	for _, of := range bench.Rows() {
		all = append(all, row{name: of.Name, unit: of.Unit, minRatio: of.MinRatio, maxA: of.MaxA,
			setup: func(ctx context.Context) (a, b side, err error) {
				x, y, err := of.Setup(ctx)
				if lack, ok := errors.AsType[network.Absent](err); ok {
					err = absent{string(lack)}
				}
				return side{x.Label, x.Sample}, side{y.Label, y.Sample}, err
			}})
	}
	return all
}

// bootable is what a machine of the template's boots from, and the VMM. The
// rig closes the files.
func (r *rig) bootable(ctx context.Context) (c vm.Config, vmm string, err error) {
	m, err := r.machines(ctx)
	if err != nil {
		return c, "", err
	}
	dir, err := os.MkdirTemp(r.state, "bootable-")
	if err != nil {
		return c, "", fmt.Errorf("make directory for a disk: %w", err)
	}
	path := filepath.Join(dir, "scratch")
	if err := scratch.New(ctx, filepath.Join(r.state, "scratch"), path, sandbox.DefaultDisk, scratch.Disposable); err != nil {
		return c, "", err
	}
	disk, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return c, "", err
	}
	r.ends.Push("disk", disk.Close)
	c = vm.Config{Shape: r.manifest.Shape, Accel: r.manifest.Accel, CPU: r.manifest.CPU}
	return c, m.driver.Path(), m.powerOn(ctx, &c, disk, &r.ends)
}
