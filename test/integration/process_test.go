package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"creel/test/rig"
)

func TestWhatTheTaskIs(t *testing.T) {
	r := machines(t)
	vars := filepath.Join(t.TempDir(), "vars")
	if err := os.WriteFile(vars, []byte("# comment\nFROM_FILE=of the file\nBOTH=file\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name, want string
		args       []string
	}{
		{"environment", "of the file,flag,with = and spaces,\n", []string{"--env-file", vars, "-e", "BOTH=flag", "-e", "X=with = and spaces", "-e", "NOT_SET",
			"debian", "sh", "-c", `echo "$FROM_FILE,$BOTH,$X,$NOT_SET"`}},
		{"directory is made", "/made/for it\n", []string{"-w", "/made/for it", "debian", "pwd"}},
		{"user by name", "65534 65534 /nonexistent\n", []string{"-u", "nobody", "debian", "sh", "-c", "echo $(id -u) $(id -g) $HOME"}},
		{"user and group by number", "1234 5678 5678\n", []string{"-u", "1234:5678", "debian", "sh", "-c", "echo $(id -u) $(id -g) $(id -G)"}},
		{"group by name", "1234 4\n", []string{"-u", "1234:adm", "debian", "sh", "-c", "echo $(id -u) $(id -g)"}},
		{"entrypoint", "-n hi", []string{"--entrypoint", "/usr/bin/printf", "debian", "%s %s", "-n", "hi"}},
		{"host name", "box.example\nbox.example\n", []string{"-h", "box.example", "debian", "sh", "-c", "hostname; cat /etc/hostname; getent hosts box.example >/dev/null"}},
		{"all capabilities of its own kernel", "0\n", []string{"debian", "sh", "-c", "mkdir /m && python3 -c 'import ctypes; l = ctypes.CDLL(None, use_errno=True); print(l.mount(b\"x\", b\"/m\", b\"tmpfs\", 0, None))'"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := r.Run(t, append([]string{"run", "-q"}, test.args...)...)
			if got.Out != test.want || got.Code != 0 {
				t.Errorf("got %+v, want %q", got, test.want)
			}
		})
	}
}

func TestReadOnlyRootAndTmpfs(t *testing.T) {
	r := machines(t)
	got := r.Run(t, "run", "-q", "--read-only", "--tmpfs", "/scratch:size=1m,mode=700", "--tmpfs", "/bin2:exec", "debian", "sh", "-c", `
		touch /etc/x 2>&1
		touch /scratch/ok && stat -c %a /scratch
		head -c 2M /dev/zero >/scratch/f 2>/dev/null || stat -c %s /scratch/f
		cp /bin/true /scratch/true 2>/dev/null; cp /bin/true /bin2/ && /bin2/true && echo exec`)
	want := "touch: cannot touch '/etc/x': Read-only file system\n700\n1048576\nexec\n"
	if got.Out != want || got.Code != 0 {
		t.Errorf("got %+v, want %q", got, want)
	}
}

func TestLimitsHoldInTheGuest(t *testing.T) {
	r := machines(t)
	t.Run("processes", func(t *testing.T) {
		got := r.Run(t, "run", "-q", "--pids-limit", "10", "debian", "python3", "-c", `
import os, signal
n = 0
try:
    while n < 100:
        if os.fork() == 0: signal.pause()
        n += 1
except OSError as e: print(n, e.strerror)`)
		if got.Out != "9 Resource temporarily unavailable\n" {
			t.Errorf("got %+v", got)
		}
	})
	t.Run("cpu", func(t *testing.T) {
		got := r.Run(t, "run", "-q", "--cpus", "0.25", "debian", "python3", "-c", `
import time
wall, cpu = time.monotonic(), time.process_time()
while time.process_time() < cpu + 0.5: pass
print((time.monotonic() - wall) / (time.process_time() - cpu))`)
		var ratio float64
		if _, err := fmt.Sscan(got.Out, &ratio); err != nil || ratio < 2.5 {
			t.Errorf("a second of CPU took %q seconds, want nearly 4 and at least 2.5", got.Out)
		}
	})
	t.Run("disk", func(t *testing.T) {
		name := background(t, r, "--disk", "64m", "debian", "sleep", "1000")
		got := r.Run(t, "exec", name, "sh", "-c", "head -c 200M /dev/zero >/big; stat -c %s /big; rm /big; head -c 10M /dev/zero >/small && echo again")
		if !strings.Contains(got.Err, "No space left on device") || !strings.HasSuffix(got.Out, "\nagain\n") {
			t.Errorf("got %+v", got)
		}
		id := r.Inspect(t, name).Record.Config.Spec.ID
		info, err := os.Stat(filepath.Join(r.State, "sandboxes", id, "scratch.img"))
		if err != nil {
			t.Fatal(err)
		}
		if used := info.Sys().(*syscall.Stat_t).Blocks * 512; info.Size() > 64<<20 || used > 64<<20 {
			t.Errorf("on the host the disk has %d bytes and takes %d", info.Size(), used)
		}
	})
}

func TestSeveralProcessesAtOnce(t *testing.T) {
	r := machines(t)
	name := background(t, r, "debian", "sleep", "1000")
	const n = 8
	var all []*rig.Running
	for range n {
		all = append(all, r.Start(t, "exec", "-i", name, "sh", "-c", "echo ready; read x; echo got $x; exit $x"))
	}
	for _, run := range all {
		if line := run.Line(); line != "ready" {
			t.Errorf("got %q", line)
		}
	}
	for i, run := range all { // all live now
		fmt.Fprintln(run.Stdin, i)
	}
	for i, run := range all {
		line, code := run.Line(), run.Wait()
		if line != fmt.Sprint("got ", i) || code != i {
			t.Errorf("process %d said %q and ended with %d", i, line, code)
		}
	}
	for code, command := range map[int]string{126: "/etc/passwd", 127: "no-such-program"} {
		if got := r.Run(t, "exec", name, command); got.Code != code {
			t.Errorf("exec %s: %+v, want exit code %d", command, got, code)
		}
	}
}
