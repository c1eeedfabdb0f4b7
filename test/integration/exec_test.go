package integration

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"creel/test/rig"
)

// A process beside the task ends with its client, however that ends, also where
// the client is killed before it knows of the process.
func TestExecEndsWithItsClient(t *testing.T) {
	r := machines(t)
	name := background(t, r, "debian", "sleep", "1000")
	gone := func(mark string) bool {
		return r.Must(t, "exec", name, "sh", "-c", "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' ' | grep -c '[s]leep "+mark+"' || true") == "0\n"
	}
	await := func(mark string) {
		t.Helper()
		for deadline := time.Now().Add(rig.Patience); !gone(mark); {
			if time.Now().After(deadline) {
				t.Fatalf("the process %s goes on", mark)
			}
		}
	}
	for i, script := range []string{"echo y; exec sleep %s", "trap '' HUP TERM; echo y; sleep %s; sleep %s", "sleep %s & exec yes"} {
		mark := fmt.Sprint(2000 + i)
		t.Run(mark, func(t *testing.T) {
			client := r.Start(t, "exec", name, "sh", "-c", strings.ReplaceAll(script, "%s", mark))
			if line := client.Line(); line != "y" {
				t.Fatalf("it says %q", line)
			}
			client.Cmd.Process.Kill()
			client.Wait()
			await(mark)
		})
	}
	for i := range 5 {
		mark := fmt.Sprint(3000 + i)
		client := r.Start(t, "exec", name, "sleep", mark)
		<-time.After(time.Duration(i) * 15 * time.Millisecond) // somewhere in its start
		client.Cmd.Process.Kill()
		client.Wait()
		await(mark)
	}
}
