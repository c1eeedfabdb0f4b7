package procs

import (
	"bufio"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const enough = 10 * time.Second

// sleeper is a process that goes on until it is ended.
func sleeper(t *testing.T, attr *syscall.SysProcAttr) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("cat")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.SysProcAttr = attr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); cmd.Process.Kill(); cmd.Wait() })
	return cmd
}

func opened(t *testing.T, pid int) *Handle {
	t.Helper()
	h, err := Open(pid)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return h
}

func TestParseStat(t *testing.T) {
	const rest = " 4 4 0 -1 4194560 1 2 3 4 150 50 7 8 20 0 1 0 98765 1000 2"
	for text, want := range map[string]Stat{
		"7 (cat) S 3" + rest:            {Parent: 3, CPU: 2 * time.Second, Start: 98765},
		"7 (a) Z 9 (b) R 3" + rest:      {Parent: 3, CPU: 2 * time.Second, Start: 98765},
		"7 (line\nbreak) Z 1" + rest:    {Parent: 1, Ended: true, CPU: 2 * time.Second, Start: 98765},
		"7 (gone) X 0" + rest + " 1 2 ": {Ended: true, CPU: 2 * time.Second, Start: 98765},
	} {
		if got, err := ParseStat([]byte(text)); err != nil || got != want {
			t.Errorf("%q: %+v, %v, want %+v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "7", "7 (cat", "7 (cat) S 3 4 4", "7 (cat) S x" + rest, strings.Replace("7 (cat) S 3"+rest, "98765", "-1", 1)} {
		if got, err := ParseStat([]byte(text)); err == nil {
			t.Errorf("%q: %+v", text, got)
		}
	}
}

func TestReadStat(t *testing.T) {
	cmd := sleeper(t, nil)
	stat, err := ReadStat(cmd.Process.Pid)
	if err != nil || stat.Parent != os.Getpid() || stat.Ended || stat.Start == 0 {
		t.Errorf("%+v, %v", stat, err)
	}
	own, err := ReadStat(os.Getpid())
	if err != nil || own.Start > stat.Start || own.Parent != os.Getppid() {
		t.Errorf("%+v, %v", own, err)
	}
	h := opened(t, cmd.Process.Pid)
	if err := errors.Join(h.Signal(unix.SIGKILL), h.Wait()); err != nil {
		t.Fatal(err)
	}
	if stat, err := ReadStat(cmd.Process.Pid); err != nil || !stat.Ended {
		t.Errorf("%+v, %v", stat, err)
	}
	cmd.Wait()
	if _, err := ReadStat(cmd.Process.Pid); !errors.Is(err, ErrGone) {
		t.Error(err)
	}
}

func TestHandle(t *testing.T) {
	cmd := sleeper(t, nil)
	h := opened(t, cmd.Process.Pid)
	if ended, err := h.Ends(0); ended || err != nil {
		t.Errorf("%v, %v", ended, err)
	}
	if err := h.Signal(unix.SIGKILL); err != nil {
		t.Error(err)
	}
	if ended, err := h.Ends(enough); !ended || err != nil { // though nobody has asked after it
		t.Errorf("%v, %v", ended, err)
	}
	cmd.Wait()
	if err := errors.Join(h.Signal(unix.SIGKILL), h.Wait()); err != nil {
		t.Errorf("of a process that has ended: %v", err)
	}
	if _, err := Open(cmd.Process.Pid); !errors.Is(err, ErrGone) {
		t.Error(err)
	}
	if err := h.Close(); err != nil {
		t.Error(err)
	}
	if err := h.Signal(unix.SIGKILL); !errors.Is(err, os.ErrClosed) {
		t.Errorf("a handle that is closed: %v", err)
	}
}

// A number that another process has by now leads to nobody.
func TestInstance(t *testing.T) {
	cmd := sleeper(t, nil)
	who, err := Identify(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	h, err := who.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if h.PID != cmd.Process.Pid {
		t.Errorf("it is %d, want %d", h.PID, cmd.Process.Pid)
	}
	for _, other := range []Instance{
		{who.PID, who.Start - 1, who.Boot},
		{who.PID, who.Start, "00000000-0000-0000-0000-000000000000"},
		{os.Getpid(), who.Start + 1, who.Boot},
	} {
		if h, err := other.Open(); !errors.Is(err, ErrGone) {
			h.Close()
			t.Errorf("%+v: %v", other, err)
		}
	}
	cmd.Process.Kill()
	cmd.Wait()
	if _, err := who.Open(); !errors.Is(err, ErrGone) {
		t.Error(err)
	}
	if _, err := Identify(who.PID); !errors.Is(err, ErrGone) {
		t.Error(err)
	}
}

func TestChildren(t *testing.T) {
	cmd := sleeper(t, nil)
	who, err := Identify(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	children, err := Children()
	if err != nil || !slices.Contains(children[os.Getpid()], who) {
		t.Errorf("this process has %v, %v, want %v among them", children[os.Getpid()], err, who)
	}
}

func TestEachOfAUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root has other users' processes")
	}
	uid := 0x70000000 + 1<<27 + os.Getpid() // nobody's, and no sandbox's
	attr := &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
	a, b := sleeper(t, attr), sleeper(t, attr)
	b.Process.Kill()
	if ended, err := opened(t, b.Process.Pid).Ends(enough); !ended || err != nil {
		t.Fatalf("%v, %v", ended, err)
	}
	var found []int
	if err := EachOf(uid, func(h *Handle) { found = append(found, h.PID) }); err != nil {
		t.Error(err)
	}
	if !slices.Equal(found, []int{a.Process.Pid}) {
		t.Errorf("found %v, want %d", found, a.Process.Pid)
	}
}

func TestPairs(t *testing.T) {
	near, far, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	defer near.Close()
	a, b, err := Conns()
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	defer b.Close()
	other, err := Conn(far)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	for _, ends := range [][2]*net.UnixConn{{near, other}, {b, a}} {
		if _, err := ends[0].Write([]byte("word\n")); err != nil {
			t.Fatal(err)
		}
		if got, err := bufio.NewReader(ends[1]).ReadString('\n'); got != "word\n" || err != nil {
			t.Errorf("%q, %v", got, err)
		}
	}
	file, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Conn(file); err == nil {
		t.Error("what is no socket was taken for one")
	}
}

func TestPeer(t *testing.T) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "sock"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conn, err := net.DialUnix("unix", nil, l.Addr().(*net.UnixAddr))
	if err != nil {
		t.Fatal(err)
	}
	cred, err := Peer(conn)
	if err != nil || int(cred.Pid) != os.Getpid() || int(cred.Uid) != os.Geteuid() {
		t.Errorf("%+v, %v", cred, err)
	}
	conn.Close()
	if cred, err := Peer(conn); err == nil {
		t.Errorf("of a connection that is closed: %+v", cred)
	}
}
