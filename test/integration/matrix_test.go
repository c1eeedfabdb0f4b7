package integration

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"creel/test/rig"

	"github.com/google/go-cmp/cmp"
)

// deviceGroup stands for the group kvm.
const deviceGroup = other + 1

// start is one way to start a task.
type start struct {
	who    string // of the table
	level  string
	rig    *rig.Rig
	groups []uint32 // besides the user's own
	// wrap is a command line that runs another one with less.
	wrap []string
}

// withoutNamespaces runs a command, as the same user, where user namespaces
// cannot be made: in one of its own, below one whose limit it takes up.
var withoutNamespaces = []string{"unshare", "--user", "--map-root-user", "sh", "-c",
	fmt.Sprintf(`echo 1 >/proc/sys/user/max_user_namespaces && exec unshare --user --map-user=%d --map-group=%d "$@"`, other, other), "sh"}

// The table in docs/unprivileged.md is what is seen here.
func TestUnprivilegedMatrix(t *testing.T) {
	root := machines(t)
	if os.Geteuid() != 0 {
		t.Skip("only root can start tasks as other users")
	}
	user, err := rig.As(other)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := user.Close(); err != nil {
			t.Error(err)
		}
	})
	importBusybox(t, user)
	table := "| started by | confinement | a task | keeper and VMM run as | VMM's own namespaces | VMM's files | reaches what its policy names | may use KVM |\n|---|---|---|---|---|---|---|---|\n"
	for _, s := range []start{
		{who: "root", level: "full", rig: root},
		{who: "root", level: "reduced", rig: root},
		{who: "ordinary user", level: "full", rig: user},
		{who: "ordinary user in group kvm", level: "full", rig: user, groups: []uint32{deviceGroup}},
		{who: "ordinary user", level: "reduced", rig: user},
		{who: "ordinary user, no user namespaces", level: "full", rig: user, wrap: withoutNamespaces},
		{who: "ordinary user, no user namespaces", level: "reduced", rig: user, wrap: withoutNamespaces},
	} {
		table += fmt.Sprintf("| %s | %s | %s |\n", s.who, s.level, strings.Join(s.observe(t), " | "))
	}
	page, err := os.ReadFile("../../docs/unprivileged.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(page), "<!-- observed -->\n")
	written, _, _ := strings.Cut(rest, "<!-- end of observed -->\n")
	if diff := cmp.Diff(written, table); diff != "" {
		t.Errorf("docs/unprivileged.md does not say what is seen here (-written +seen):\n%s\n%s", diff, table)
	}
}

// as makes a command of the rig's one that is started in this way.
func (s start) as(cmd *exec.Cmd) *exec.Cmd {
	if s.wrap != nil {
		args := append(append([]string{}, s.wrap...), cmd.Args...)
		cmd.Path, cmd.Err = exec.LookPath(args[0])
		cmd.Args = args
	}
	if s.groups != nil {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: other, Gid: other, Groups: s.groups}
	}
	return cmd
}

// observe runs a task and returns the row's cells.
func (s start) observe(t *testing.T) []string {
	t.Helper()
	const name = "matrix"
	port := greeter(t)
	cmd := s.as(s.rig.Cmd("run", "-d", "--name", name, "--allow", fmt.Sprintf("host.creel.internal:%d", port), "--accel", "tcg", "--confinement", s.level, imageOf(s.rig), "sleep", "1000"))
	out, err := cmd.CombinedOutput()
	if code := cmd.ProcessState.ExitCode(); code == 125 {
		if !strings.Contains(string(out), "user.max_user_namespaces") || !strings.Contains(string(out), "--confinement=reduced") {
			t.Errorf("%s, %s: the refusal does not say what mends it: %s", s.who, s.level, out)
		}
		return []string{"refused, with the mend", "–", "–", "–", "–", s.mayUseKVM(t)}
	}
	if err != nil {
		t.Fatalf("%s, %s: %v: %s", s.who, s.level, err, out)
	}
	defer s.rig.Must(t, "rm", "-f", name)
	status := s.rig.Inspect(t, name).Status
	if status.Confinement != s.level {
		t.Errorf("%s, %s: inspect names the level %q", s.who, s.level, status.Confinement)
	}
	for kind, pid := range map[rig.Kind]int{rig.Keeper: status.KeeperPID, rig.VMM: status.VMMPID} {
		fields := procStatus(pid)
		if fields["CapEff"] != noCaps || fields["NoNewPrivs"] != "1" || fields["Seccomp"] != "2" || fields["Groups"] != groupsOf(s.groups) {
			t.Errorf("%s, %s: the %s has capabilities %s, no_new_privs %s, seccomp %s, groups %q",
				s.who, s.level, kind, fields["CapEff"], fields["NoNewPrivs"], fields["Seccomp"], fields["Groups"])
		}
	}
	return []string{"runs", userOf(t, status.KeeperPID, status.VMMPID), ownNamespaces(t, status.KeeperPID, status.VMMPID),
		filesOf(status.VMMPID), s.reaches(t, name, port), s.mayUseKVM(t)}
}

// greeter greets whoever connects to a port of the loopback.
func greeter(t *testing.T) (port int) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	t.Cleanup(func() {
		l.Close()
		serving.Wait()
	})
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			io.WriteString(c, "hello\n")
			c.Close()
		}
	})
	return l.Addr().(*net.TCPAddr).Port
}

// reaches tries the one port that the policy names, from inside.
func (s start) reaches(t *testing.T, name string, port int) string {
	t.Helper()
	program := fmt.Sprintf(`if command -v python3 >/dev/null; then python3 -c 'import socket; print(socket.create_connection(("host.creel.internal", %d)).recv(9).decode(), end="")'
else nc host.creel.internal %[1]d </dev/null; fi`, port)
	if got := s.rig.Run(t, "exec", name, "sh", "-c", program); got.Out != "hello\n" {
		t.Errorf("%s, %s: %+v", s.who, s.level, got)
		return "no"
	}
	return "yes"
}

func groupsOf(groups []uint32) string { return strings.Trim(fmt.Sprint(groups), "[]") }

func userOf(t *testing.T, keeper, vmm int) string {
	t.Helper()
	uid := strings.Fields(procStatus(vmm)["Uid"])
	if procStatus(keeper)["Uid"] != procStatus(vmm)["Uid"] || len(uid) != 4 {
		t.Fatalf("keeper %q and VMM %q are not one user", procStatus(keeper)["Uid"], procStatus(vmm)["Uid"])
	}
	switch uid[0] {
	case "0":
		return "root"
	case fmt.Sprint(other):
		return "that user"
	}
	return "a user of their own"
}

// ownNamespaces are those that the VMM does not share with its keeper.
func ownNamespaces(t *testing.T, keeper, vmm int) string {
	t.Helper()
	var own []string
	for _, name := range []string{"user", "mnt", "pid", "net", "ipc", "uts", "cgroup"} {
		a, errA := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", keeper, name))
		b, errB := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", vmm, name))
		if errA != nil || errB != nil {
			t.Fatalf("%v, %v", errA, errB)
		}
		if a != b {
			own = append(own, name)
		}
	}
	if own == nil {
		return "none"
	}
	return strings.Join(own, ", ")
}

func filesOf(vmm int) string {
	if _, err := os.Stat(fmt.Sprintf("/proc/%d/root/etc/passwd", vmm)); err != nil {
		return "a root of its own, almost empty"
	}
	return "the host's, kept from it by Landlock"
}

// mayUseKVM tries a file that has the owner and the mode that Debian gives
// /dev/kvm: machines differ, and some have none.
func (s start) mayUseKVM(t *testing.T) string {
	t.Helper()
	node := filepath.Join(filepath.Dir(s.rig.Creel), "device")
	if err := os.WriteFile(node, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(node)
	if err := os.Chown(node, 0, deviceGroup); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(node, 0o660); err != nil {
		t.Fatal(err)
	}
	cmd := s.rig.Cmd()
	cmd.Path, cmd.Args = "/bin/sh", []string{"sh", "-c", `exec 3<>"$0"`, node}
	if s.as(cmd).Run() != nil {
		return "no"
	}
	return "yes"
}
