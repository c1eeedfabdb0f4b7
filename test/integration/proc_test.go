package integration

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
)

// procStat is /proc/PID/stat behind the process's name.
func procStat(t *testing.T, pid int) []string {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
}

// procStatus is /proc/PID/status by name; empty once the process has ended.
func procStatus(pid int) map[string]string {
	data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	fields := map[string]string{}
	for _, line := range lines(string(data)) {
		name, value, _ := strings.Cut(line, ":")
		fields[name] = strings.Join(strings.Fields(value), " ")
	}
	return fields
}

// peakMemory is the most memory that a process had resident, in bytes; of one
// that has ended, 0.
func peakMemory(pid int) int64 {
	kib, _ := strconv.ParseInt(strings.TrimSuffix(procStatus(pid)["VmHWM"], " kB"), 10, 64)
	return kib << 10
}
