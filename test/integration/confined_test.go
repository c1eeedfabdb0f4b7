package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"creel/test/rig"
)

// other is an ordinary user that nobody is.
const other = 0x5ffff000

// Every point of docs/confinement.md that shows from outside, for whoever
// starts Creel.
func TestConfinementFromOutside(t *testing.T) {
	r := machines(t)
	t.Run("own user", func(t *testing.T) { checkConfined(t, r) })
	t.Run("ordinary user", func(t *testing.T) {
		if os.Geteuid() != 0 {
			t.Skip("this user is an ordinary one")
		}
		theirs, err := rig.As(other)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := theirs.Close(); err != nil {
				t.Error(err)
			}
		})
		importBusybox(t, theirs)
		before := runTwice(t, theirs)
		checkConfined(t, theirs)
		checkConfined(t, standingBy(t, theirs))
		noneWaits(t, theirs)
		checkReduced(t, theirs)
		theirs.Clean(t, before)
	})
}

// checkMemoryLimit wants a limit of private memory, in bytes.
func checkMemoryLimit(t *testing.T, pid int, want string) {
	t.Helper()
	limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", pid))
	if err != nil {
		t.Fatal(err)
	}
	if !regexp.MustCompile(`Max data size +` + want + ` +` + want).Match(limits) {
		t.Errorf("process %d has the limits\n%s", pid, limits)
	}
}

// runTwice runs a task for a user who has none but emulation, and returns what
// the state directory looks like when nothing runs.
func runTwice(t *testing.T, r *rig.Rig) []string {
	t.Helper()
	for range 2 {
		if got := r.Run(t, "run", "-q", "--accel", "tcg", "busybox", "sh", "-c", "id -u; exit 4"); got.Out != "0\n" || got.Code != 4 {
			t.Fatalf("got %+v", got)
		}
	}
	return r.Snapshot(t)
}

func imageOf(r *rig.Rig) string {
	if r.State == shared.State {
		return "debian"
	}
	return "busybox"
}

func checkConfined(t *testing.T, r *rig.Rig) {
	task := r.Start(t, "run", "-q", "-i", "--name", "confined", imageOf(r), "sh", "-c", "echo ready; read x")
	task.Line()
	s := r.Inspect(t, "confined").Status
	if s.Confinement != "full" {
		t.Errorf("the level achieved is %q", s.Confinement)
	}
	for kind, pid := range map[rig.Kind]int{rig.Keeper: s.KeeperPID, rig.VMM: s.VMMPID} {
		checkPowerless(t, kind, pid)
	}
	checkMemoryLimit(t, s.KeeperPID, "1073741824")
	checkMemoryLimit(t, s.VMMPID, "unlimited") // it maps what its guest has
	checkUsers(t, r, s.KeeperPID, s.VMMPID)
	checkNamespaces(t, s.VMMPID)
	checkNoNetwork(t, s.VMMPID)
	checkRoot(t, r, s.VMMPID)
	checkUndumpable(t, s.KeeperPID)
	if os.Geteuid() == 0 { // an undumpable process's descriptors are root's to see
		checkFiles(t, r, rig.Keeper, s.KeeperPID)
		checkFiles(t, r, rig.VMM, s.VMMPID)
	}
	for _, p := range r.Processes() {
		if p.Kind == rig.Holder {
			checkPowerless(t, p.Kind, p.PID)
			checkUndumpable(t, p.PID)
		}
	}
	task.Stdin.Close()
	task.Wait()
}

func checkReduced(t *testing.T, r *rig.Rig) {
	task := r.Start(t, "run", "-q", "-i", "--confinement", "reduced", "--name", "reduced", imageOf(r), "sh", "-c", "echo ready; read x")
	task.Line()
	s := r.Inspect(t, "reduced").Status
	if s.Confinement != "reduced" {
		t.Errorf("inspect names the level %q", s.Confinement)
	}
	for kind, pid := range map[rig.Kind]int{rig.Keeper: s.KeeperPID, rig.VMM: s.VMMPID} {
		status := procStatus(pid)
		for name, want := range map[string]string{"CapEff": noCaps, "CapPrm": noCaps, "NoNewPrivs": "1", "Seccomp": "2"} {
			if status[name] != want {
				t.Errorf("reduced %s: %s is %q, want %q", kind, name, status[name], want)
			}
		}
	}
	if os.Geteuid() == 0 {
		checkFiles(t, r, rig.VMM, s.VMMPID)
	}
	task.Stdin.Close()
	task.Wait()
}

const noCaps = "0000000000000000"

func checkPowerless(t *testing.T, kind rig.Kind, pid int) {
	t.Helper()
	status := procStatus(pid)
	want := map[string]string{"CapInh": noCaps, "CapPrm": noCaps, "CapEff": noCaps, "CapAmb": noCaps, "NoNewPrivs": "1", "Seccomp": "2"}
	// An ordinary user's bounding set gives nothing without a namespace of its own.
	if status["Uid"] != "" && (kind == rig.VMM || os.Geteuid() == 0 && !strings.HasPrefix(status["Uid"], strconv.Itoa(other))) {
		want["CapBnd"] = noCaps
	}
	if kind == rig.VMM {
		want["THP_enabled"] = "0"
	}
	for name, value := range want {
		if status[name] != value {
			t.Errorf("%s %d: %s is %q, want %q", kind, pid, name, status[name], value)
		}
	}
	limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", pid))
	if err != nil || !regexp.MustCompile(`Max core file size +0 +0 `).Match(limits) {
		t.Errorf("%s may dump core: %s %v", kind, limits, err)
	}
}

// checkUsers wants keeper and VMM to be one user: of their own where Creel was
// started by root, else whoever started it; and in no group besides.
func checkUsers(t *testing.T, r *rig.Rig, keeper, vmm int) {
	t.Helper()
	of := map[string]string{}
	for _, name := range []string{"Uid", "Gid", "Groups"} {
		of[name] = procStatus(keeper)[name]
		if got := procStatus(vmm)[name]; got != of[name] {
			t.Errorf("%s of the keeper is %q, of the VMM %q", name, of[name], got)
		}
	}
	uids := slices.Compact(strings.Fields(of["Uid"]))
	if len(uids) != 1 || of["Uid"] != of["Gid"] && os.Geteuid() == 0 {
		t.Errorf("uid %q, gid %q", of["Uid"], of["Gid"])
	}
	if os.Geteuid() != 0 || r != shared {
		return
	}
	if uid, err := strconv.Atoi(uids[0]); err != nil || uid < 1<<30 || of["Groups"] != "" {
		t.Errorf("started by root they are user %q in groups %q", of["Uid"], of["Groups"])
	}
}

func checkNamespaces(t *testing.T, vmm int) {
	t.Helper()
	names := []string{"mnt", "pid", "net", "ipc", "uts", "cgroup"}
	for _, name := range names {
		ours, err := os.Readlink("/proc/self/ns/" + name)
		if err != nil {
			t.Fatal(err)
		}
		theirs, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", vmm, name))
		if err != nil {
			t.Fatal(err)
		}
		if theirs == ours {
			t.Errorf("the VMM shares our %s namespace", name)
		}
	}
}

// checkNoNetwork wants nothing but a loopback that is down.
func checkNoNetwork(t *testing.T, vmm int) {
	t.Helper()
	read := func(file string) []string {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", vmm, file))
		if err != nil {
			t.Fatal(err)
		}
		return lines(string(data))
	}
	devices := read("dev")[2:] // below two lines of heads
	if len(devices) != 1 || !strings.HasPrefix(strings.TrimSpace(devices[0]), "lo:") || strings.Trim(devices[0], " lo:0") != "" {
		t.Errorf("the VMM has devices %q", devices)
	}
	for _, file := range []string{"route", "tcp", "tcp6", "udp", "udp6", "raw", "packet", "unix"} {
		if got := read(file); len(got) > 1 {
			t.Errorf("the VMM's namespace has in %s: %q", file, got[1:])
		}
	}
}

// checkRoot wants the VMM's root to be read-only and almost empty.
func checkRoot(t *testing.T, r *rig.Rig, vmm int) {
	t.Helper()
	mounts, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", vmm))
	if err != nil {
		t.Fatal(err)
	}
	allowed := []string{"/", "/usr", "/etc/ld.so.cache", "/dev/null", "/dev/urandom", "/dev/kvm", "/proc", "/lib", "/lib64", "/lib32", "/libx32"}
	for _, line := range lines(string(mounts)) {
		fields := strings.Fields(line)
		if at := fields[4]; !slices.Contains(allowed, at) || !strings.HasPrefix(fields[5], "ro,") {
			t.Errorf("the VMM has mounted %s", line)
		}
	}
	for _, path := range []string{r.State, "/etc/passwd", "/root", "/home", "/tmp", "/sys", "/run"} {
		if _, err := os.Lstat(fmt.Sprintf("/proc/%d/root%s", vmm, path)); err == nil {
			t.Errorf("the VMM sees %s", path)
		}
	}
}

// checkUndumpable looks at who owns /proc/PID/fd: root, for a process that
// nobody of its own user may read or trace.
func checkUndumpable(t *testing.T, pid int) {
	t.Helper()
	info, err := os.Stat(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	if owner := info.Sys().(*syscall.Stat_t).Uid; owner != 0 {
		t.Errorf("process %d can be read and traced by user %d", pid, owner)
	}
	if os.Geteuid() != 0 {
		if _, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid)); err == nil {
			t.Errorf("its user can read the environment of process %d", pid)
		}
	}
}

// checkFiles wants no descriptor but of the kinds that a keeper or VMM needs,
// and no socket but of the Unix family.
func checkFiles(t *testing.T, r *rig.Rig, kind rig.Kind, pid int) {
	t.Helper()
	state := regexp.QuoteMeta(r.State)
	common := []string{`/dev/null`, `pipe:.*`, `socket:.*`, `anon_inode:\[(eventpoll|eventfd|signalfd|pidfd|timerfd)\]`,
		`/memfd:creel-memory \(deleted\)`, state + `/images/rootfs/.*\.ext4`, state + `/sandboxes/[0-9a-f]{32}/scratch\.img`}
	if kind == rig.Keeper {
		common = append(common, state+`/sandboxes/[0-9a-f]{32}/(run|run/task\.log|audit/log\.jsonl|keeper\.lock|keeper\.log)`,
			`/memfd:(creel-)?state \(deleted\)`, `/sys/fs/cgroup/.*`, // Go's runtime watches its CPU limit
			`/proc/vmstat`, `/proc/\d+/stat`) // what everybody may read: whether the host kills for memory, and the VMM's CPU time
	} else {
		common = append(common, `/dev/kvm`, `anon_inode:kvm-.*`)
	}
	pattern := regexp.MustCompile(`^(` + strings.Join(common, "|") + `)$`)
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) < 5 {
		t.Errorf("the %s has %d descriptors: is it the right process?", kind, len(entries))
	}
	for _, e := range entries {
		to, err := os.Readlink(filepath.Join(dir, e.Name()))
		if err != nil {
			continue // closed since
		}
		if !pattern.MatchString(to) {
			t.Errorf("the %s holds %s", kind, to)
		}
		if strings.HasPrefix(to, "socket:") {
			checkUnixSocket(t, kind, pid, e.Name())
		}
	}
}

// checkUnixSocket borrows the descriptor to ask what family it is of.
func checkUnixSocket(t *testing.T, kind rig.Kind, pid int, fd string) {
	t.Helper()
	process, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(process)
	number, err := strconv.Atoi(fd)
	if err != nil {
		t.Fatal(err)
	}
	borrowed, err := unix.PidfdGetfd(process, number, 0)
	if err == unix.EBADF {
		return // closed since
	}
	if err != nil {
		t.Skipf("descriptors cannot be borrowed: %v", err)
	}
	defer unix.Close(borrowed)
	family, err := unix.GetsockoptInt(borrowed, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil || family != unix.AF_UNIX {
		t.Errorf("the %s holds a socket of family %d (%v)", kind, family, err)
	}
}
