package integration

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"creel/test/rig"
)

// Whoever runs Creel has secrets in the environment. None of its processes that
// outlive the command, or serve it, has them, nor a proxy's credentials where
// nothing leaves.
func TestEnvironmentStaysWithTheCommand(t *testing.T) {
	r := machines(t)
	before := r.Snapshot(t)
	t.Cleanup(func() { r.Clean(t, before) })
	const mark = "mark-that-nobody-needs"
	w := r.With("CREEL_STANDBY=1", "AWS_SECRET_ACCESS_KEY="+mark, "CREEL_TOKEN="+mark, "LD_NOTHING="+mark,
		"HTTPS_PROXY=http://user:"+mark+"@127.0.0.1:9", "SSL_CERT_DIR=/"+mark)
	w.Must(t, "run", "-q", "debian", "true")
	t.Cleanup(func() { noneWaits(t, r) })
	awaitStandby(t, w)
	for _, waits := range []bool{true, false} { // the task of the second has no VM that waited
		args := []string{"run", "-q", "-i", "debian", "cat"}
		if !waits {
			args = append([]string{"run", "--disk", "128m"}, args[1:]...)
		}
		run := w.Start(t, args...)
		fmt.Fprintln(run.Stdin, "begun")
		if line := run.Line(); line != "begun" {
			t.Fatalf("it says %q", line)
		}
		seen := map[rig.Kind]int{}
		for _, p := range r.Processes() {
			if p.Kind == rig.Front {
				continue
			}
			text, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", p.PID))
			if err != nil {
				if os.Geteuid() == 0 {
					t.Errorf("%s: %v", p, err)
				}
				continue // it is undumpable: nobody but root can look
			}
			seen[p.Kind]++
			for _, e := range strings.Split(string(text), "\x00") {
				if strings.Contains(e, mark) {
					t.Errorf("%s has %q", p, e)
				}
			}
		}
		t.Logf("environments of %v were looked at", seen)
		if os.Geteuid() == 0 && (seen[rig.VMM] == 0 || seen[rig.Holder] == 0 || seen[rig.Keeper]+seen[rig.Standby] == 0 || !waits && seen[rig.Keeper] == 0) {
			t.Errorf("only %v were looked at", seen)
		}
		run.Stdin.Close()
		run.Wait()
	}
}
