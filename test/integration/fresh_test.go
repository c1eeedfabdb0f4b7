package integration

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"creel/test/rig"
)

// What a clone says of itself, first thing: a line for each mark that it may
// share with no sibling, then its clock.
const marksProgram = `
head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \n'; echo
cat /proc/sys/kernel/random/uuid /proc/sys/kernel/random/boot_id /etc/machine-id
hostname
date +%s.%N
read wait`

var markNames = []string{"urandom", "uuid", "boot_id", "machine-id", "host name"}

// siblings are as many clones of one template as the issue names; a few at a
// time, since each wants a processor while it starts.
const (
	siblings = 16
	atOnce   = 4
)

func TestSiblingsShareNoMark(t *testing.T) {
	r := machines(t)
	owner := map[string]string{} // mark → clone
	for batch := 0; batch < siblings; batch += atOnce {
		var clones []*rig.Running
		for range atOnce {
			clones = append(clones, r.Start(t, "run", "-q", "-i", "debian", "sh", "-c", marksProgram))
		}
		for i, clone := range clones {
			id := fmt.Sprintf("clone %d", batch+i)
			for _, name := range markNames {
				mark := name + " " + clone.Line()
				if other, taken := owner[mark]; taken {
					t.Errorf("%s and %s have the same %s", id, other, mark)
				}
				owner[mark] = id
			}
			clone.Line() // the clock, of some time ago: see below
			clone.Stdin.Close()
			if code := clone.Wait(); code != 1 { // read found the end
				t.Errorf("%s: exit code %d, %s", id, code, clone.Stderr)
			}
		}
	}
	if len(owner) != siblings*len(markNames) {
		t.Errorf("%d marks of %d", len(owner), siblings*len(markNames))
	}
}

// A clone does not begin with a makeshift clock, which ticks.
func TestClockSourceIsFinal(t *testing.T) {
	r := machines(t)
	got := r.Must(t, "run", "-q", "debian", "cat", "/sys/devices/system/clocksource/clocksource0/current_clocksource")
	if got != "tsc\n" && got != "kvm-clock\n" {
		t.Errorf("its clock source is %q", got)
	}
}

func TestClockIsTheHosts(t *testing.T) {
	r := machines(t)
	name := background(t, r, "debian", "python3", "-c", "import time; print(time.time(), flush=True); time.sleep(1000)")
	t.Run("when the task starts", func(t *testing.T) {
		logs := r.Start(t, "logs", "-f", name)
		said := seconds(t, logs.Line())
		started := r.Inspect(t, name).Status.StartedAt
		// Python itself takes most of a second to start under emulation.
		if d := said.Sub(started); d < -tolerance || d > 3*time.Second {
			t.Errorf("the task's clock is %s after its start", d)
		}
	})
	clock := r.Start(t, "exec", "-i", name, "sh", "-c", "while read x; do date +%s.%N; done")
	t.Run("while it runs", func(t *testing.T) { checkClock(t, clock) })
	t.Run("after a pause", func(t *testing.T) {
		r.Must(t, "pause", name)
		if !r.Inspect(t, name).Status.Paused {
			t.Fatal("the sandbox is not paused")
		}
		// The pause has to be longer than what a clock may be off.
		timer := time.NewTimer(4 * tolerance)
		defer timer.Stop()
		<-timer.C
		r.Must(t, "unpause", name)
		checkClock(t, clock)
	})
}

const tolerance = 500 * time.Millisecond

// checkClock asks a process in the guest for the time. The shortest of a few
// answers counts: what it takes on its way is not the clock's fault.
func checkClock(t *testing.T, clock *rig.Running) {
	t.Helper()
	var best time.Duration
	shortest := time.Hour
	for range 5 {
		asked := time.Now()
		fmt.Fprintln(clock.Stdin, "now")
		said := seconds(t, clock.Line())
		answered := time.Now()
		if took := answered.Sub(asked); took < shortest {
			shortest, best = took, said.Sub(asked.Add(took/2))
		}
	}
	if best.Abs() > tolerance {
		t.Errorf("the guest's clock is off by %s (an answer took %s)", best, shortest)
	}
}

func seconds(t *testing.T, text string) time.Time {
	t.Helper()
	whole, part, _ := strings.Cut(text, ".")
	s, err := strconv.ParseInt(whole, 10, 64)
	if err != nil {
		t.Fatalf("%q is no time", text)
	}
	fraction, err := strconv.ParseFloat("0."+part, 64)
	if err != nil {
		t.Fatalf("%q is no time", text)
	}
	return time.Unix(s, int64(fraction*1e9))
}

// The wait is the measurement. What the last process left to do in the guest
// takes some seconds to be done: the calmest of a few spans counts.
func TestIdleCloneCostsNothing(t *testing.T) {
	r := machines(t)
	name := background(t, r, "debian", "sleep", "1000")
	r.Must(t, "exec", name, "true")
	s := r.Inspect(t, name).Status
	const span, spans = 6 * time.Second, 4
	calmest := span
	for n := 0; n < spans && calmest > span/100; n++ {
		before := cpuTime(t, s.VMMPID) + cpuTime(t, s.KeeperPID)
		timer := time.NewTimer(span)
		<-timer.C
		spent := cpuTime(t, s.VMMPID) + cpuTime(t, s.KeeperPID) - before
		t.Logf("in %s VMM and keeper took %s of CPU", span, spent)
		calmest = min(calmest, spent)
	}
	if calmest > span/100 {
		t.Errorf("an idle clone costs %.1f%% of a core, want less than 1%%", 100*calmest.Seconds()/span.Seconds())
	}
}

// cpuTime is what a process has used so far, to the nearest tick of 10 ms.
func cpuTime(t *testing.T, pid int) time.Duration {
	t.Helper()
	fields := procStat(t, pid)
	const userTime, systemTime = 11, 12 // behind the name; proc(5) counts from 1 before it
	var ticks int64
	for _, i := range []int{userTime, systemTime} {
		n, err := strconv.ParseInt(fields[i], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}
