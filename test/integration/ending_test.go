package integration

import (
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"creel/test/rig"
)

// A task that is root can end its VM, and can stop it; each is noticed, and said
// in words of its own.
func TestGuestEndsOrStops(t *testing.T) {
	r := machines(t)
	before := r.Snapshot(t)
	for name, c := range map[string]struct {
		script string
		code   int
		words  string
	}{
		"power-off": {"echo o >/proc/sysrq-trigger; sleep 1000", 137, "the guest powered itself off"},
		"reboot":    {"echo b >/proc/sysrq-trigger; sleep 1000", 137, "the guest rebooted itself"},
		"panic":     {"echo c >/proc/sysrq-trigger; sleep 1000", 125, `the guest's kernel panicked: "sysrq triggered crash"`},
		// The kernel's other ways to reboot end in firmware that stands still.
		"stands still": {"echo bios >/sys/kernel/reboot/type; echo b >/proc/sysrq-trigger; sleep 1000", 125, "the guest has stopped"},
		"debugged":     {"perl -e 'syscall(101, 16, 1, 0, 0); sleep 1000'", 125, "stopped"}, // which thread that is decides which of the two is said,
	} {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			if got := r.Run(t, "run", "debian", "sh", "-c", c.script); got.Code != c.code || !strings.Contains(got.Err, c.words) {
				t.Errorf("exit code %d: %s; want %d and %q", got.Code, got.Err, c.code, c.words)
			}
			r.Clean(t, before)
		})
	}
}

// A VMM and a keeper that were killed are said to have been.
func TestKilledIsSaid(t *testing.T) {
	r := machines(t)
	before := r.Snapshot(t)
	for kind, words := range map[rig.Kind]string{
		rig.VMM:    "the VMM was killed (signal 9, killed)",
		rig.Keeper: "its keeper was killed (signal 9, killed)",
	} {
		task := r.Start(t, "run", "debian", "sh", "-c", "echo ready; exec sleep 1000")
		task.Line()
		if err := unix.Kill(find(t, r, kind).PID, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if code := task.Wait(); code != 125 || !strings.Contains(task.Stderr.String(), words) {
			t.Errorf("%s: exit code %d: %s; want 125 and %q", kind, code, task.Stderr, words)
		}
		r.Clean(t, before)
	}
	name := background(t, r, "debian", "sleep", "1000")
	if err := unix.Kill(r.Inspect(t, name).Status.VMMPID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	r.Must(t, "wait", name)
	for _, listing := range []string{r.Must(t, "ps", "-a", "--filter", "name="+name), r.Must(t, "inspect", name)} {
		if !strings.Contains(listing, "the VMM was killed") {
			t.Errorf("it does not say that the VMM was killed: %s", listing)
		}
	}
}

// What needs the guest of a paused sandbox is refused with what to do; stop lets
// it go on first, so that its task can end by itself.
func TestPausedAnswersAtOnce(t *testing.T) {
	r := machines(t)
	name := background(t, r, "debian", "sh", "-c", "trap 'exit 7' TERM; echo ready; while :; do sleep 0.1; done")
	r.Start(t, "logs", "-f", name).Line()
	r.Must(t, "pause", name)
	file := r.Home + "/file"
	if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"exec", name, "true"}, {"top", name}, {"attach", name}, {"cp", file, name + ":/"}, {"cp", name + ":/etc/hosts", r.Home},
		{"kill", "-s", "TERM", name},
	} {
		if got := r.Run(t, args...); got.Code == 0 || !strings.Contains(got.Err, "paused; unpause it first") {
			t.Errorf("creel %s: exit code %d: %s", strings.Join(args, " "), got.Code, got.Err)
		}
	}
	r.Must(t, "stop", "-t", "100", name)
	if code := r.Must(t, "wait", name); code != "7\n" {
		t.Errorf("its task ended with %s", code)
	}
	other := name + ".killed"
	r.Must(t, "run", "-d", "--name", other, "debian", "sleep", "1000")
	t.Cleanup(func() { r.Run(t, "rm", "-f", other) })
	r.Must(t, "pause", other)
	r.Must(t, "kill", other)
	if code := r.Must(t, "wait", other); code != "137\n" {
		t.Errorf("killed while it was paused: %s", code)
	}
}

// A task that heeds nothing ends a documented moment after its timeout.
func TestTimeoutsGraceIsShort(t *testing.T) {
	r := machines(t)
	got := r.Run(t, "run", "--timeout", "2s", "debian", "sh", "-c", "trap '' TERM; while :; do sleep 1; done")
	if got.Code != 137 || !strings.Contains(got.Err, "stopped after its timeout of 2s") {
		t.Errorf("exit code %d: %s", got.Code, got.Err)
	}
	after := regexp.MustCompile(`exit 137 after ([^ ,]+),`).FindStringSubmatch(got.Err)
	if after == nil {
		t.Fatalf("it does not say how long it ran: %s", got.Err)
	}
	// 2 s, 4 s to SIGKILL, 1 s to the VM's end; the rest is this machine's.
	if ran, err := time.ParseDuration(after[1]); err != nil || ran > 15*time.Second {
		t.Errorf("it ran for %s, %v", ran, err)
	}
}

// A host's disk that is full is an error for a task that writes, and neither
// stops its VM nor others. Nothing is started on it. A task that would fill it is
// ended before that.
func TestFullHostDisk(t *testing.T) {
	machines(t)
	if os.Geteuid() != 0 {
		t.Skip("a small file system takes root")
	}
	small := t.TempDir()
	if err := unix.Mount("tmpfs", small, "tmpfs", 0, "size=500m,mode=700"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(small, unix.MNT_DETACH) })
	if err := os.Chmod(small, 0o711); err != nil {
		t.Fatal(err)
	}
	t.Setenv("TMPDIR", small)
	r, err := rig.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	importBusybox(t, r)
	r.Must(t, "run", "-q", "busybox", "true")
	other := r.Start(t, "run", "-q", "-i", "busybox", "sh", "-c", "echo ready; while read x; do echo $x; done")
	other.Line()

	greedy := r.Run(t, "run", "busybox", "dd", "if=/dev/zero", "of=/x", "bs=1M", "count=600", "conv=fsync")
	if greedy.Code != 125 || !strings.Contains(greedy.Err, "the host's disk is nearly full") {
		t.Errorf("the task that would fill the disk: exit code %d: %s", greedy.Code, greedy.Err)
	}

	filler := r.Start(t, "run", "-i", "busybox", "sh", "-c",
		"echo ready; read x; dd if=/dev/zero of=/x bs=1M count=50 conv=fsync 2>&1 | grep -i error; echo alive; read x; true")
	filler.Line()
	takeAll(t, filepath.Join(small, "taken"))
	if _, err := filler.Stdin.Write([]byte("write\n")); err != nil {
		t.Fatal(err)
	}
	if line := filler.Line(); !strings.Contains(line, "Input/output error") {
		t.Errorf("the task was told %q", line)
	}
	if line := filler.Line(); line != "alive" {
		t.Errorf("then it said %q", line)
	}
	if _, err := other.Stdin.Write([]byte("still here\n")); err != nil {
		t.Fatal(err)
	}
	if line := other.Line(); line != "still here" {
		t.Errorf("another sandbox said %q", line)
	}
	if got := r.Run(t, "run", "busybox", "true"); got.Code != 125 || !strings.Contains(got.Err, "no space left") && !strings.Contains(got.Err, "free some space") {
		t.Errorf("one more sandbox: exit code %d: %s", got.Code, got.Err)
	}
	if err := os.Remove(filepath.Join(small, "taken")); err != nil {
		t.Fatal(err)
	}
	filler.Stdin.Close()
	if code := filler.Wait(); code != 125 || !strings.Contains(filler.Stderr.String(), "the host's disk is full") {
		t.Errorf("the task ended with 0, and the run with %d: %s", code, filler.Stderr)
	}
	if got := r.Run(t, "run", "-q", "busybox", "echo", "again"); got.Out != "again\n" {
		t.Errorf("after it: %+v", got)
	}
	other.Stdin.Close()
	if code := other.Wait(); code != 0 {
		t.Errorf("another sandbox ended with %d: %s", code, other.Stderr)
	}
}

// takeAll makes a file that takes what is left of a file system.
func takeAll(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	buf := make([]byte, 1<<20)
	for {
		if _, err := f.Write(buf); errors.Is(err, unix.ENOSPC) {
			return
		} else if err != nil {
			t.Fatal(err)
		}
	}
}
