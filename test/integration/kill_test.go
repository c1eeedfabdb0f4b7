package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"creel/test/rig"
)

// killable are the processes of a run, but for the holder, which outlives it.
var killable = []rig.Kind{rig.Keeper, rig.VMM, rig.Front}

// However the middle of a run ends, the next command leaves nothing of it.
func TestKilledInTheMiddle(t *testing.T) {
	r := machines(t)
	before := r.Snapshot(t)
	for _, victim := range append(slices.Clone(killable), rig.Holder) {
		t.Run(strings.ReplaceAll(string(victim), " ", "-"), func(t *testing.T) {
			task := r.Start(t, "run", "-i", "--name", "victim", "debian", "sh", "-c", "echo ready; read x; echo $x")
			task.Line()
			if err := unix.Kill(find(t, r, victim).PID, unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			switch victim {
			case rig.Front:
				task.Wait()
			case rig.Keeper, rig.VMM:
				if code := task.Wait(); code != 125 || task.Stderr.Len() == 0 {
					t.Errorf("exit code %d, standard error %q; want 125 and a reason", code, task.Stderr)
				}
			case rig.Holder: // a clone has its own hold on the parts
				fmt.Fprintln(task.Stdin, "alive")
				if line := task.Line(); line != "alive" {
					t.Errorf("after its holder was killed the task said %q", line)
				}
				if code := task.Wait(); code != 0 {
					t.Errorf("exit code %d: %s", code, task.Stderr)
				}
			}
			r.Clean(t, before)
		})
	}
	if got := r.Run(t, "run", "-q", "--name", "victim", "debian", "echo", "again"); got.Out != "again\n" {
		t.Errorf("after all that: %+v", got)
	}
}

// A kept sandbox whose keeper was killed is lost, says so, and can be removed.
func TestKeptSandboxIsLostWithItsKeeper(t *testing.T) {
	r := machines(t)
	before := r.Snapshot(t)
	t.Cleanup(func() { r.Run(t, "rm", "-f", "kept") })
	r.Must(t, "run", "-d", "--name", "kept", "debian", "sh", "-c", "echo written; exec sleep 1000")
	if line := r.Start(t, "logs", "-f", "kept").Line(); line != "written" {
		t.Errorf("the log begins with %q", line)
	}
	keeper, vmm := find(t, r, rig.Keeper), find(t, r, rig.VMM)
	if err := unix.Kill(keeper.PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	rig.Await(t, keeper, vmm)
	if s := r.Inspect(t, "kept").Status; s.State != "lost" || s.ExitCode != 125 {
		t.Errorf("its status is %+v", s)
	}
	if got := r.Must(t, "logs", "kept"); got != "written\n" {
		t.Errorf("its log is %q", got)
	}
	r.Must(t, "rm", "kept")
	r.Clean(t, before)
}

// A start is killed at each of the moments at which something new appears in
// the state directory: a file is made, a lock, a socket.
func TestKilledWhileStarting(t *testing.T) {
	r := machines(t)
	before := r.Snapshot(t)
	moments := countMoments(t, r)
	if moments < 8 {
		t.Fatalf("a start shows %d moments; too few to be killed at", moments)
	}
	for _, victim := range killable {
		hit, step := 0, max(1, moments/12)
		for moment := 1; moment <= moments; moment += step {
			t.Run(fmt.Sprintf("%s-%d", strings.ReplaceAll(string(victim), " ", "-"), moment), func(t *testing.T) {
				watch := watchStart(t, r)
				task := r.Start(t, "run", "-q", "--name", "victim", "debian", "true")
				ended := make(chan int, 1)
				go func() { ended <- task.Wait() }()
				killed := killAt(t, r, watch, moment, victim, ended)
				r.Clean(t, before)
				t.Logf("%s killed at moment %d: %v", victim, moment, killed)
				if killed {
					hit++
				}
			})
		}
		if hit < moments/step/3 { // the last moments are after its end
			t.Errorf("%s was killed at %d of %d moments", victim, hit, moments/step)
		}
	}
}

// killAt kills the victim at that moment, or as soon after as there is one, and
// returns when the command has ended. False where all was over too soon.
func killAt(t *testing.T, r *rig.Rig, watch *watch, moment int, victim rig.Kind, ended <-chan int) bool {
	t.Helper()
	killed := false
	for n := 0; ; {
		select {
		case <-watch.moments:
			n++
		case <-ended:
			return killed
		case <-t.Context().Done():
			return killed
		}
		if n < moment || killed {
			continue
		}
		for _, p := range r.Processes() {
			if p.Kind == victim && !killed {
				killed = unix.Kill(p.PID, unix.SIGKILL) == nil
			}
		}
	}
}

func countMoments(t *testing.T, r *rig.Rig) int {
	t.Helper()
	watch := watchStart(t, r)
	r.Must(t, "run", "-q", "debian", "true")
	n := 0
	for {
		select {
		case <-watch.moments:
			n++
		default:
			return n
		}
	}
}

// find waits for no process: the caller knows that it is there.
func find(t *testing.T, r *rig.Rig, kind rig.Kind) rig.Process {
	t.Helper()
	for _, p := range r.Processes() {
		if p.Kind == kind && (kind != rig.Front || p.Args[1] == "run") {
			return p
		}
	}
	t.Fatalf("there is no %s among %v", kind, r.Processes())
	return rig.Process{}
}

// watch reports what happens in the directories of sandboxes.
type watch struct {
	moments chan struct{}
}

// watchStart begins to watch; the end of the test ends it.
func watchStart(t *testing.T, r *rig.Rig) *watch {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "inotify")
	sandboxes := filepath.Join(r.State, "sandboxes")
	const what = unix.IN_CREATE | unix.IN_MOVED_TO | unix.IN_CLOSE_WRITE
	if _, err := unix.InotifyAddWatch(fd, sandboxes, what); err != nil {
		t.Fatal(err)
	}
	w := &watch{moments: make(chan struct{}, 4096)} // more than one start has
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 64<<10)
		for {
			n, err := f.Read(buf)
			if err != nil {
				return
			}
			for range countEvents(buf[:n]) {
				w.moments <- struct{}{}
			}
			dirs, _ := filepath.Glob(filepath.Join(sandboxes, "*"))
			audits, _ := filepath.Glob(filepath.Join(sandboxes, "*", "audit"))
			for _, dir := range append(dirs, audits...) {
				unix.InotifyAddWatch(fd, dir, what|unix.IN_MODIFY) // it may be gone again
			}
		}
	}()
	t.Cleanup(func() {
		f.Close()
		<-done
	})
	return w
}

// countEvents walks the records of inotify(7).
func countEvents(buf []byte) int {
	n := 0
	for len(buf) >= unix.SizeofInotifyEvent {
		name := int(buf[12]) | int(buf[13])<<8 // the length of a file's name fits in two bytes
		buf = buf[unix.SizeofInotifyEvent+name:]
		n++
	}
	return n
}

// Of many runs that want one name at once exactly one has it, and the others
// leave nothing.
func TestOneNameForOne(t *testing.T) {
	r := machines(t)
	before := r.Snapshot(t)
	const n = 6
	type result struct {
		task *rig.Running
		code int
	}
	lost := make(chan result)
	var all []*rig.Running
	for range n {
		task := r.Start(t, "run", "-q", "-i", "--name", "the-one", "debian", "sh", "-c", "echo mine; read x")
		all = append(all, task)
		go func() { lost <- result{task, task.Wait()} }()
	}
	timer := time.NewTimer(rig.Patience)
	defer timer.Stop()
	losers := map[*rig.Running]bool{}
	for len(losers) < n-1 {
		select {
		case l := <-lost:
			losers[l.task] = true
			if says := l.task.Stderr.String(); l.code != 125 || !strings.Contains(says, `the name "the-one" is in use by sandbox`) {
				t.Errorf("exit code %d, %q", l.code, says)
			}
		case <-timer.C:
			t.Fatalf("%d runs ended, want %d", len(losers), n-1)
		}
	}
	winner := all[slices.IndexFunc(all, func(task *rig.Running) bool { return !losers[task] })]
	if line := winner.Line(); line != "mine" {
		t.Errorf("the winner said %q", line)
	}
	r.Must(t, "rm", "-f", "the-one")
	<-lost
	r.Clean(t, before)
}
