package integration

import (
	"bufio"
	"io"
	"os"
	"slices"
	"testing"
	"time"

	"creel/test/rig"
)

// A task in the foreground ends with its client, however that ends, and without
// another command; one in the background goes on.
func TestForegroundEndsWithItsClient(t *testing.T) {
	r := machines(t)
	before := r.Snapshot(t)
	for name, tc := range map[string]struct {
		task string
		end  func(client *os.Process, out io.Closer)
	}{
		"killed while it waits":                {"echo y; exec sleep 1000", func(client *os.Process, _ io.Closer) { client.Kill() }},
		"killed while its output is blocked":   {"exec yes", func(client *os.Process, _ io.Closer) { client.Kill() }},
		"killed with a task that hears no one": {"trap '' HUP TERM INT PIPE; echo y; while :; do sleep 1; done", func(client *os.Process, _ io.Closer) { client.Kill() }},
		"its reader has seen enough":           {"exec yes", func(_ *os.Process, out io.Closer) { out.Close() }},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := r.Cmd("run", "-q", "debian", "sh", "-c", tc.task)
			out, in, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer out.Close()
			cmd.Stdout = in
			err = cmd.Start()
			in.Close()
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
			if line, err := bufio.NewReader(out).ReadString('\n'); line != "y\n" {
				t.Fatalf("it says %q, %v", line, err)
			}
			var run []rig.Process
			for _, p := range r.Processes() {
				if p.Kind == rig.Keeper || p.Kind == rig.VMM {
					run = append(run, p)
				}
			}
			if len(run) != 2 {
				t.Fatalf("it runs as %v", run)
			}
			tc.end(cmd.Process, out)
			cmd.Wait() // in whatever way
			rig.Await(t, run...)
			r.Clean(t, before)
		})
	}
	t.Run("killed while it starts", func(t *testing.T) {
		run := r.Start(t, "run", "-q", "debian", "sleep", "1000")
		isKeeper := func(p rig.Process) bool { return p.Kind == rig.Keeper }
		var all []rig.Process
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for deadline := time.Now().Add(rig.Patience); !slices.ContainsFunc(all, isKeeper); <-tick.C {
			if all = r.Processes(); time.Now().After(deadline) {
				t.Fatal("no keeper is there")
			}
		}
		run.Cmd.Process.Kill()
		run.Wait()
		for _, p := range all {
			if p.Kind != rig.Holder {
				rig.Await(t, p)
			}
		}
		r.Clean(t, before)
	})
	t.Run("in the background", func(t *testing.T) {
		name := background(t, r, "debian", "sleep", "1000")
		if state := r.Inspect(t, name).Status.State; state != "running" {
			t.Errorf("it is %s", state)
		}
	})
}
