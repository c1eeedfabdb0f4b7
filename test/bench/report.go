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
)

// Report is the whole outcome, as it is written to the JSON file.
type Report struct {
	Time    time.Time `json:"time"`
	Commit  string    `json:"commit"`
	Kernel  string    `json:"kernel"`
	CPUs    int       `json:"cpus"`
	Samples int       `json:"samples"` // of each side
	Rows    []Result  `json:"rows"`
}

func newReport(ctx context.Context, n int) *Report {
	return &Report{
		Time: time.Now().UTC().Truncate(time.Second), CPUs: runtime.NumCPU(), Samples: n,
		Commit: first(ctx, "git", "describe", "--always", "--dirty"),
		Kernel: first(ctx, "uname", "-r"),
	}
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
	fmt.Fprintf(to, "%s, %d CPUs, Linux %s: medians of %d samples of each side, by turns\n", r.Commit, r.CPUs, r.Kernel, r.Samples)
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
