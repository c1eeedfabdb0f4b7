package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
)

// pss is the proportional set size of processes together, in MiB. Each shared
// page counts by its share, so the sum over all that map it is what they cost.
func pss(pids []int) (float64, error) {
	var kib int64
	for _, pid := range pids {
		f, err := os.Open(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err != nil {
			return 0, fmt.Errorf("measure memory of process %d: %w", pid, err)
		}
		n, err := parsePSS(f)
		f.Close()
		if err != nil {
			return 0, fmt.Errorf("measure memory of process %d: %w", pid, err)
		}
		kib += n
	}
	return float64(kib) / 1024, nil
}

// parsePSS finds the line "Pss:   1234 kB".
func parsePSS(from io.Reader) (int64, error) {
	s := bufio.NewScanner(from)
	for s.Scan() {
		if rest, ok := strings.CutPrefix(s.Text(), "Pss:"); ok {
			return strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(rest, "kB")), 10, 64)
		}
	}
	if err := s.Err(); err != nil {
		return 0, err
	}
	return 0, io.ErrUnexpectedEOF
}
