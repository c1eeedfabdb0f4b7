package machine

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A process is alive while none of its threads is stopped.
func TestAlive(t *testing.T) {
	cmd := exec.Command("cat") // waits for its input
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { in.Close(); cmd.Process.Kill(); cmd.Wait() }()
	threads, err := os.Open(filepath.Join("/proc", strconv.Itoa(cmd.Process.Pid), "task"))
	if err != nil {
		t.Fatal(err)
	}
	defer threads.Close()
	m := &Machine{threads: threads}
	if err := m.Alive(); err != nil {
		t.Errorf("it runs: %v", err)
	}
	stopped := func(options int) {
		t.Helper()
		var status syscall.WaitStatus
		if _, err := syscall.Wait4(cmd.Process.Pid, &status, options, nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Kill(cmd.Process.Pid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	stopped(syscall.WUNTRACED)
	if err := m.Alive(); err == nil {
		t.Error("it is stopped, and said to be alive")
	}
	if err := unix.Kill(cmd.Process.Pid, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	stopped(syscall.WCONTINUED)
	tick := time.NewTicker(time.Millisecond) // it has still to be scheduled
	defer tick.Stop()
	for m.Alive() != nil {
		select {
		case <-tick.C:
		case <-t.Context().Done():
			t.Fatal("it goes on, and is said to be stopped")
		}
	}
}
