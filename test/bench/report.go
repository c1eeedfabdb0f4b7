package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"text/tabwriter"
	"time"

	"creel/internal/template"
)

// Report is the whole outcome, as it is written to the JSON file.
type Report struct {
	Time    time.Time `json:"time"`
	Seconds float64   `json:"seconds"` // that it took
	Commit  string    `json:"commit"`
	Machine Machine   `json:"machine"`
	Samples int       `json:"samples"` // of each side
	Rows    []Result  `json:"rows"`
}

// Machine is what was measured on.
type Machine struct {
	CPU    string  `json:"cpu"`
	CPUs   int     `json:"cpus"`
	Kernel string  `json:"kernel"`
	Load   float64 `json:"load"`            // average of the last minute, before the bench began
	Accel  string  `json:"accel,omitempty"` // of the VMs, as VMM and Guest
	VMM    string  `json:"vmm,omitempty"`
	Guest  string  `json:"guest,omitempty"` // kernel
}

func newReport(ctx context.Context, n int) *Report {
	r := &Report{
		Time: time.Now().UTC().Truncate(time.Second), Samples: n,
		Commit: first(ctx, "git", "describe", "--always", "--dirty"),
		Machine: Machine{
			CPU: first(ctx, "sed", "-n", "s/^model name.*: //p", "/proc/cpuinfo"), CPUs: runtime.NumCPU(),
			Kernel: first(ctx, "uname", "-r"),
		},
	}
	fmt.Sscan(first(ctx, "cat", "/proc/loadavg"), &r.Machine.Load)
	return r
}

// know adds what the template tells of the VMs, where one was built.
func (r *Report) know(m template.Manifest) {
	r.Machine.Accel, r.Machine.VMM, r.Machine.Guest = string(m.Accel), m.VMM.Version, m.Kernel.Release
}

// first is the first line that a command prints, or "unknown": it only labels
// the report.
func first(ctx context.Context, name string, args ...string) string {
	out, err := exec.CommandContext(ctx, name, args...).Output()
	if err != nil {
		return "unknown"
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return line
}

func (r *Report) print(to io.Writer) {
	m := r.Machine
	fmt.Fprintf(to, "Commit %s, %d × %s, Linux %s, load %.1f at the start.\n", r.Commit, m.CPUs, m.CPU, m.Kernel, m.Load)
	if m.Accel != "" {
		fmt.Fprintf(to, "VMs: %s, %s, guest kernel %s.\n", m.Accel, m.VMM, m.Guest)
	}
	fmt.Fprintf(to, "Medians of %d samples of each side (%d of the fleets of 30 and of the million events), taken by turns in one run of %.0f s.\n"+
		"Quote the ratios: the absolute figures are this machine's, at this hour.\n\n", r.Samples, fleets, r.Seconds)
	w := tabwriter.NewWriter(to, 0, 8, 2, ' ', 0)
	line := func(cells ...string) { fmt.Fprintf(w, "| %s |\n", strings.Join(cells, "\t| ")) }
	line("what", "creel", "other", "ratio", "target", "")
	line("---", "---", "---", "---", "---", "---")
	for _, row := range r.Rows {
		ratio := ""
		if row.Ratio > 0 {
			ratio = fmt.Sprintf("%.3f", row.Ratio)
		}
		line(row.Name, row.A.text(row.Unit), row.B.text(row.Unit), ratio, row.Target, row.verdict())
	}
	w.Flush()
}

func (s *Side) text(unit string) string {
	if s == nil {
		return "-"
	}
	return fmt.Sprintf("%.1f %s (%s)", s.Median, unit, s.Label)
}

func (r Result) verdict() string {
	switch {
	case r.Skipped != "":
		return "skipped: " + r.Skipped
	case r.Pass == nil:
		return ""
	case *r.Pass:
		return "pass"
	}
	return "MISSED"
}

func (r *Report) missed() int {
	n := 0
	for _, row := range r.Rows {
		if row.Pass != nil && !*row.Pass {
			n++
		}
	}
	return n
}

func (r *Report) write(file string) error {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("encode report: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return fmt.Errorf("make report directory: %w", err)
	}
	return os.WriteFile(file, append(data, '\n'), 0o644)
}
