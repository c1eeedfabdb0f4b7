package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// phase is a part of a `creel run`, between two marks of it.
type phase struct{ name, label, from, to string }

// phases in their order. Marks are the kinds and steps of the audit log, and
// the start and end of the process.
var phases = []phase{
	{"launch", "plan, ledger, disk, keeper", "begin", "log"},
	{"machine", "VMM, device state", "machine", "boundary"},
	{"confine", "keeper locks itself in", "confine", "identity"},
	{"identity", "in the guest", "identity", "started"},
	{"task", "exec true, usage, VMM gone", "started", "exit"},
	{"finish", "log closed, directory gone", "exit", "end"},
}

// phase is one part of the runs that all parts share.
func (r *rig) phase(p phase) row {
	return row{name: "run true: " + p.name, unit: "ms", setup: func(ctx context.Context) (a, b side, err error) {
		return r.runs.side(p.label, p.name), b, r.image(ctx)
	}}
}

// runInPhases runs `true` and reads from the run's audit log when what began.
func (r *rig) runInPhases(ctx context.Context) (map[string]float64, error) {
	began := time.Now()
	if err := done(r.creelIn(ctx, r.state, "run", imageName, "true")); err != nil {
		return nil, err
	}
	ended := time.Now()
	file, err := newest(filepath.Join(r.state, "audit", "logs", "*.jsonl"), began)
	if err != nil {
		return nil, err
	}
	marks, err := readMarks(file)
	if err != nil {
		return nil, err
	}
	marks["begin"], marks["end"] = began, ended
	ms := map[string]float64{}
	for _, p := range phases {
		from, to := marks[p.from], marks[p.to]
		if from.IsZero() || to.IsZero() {
			return nil, fmt.Errorf("the audit log %s has no %s or no %s", file, p.from, p.to)
		}
		ms[p.name] = float64(to.Sub(from).Microseconds()) / 1000
	}
	return ms, nil
}

// readMarks maps the steps and kinds of an audit log to their times.
func readMarks(file string) (map[string]time.Time, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	marks := map[string]time.Time{}
	for lines := bufio.NewScanner(f); ; {
		if !lines.Scan() {
			return marks, lines.Err()
		}
		var record struct {
			Time time.Time
			Kind string
			Data struct{ Step string }
		}
		if err := json.Unmarshal(lines.Bytes(), &record); err != nil {
			return nil, fmt.Errorf("read audit log %s: %w", file, err)
		}
		if record.Kind == "step" {
			record.Kind = record.Data.Step
		}
		marks[record.Kind] = record.Time
	}
}

// newest is the file that was written last, and not before a time.
func newest(pattern string, since time.Time) (string, error) {
	files, err := filepath.Glob(pattern)
	if err != nil {
		return "", err
	}
	found := ""
	for _, file := range files {
		info, err := os.Stat(file)
		if err != nil {
			return "", err
		}
		if info.ModTime().After(since) {
			found, since = file, info.ModTime()
		}
	}
	if found == "" {
		return "", errors.New("the run left no audit log")
	}
	return found, nil
}
