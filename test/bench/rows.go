package main

import (
	"context"
	"os"
)

// rows is the table. The names are what `-run` selects by.
func rows(r *rig) []row {
	return []row{
		{name: "run true, whole process", unit: "ms", maxRatio: 0.8, setup: r.runTrue},
		{name: "image conversion", unit: "MB/s", setup: r.convert},
	}
}

// runTrue compares a disposable VM with a container, from the start of the
// client to its end.
func (r *rig) runTrue(ctx context.Context) (a, b side, err error) {
	if err := r.image(ctx); err != nil {
		return a, b, err
	}
	a = side{"creel run", func(ctx context.Context) (float64, error) {
		return timed(r.creelIn(ctx, r.state, "run", imageName, "true"))
	}}
	d, err := r.docker(ctx)
	if err != nil {
		return a, b, err
	}
	b = side{"docker run --rm, runc", func(ctx context.Context) (float64, error) {
		return timed(d.command(ctx, "run", "--rm", imageName, "true"))
	}}
	return a, b, nil
}

// convert takes one `docker save` archive in, each time into a store that does
// not have it. Only the taking in is timed.
func (r *rig) convert(ctx context.Context) (a, b side, err error) {
	d, err := r.docker(ctx)
	if err != nil {
		return a, b, err
	}
	archive, size, err := r.saved(ctx, d)
	if err != nil {
		return a, b, err
	}
	rate := func(ms float64) float64 { return float64(size) / 1e6 / (ms / 1000) }
	a = side{"creel image load", func(ctx context.Context) (float64, error) {
		state, err := os.MkdirTemp("", "creel-bench-")
		if err != nil {
			return 0, err
		}
		defer os.RemoveAll(state)
		ms, err := timed(r.creelIn(ctx, state, "image", "load", "-i", archive))
		return rate(ms), err
	}}
	b = side{"docker load", func(ctx context.Context) (float64, error) {
		if err := done(d.command(ctx, "rmi", "-f", imageName)); err != nil {
			return 0, err
		}
		ms, err := timed(d.command(ctx, "load", "-i", archive))
		return rate(ms), err
	}}
	return a, b, nil
}
