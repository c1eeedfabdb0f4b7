package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"creel/internal/sandbox"
)

const (
	fleetSize = 30
	fleets    = 3 // each of which takes up to half a minute
	atOnce    = 2
)

// fleetUp and fleetMemory are of the same fleets: each sample brings up 30
// sandboxes of 512 MiB, runs one more process in each, and removes them all.
func (r *rig) fleetUp(ctx context.Context) (a, b side, err error) {
	return r.fleets.side("creel run -d, 2 at a time", "up"), b, r.image(ctx)
}

func (r *rig) fleetMemory(ctx context.Context) (a, b side, err error) {
	return r.fleets.side("PSS of VMM, keeper, 1/30 holder", "pss"), b, r.image(ctx)
}

func (r *rig) fleet(ctx context.Context) (got map[string]float64, err error) {
	defer func() { err = errors.Join(err, r.removeSandboxes()) }()
	ids := make([]string, fleetSize)
	began := time.Now()
	err = inParallel(ctx, func(ctx context.Context, i int) error {
		cmd := r.creelIn(ctx, r.state, "run", "-d", "-m", "512m", imageName, "sleep", "infinity")
		out, err := cmd.Output()
		ids[i] = string(bytes.TrimSpace(out))
		return explain(cmd, err)
	})
	up := time.Since(began).Seconds()
	if err == nil {
		err = inParallel(ctx, func(ctx context.Context, i int) error {
			return done(r.creelIn(ctx, r.state, "exec", ids[i], "git", "--version"))
		})
	}
	if err != nil {
		return nil, err
	}
	pids, err := r.processes(ctx, ids)
	if err != nil {
		return nil, err
	}
	total, err := pss(pids)
	return map[string]float64{"up": up, "pss": total / fleetSize}, err
}

// inParallel calls do for every member of a fleet, a few at once, and stops
// beginning new ones at an error.
func inParallel(ctx context.Context, do func(ctx context.Context, i int) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var workers sync.WaitGroup
	next := make(chan int)
	for range atOnce {
		workers.Go(func() {
			for i := range next {
				if ctx.Err() != nil {
					continue
				}
				if err := do(ctx, i); err != nil {
					cancel(err)
				}
			}
		})
	}
	for i := range fleetSize {
		next <- i
	}
	close(next)
	workers.Wait()
	return context.Cause(ctx)
}

// processes are the keepers and VMMs of sandboxes, and the holders.
func (r *rig) processes(ctx context.Context, ids []string) ([]int, error) {
	cmd := r.creelIn(ctx, r.state, append([]string{"inspect"}, ids...)...)
	out, err := cmd.Output()
	if err != nil {
		return nil, explain(cmd, err)
	}
	var found []struct{ Status sandbox.Status }
	if err := json.Unmarshal(out, &found); err != nil {
		return nil, fmt.Errorf("read what creel inspect says: %w", err)
	}
	pids, err := r.holders()
	if err != nil {
		return nil, err
	}
	for _, f := range found {
		if f.Status.State != sandbox.StateRunning || f.Status.KeeperPID == 0 || f.Status.VMMPID == 0 {
			return nil, fmt.Errorf("sandbox %s does not run: %s %s", f.Status.Name, f.Status.State, f.Status.Error)
		}
		pids = append(pids, f.Status.KeeperPID, f.Status.VMMPID)
	}
	if len(found) != len(ids) || len(pids) == 2*len(ids) {
		return nil, fmt.Errorf("%d of %d sandboxes are there, with %d processes", len(found), len(ids), len(pids))
	}
	return pids, nil
}

// removeSandboxes removes whatever sandboxes the bench's state has, even after
// an interrupt.
func (r *rig) removeSandboxes() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	list := r.creelIn(ctx, r.state, "ps", "-a", "-q")
	ids, err := list.Output()
	if err != nil || len(bytes.TrimSpace(ids)) == 0 {
		return explain(list, err)
	}
	args := []string{"rm", "-f"}
	for id := range bytes.FieldsSeq(ids) {
		args = append(args, string(id))
	}
	return done(r.creelIn(ctx, r.state, args...))
}
