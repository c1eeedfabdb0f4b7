package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"creel/internal/audit"
	"creel/internal/audit/chain"
	"creel/internal/audit/event"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/sys/unix"
)

// act is what is put on record most: a connection.
var act = audit.Event{Kind: event.KindConnection, Sandbox: "bench", Data: event.Connection{
	Destination: event.Destination{Host: "api.example.org", Port: 443, Protocol: "tls", Decision: event.Allow, Rule: "api", Reason: "host matches"},
	ID:          1, Address: "192.0.2.7:443",
}}

const (
	actsPerSecond = 1000
	manySandboxes = 20
)

// recordRows are of the audit record alone, with no machine.
func (r *rig) recordRows() []row {
	var all []row
	for _, n := range []int{1, manySandboxes} {
		all = append(all, row{name: fmt.Sprintf("record: appends, %s", sandboxes(n)), unit: "/s", setup: func(ctx context.Context) (a, b side, err error) {
			logs, err := r.logs(ctx, n)
			return side{"durable, one writer each", func(ctx context.Context) (float64, error) { return appends(ctx, logs) }}, b, err
		}})
	}
	for _, n := range []int{1, manySandboxes} {
		all = append(all, r.delayRows(n)...)
	}
	return append(all, row{name: "record: verify a million events", unit: "thousand/s", few: 3, setup: r.verify})
}

// delayRows compare with the disk alone: the same acts, gathered in the same
// way, without tree and signature.
func (r *rig) delayRows(n int) (rows []row) {
	ours, bare := &series{}, &series{}
	setup := func(ctx context.Context) error {
		if ours.take != nil {
			return nil
		}
		logs, err := r.logs(ctx, n)
		if err != nil {
			return err
		}
		files, err := r.files(n)
		ours.take = func(ctx context.Context) (map[string]float64, error) {
			return delays(ctx, func(i int) error { return logs[i%n].Append(ctx, act) })
		}
		bare.take = func(ctx context.Context) (map[string]float64, error) {
			return delays(ctx, func(i int) error { return files[i%n].append(make([]byte, lineBytes)) })
		}
		return err
	}
	for _, of := range []struct {
		key  string
		most float64
	}{{"p50", 1}, {"p99", 5}} {
		rows = append(rows, row{name: fmt.Sprintf("record: delay %s, %s", of.key, sandboxes(n)), unit: "ms", maxA: of.most,
			setup: func(ctx context.Context) (a, b side, err error) {
				err = setup(ctx)
				return ours.side("1,000 acts a second", of.key), bare.side("write and fdatasync alone", of.key), err
			}})
	}
	return rows
}

func sandboxes(n int) string {
	if n == 1 {
		return "1 sandbox"
	}
	return fmt.Sprintf("%d sandboxes", n)
}

// ledger makes one on the disk.
func (r *rig) ledger() (*audit.Ledger, string, error) {
	if err := os.MkdirAll(r.disk, 0o755); err != nil {
		return nil, "", fmt.Errorf("make directory for records: %w", err)
	}
	dir, err := os.MkdirTemp(r.disk, "record-")
	if err != nil {
		return nil, "", fmt.Errorf("make directory for records: %w", err)
	}
	r.ends.Push("records", func() error { return os.RemoveAll(dir) })
	l, err := audit.OpenLedger(filepath.Join(dir, "audit"))
	if err != nil {
		return nil, "", err
	}
	r.ends.Push("ledger", l.Close)
	return l, dir, nil
}

// logs are those of n sandboxes, as their keepers have them.
func (r *rig) logs(ctx context.Context, n int) (logs []*audit.Log, err error) {
	ledger, dir, err := r.ledger()
	if err != nil {
		return nil, err
	}
	for i := range n {
		sub := filepath.Join(dir, fmt.Sprint(i))
		key, err := ledger.OpenSandbox(ctx, "bench", sub)
		if err != nil {
			return nil, err
		}
		key.MaxBytes = 1 << 40 // no quota: a fast disk would come to it
		l, err := audit.OpenLog(sub, key)
		if err != nil {
			return nil, err
		}
		r.ends.Push("log", l.Close)
		logs = append(logs, l)
	}
	return logs, nil
}

// appends is how many records became durable in a second, with one writer for
// each log who waits for each.
func appends(ctx context.Context, logs []*audit.Log) (float64, error) {
	var count atomic.Int64
	var writers sync.WaitGroup
	errs := make([]error, len(logs))
	began := time.Now()
	for i, l := range logs {
		writers.Go(func() {
			for errs[i] == nil && time.Since(began) < time.Second {
				errs[i] = l.Append(ctx, act)
				count.Add(1)
			}
		})
	}
	writers.Wait()
	return float64(count.Load()) / time.Since(began).Seconds(), errors.Join(errs...)
}

// delays is how many milliseconds acts take that come evenly for a second,
// whether or not those before are done.
func delays(ctx context.Context, do func(i int) error) (map[string]float64, error) {
	took := make([]time.Duration, actsPerSecond)
	errs := make([]error, actsPerSecond)
	var acts sync.WaitGroup
	began := time.Now()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for i := range actsPerSecond {
		timer.Reset(time.Until(began.Add(time.Duration(i) * time.Second / actsPerSecond)))
		select {
		case <-timer.C:
		case <-ctx.Done():
			acts.Wait()
			return nil, ctx.Err()
		}
		acts.Go(func() {
			asked := time.Now()
			errs[i] = do(i)
			took[i] = time.Since(asked)
		})
	}
	acts.Wait()
	slices.Sort(took)
	at := func(percent int) float64 { return float64(took[len(took)*percent/100].Microseconds()) / 1000 }
	return map[string]float64{"p50": at(50), "p99": at(99)}, errors.Join(errs...)
}

// lineBytes is about what a record and its checkpoint have.
const lineBytes = 700

// synced is a file of which one writer at a time syncs what all have written.
type synced struct {
	file *os.File

	mu      sync.Mutex
	written int // appends
	durable int

	syncing sync.Mutex
}

func (r *rig) files(n int) (files []*synced, err error) {
	_, dir, err := r.ledger()
	for i := 0; i < n && err == nil; i++ {
		s := &synced{}
		s.file, err = os.OpenFile(filepath.Join(dir, fmt.Sprint(i)), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
		r.ends.Push("file", s.file.Close)
		files = append(files, s)
	}
	return files, err
}

func (s *synced) append(data []byte) error {
	s.mu.Lock()
	_, err := s.file.Write(data)
	s.written++
	mine := s.written
	s.mu.Unlock()
	if err != nil {
		return err
	}
	s.syncing.Lock()
	defer s.syncing.Unlock()
	s.mu.Lock()
	done, all := s.durable >= mine, s.written
	s.mu.Unlock()
	if done {
		return nil
	}
	err = unix.Fdatasync(int(s.file.Fd()))
	s.mu.Lock()
	s.durable = all
	s.mu.Unlock()
	return err
}

const million = 1_000_000

// verify checks one log of a million events, each with a commit of its own:
// that is the most work.
func (r *rig) verify(ctx context.Context) (a, b side, err error) {
	ledger, dir, err := r.ledger()
	if err != nil {
		return a, b, err
	}
	sub := filepath.Join(dir, "0")
	key, err := ledger.OpenSandbox(ctx, "bench", sub)
	if err != nil {
		return a, b, err
	}
	if err := fill(ctx, filepath.Join(sub, audit.LogName), key, million); err != nil {
		return a, b, fmt.Errorf("fill log: %w", err)
	}
	public, err := ledger.PublicKey()
	if err != nil {
		return a, b, err
	}
	return side{"a commit each, one log", func(ctx context.Context) (float64, error) {
		began := time.Now()
		report, err := audit.Verify(ctx, filepath.Join(dir, "audit"), public, audit.Options{Live: true})
		took := time.Since(began)
		if err == nil && (len(report.Faults) > 0 || report.Records < million) {
			err = fmt.Errorf("verify: %d records, faults %v", report.Records, report.Faults)
		}
		return million / took.Seconds() / 1000, err
	}}, b, nil
}

// fill goes on with a log without syncing it. Only its last checkpoint is
// signed for real, which a verifier looks at; the others would take a minute.
func fill(ctx context.Context, path string, key audit.SandboxKey, events int) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	scanner := chain.Scanner{Origin: key.Origin}
	if err := scanner.Scan(ctx, f); err != nil {
		return err
	}
	signer, err := note.NewSigner(key.Private)
	if err != nil {
		return err
	}
	entry, err := chain.Encode(act.Kind, act.Sandbox, act.Data)
	if err != nil {
		return err
	}
	tree, out := scanner.Committed, make([]byte, 0, 1<<20)
	for i := range events {
		sealer := chain.Sealer{Origin: key.Origin, Signers: []note.Signer{unsigned{signer}}}
		if i == events-1 {
			sealer.Signers[0] = signer
		}
		c, err := sealer.Seal(&tree, []chain.Entry{entry}, time.Now().UTC())
		if err != nil {
			return err
		}
		tree, out = c.Tree, append(out, c.Bytes...)
		if len(out) < 1<<19 && i < events-1 {
			continue
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if _, err := f.Write(out); err != nil {
			return err
		}
		out = out[:0]
	}
	_, err = f.Seek(0, io.SeekEnd)
	return err
}

// unsigned has as many bytes as a signature.
type unsigned struct{ note.Signer }

func (unsigned) Sign([]byte) ([]byte, error) { return make([]byte, 64), nil }
