// Command bench measures Creel against what people would use instead, both
// sides by turns in one run, prints a table of medians and writes every sample
// as JSON. A row that lacks something is left out with the reason. Whatever it
// starts, it ends, on an interrupt as well.
//
// A row is added to [rows]; each has a set-up that gives one or two measures.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"syscall"
	"time"

	"creel/internal/confine"
	"creel/test/bench/network"
)

func main() {
	// The VMMs that the bench starts itself are locked in by a stage of it.
	if len(os.Args) > 1 && os.Args[1] == confine.StageArg {
		confine.StageMain()
	}
	if len(os.Args) > 1 && os.Args[1] == network.ProxyArg {
		if err := network.ProxyMain(); err != nil {
			fmt.Fprintf(os.Stderr, "bench: proxy: %v\n", err)
			os.Exit(1)
		}
		return
	}
	// Children ask for a signal when the thread that started them ends.
	runtime.LockOSThread()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "bench: %v\n", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) (err error) {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	creel := flags.String("creel", "bin/creel", "the creel binary")
	docker := flags.String("docker", "build/docker", "where Debian's docker.io was unpacked")
	peers := flags.String("peers", "build/peers", "where Debian's passt and mitmproxy were unpacked")
	out := flags.String("json", "", "write the samples to this `file`")
	n := flags.Int("n", minSamples, "samples of each side, at least 10 for a verdict")
	only := flags.String("run", "", "measure only rows whose name contains this")
	if err := flags.Parse(args); err != nil {
		return err
	}
	report := newReport(ctx, *n) // before the bench itself makes load
	r, err := newRig(*creel, *docker, *peers)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()

	began := time.Now()
	for _, row := range rows(r) {
		if !row.matches(*only) {
			continue
		}
		fmt.Fprintf(os.Stderr, "bench: [%3.0f s] %s\n", time.Since(began).Seconds(), row.name)
		result, err := row.measure(ctx, *n)
		if err != nil {
			return fmt.Errorf("row %q: %w", row.name, err)
		}
		report.Rows = append(report.Rows, result)
	}
	report.Seconds = time.Since(began).Round(time.Second).Seconds()
	report.know(r.manifest)
	report.print(os.Stdout)
	if *out != "" {
		if err := report.write(*out); err != nil {
			return err
		}
	}
	if missed := report.missed(); missed > 0 {
		return fmt.Errorf("%d rows miss their target", missed)
	}
	return nil
}
