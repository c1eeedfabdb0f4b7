package integration

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"creel/test/rig"
)

// echo is a service that tells the key in many ways.
func echo(w http.ResponseWriter, r *http.Request, key string) {
	w.Header().Set("X-Echo", key)
	fmt.Fprintf(w, "%s\n%s\n%s\n%s\n", key, base64.StdEncoding.EncodeToString([]byte(key)), hex.EncodeToString([]byte(key)), url.QueryEscape(key))
}

// usesKeys asks both hosts, keeps what they said on its disk and the
// connections open, and does so again when it is told to.
const usesKeys = `
import http.client, os, sys
held = []
def ask(host, key):
    c = http.client.HTTPSConnection(host, timeout=120)
    held.append(c)
    c.request("POST", "/", b"hello", {"X-Api-Key": key})
    answer = c.getresponse()
    return answer.getheader("X-Echo").encode() + answer.read()
with open("/root/kept", "wb") as kept:
    while True:
        said = ask("stand-in.example.com", os.environ["API_KEY"]) + ask("added.example.com", "a key of its own")
        kept.write(said + os.environ["API_KEY"].encode() + b"\n")
        kept.flush()
        os.fsync(kept.fileno())
        print(os.environ["API_KEY"], said.count(b"*"), flush=True)
        if not sys.stdin.readline():
            break
`

// While a task runs that has used secrets, and even after they were rotated,
// their values are nowhere in its machine, on disk, or in what others can see of
// the processes around it. The keeper alone has them, and nobody can read it.
func TestSecretsAreNowhereButInTheKeeper(t *testing.T) {
	r := machines(t)
	if os.Geteuid() != 0 {
		t.Skip("only root can read the memory of other processes")
	}
	mark := rand.Text()[:9] + "+/" + rand.Text()[:9] // every value has it twice: one of them is whole in its page
	value := func() string { return mark + rand.Text() + mark }
	secrets := map[string]string{"stand-in.example.com": "memory-standin", "added.example.com": "memory-added"}
	s := serve(t, map[string]string{"stand-in.example.com": value(), "added.example.com": value()}, echo)
	key := s.key("stand-in.example.com")
	s.setSecret(t, r, "memory-standin", key, "--host", "stand-in.example.com", "--as", "stand-in", "--env", "API_KEY", "--in", "header:X-Api-Key")
	s.setSecret(t, r, "memory-added", s.key("added.example.com"), "--host", "added.example.com", "--as", "header:X-Api-Key")
	policy := s.policy(t, "rules:\n  - {allow: stand-in.example.com, secret: memory-standin, upstream: UPSTREAM}\n"+
		"  - {allow: added.example.com, secret: memory-added, upstream: UPSTREAM}\n")
	receipt := filepath.Join(t.TempDir(), "receipt.json")
	task := r.Start(t, "run", "-i", "--name", "searched", "--policy", policy, "--receipt", receipt, "debian", "python3", "-c", usesKeys)
	first := task.Line()
	fake, stars, _ := strings.Cut(first, " ")
	if len(fake) != len(key) || fake == key || stars == "0" {
		t.Fatalf("the task said %q", first)
	}
	for host, name := range secrets {
		s.wants(host, value())
		if got := r.RunIn(t, strings.NewReader(s.key(host)), "secret", "rotate", name); got.Code != 0 {
			t.Fatalf("rotate %s: %+v", name, got)
		}
	}
	fmt.Fprintln(task.Stdin)
	// Of an answer that comes in pieces, a few characters at a value's beginning
	// are let out.
	second := task.Line()
	before, _ := strconv.Atoi(stars)
	if now, starsNow, _ := strings.Cut(second, " "); now != fake {
		t.Errorf("after the rotation the task said %q", second)
	} else if n, err := strconv.Atoi(starsNow); err != nil || n < before*3/4 {
		t.Errorf("after the rotation the task said %q, before it %q", second, first)
	}
	searchAround(t, r, mark, fake)

	task.Stdin.Close()
	if code := task.Wait(); code != 0 {
		t.Errorf("exit code %d: %s", code, task.Stderr)
	}
	for host := range secrets {
		all := s.arrived(host, "/")
		if len(all) != 2 || keyIn(all[0].Header) == keyIn(all[1].Header) || keyIn(all[1].Header) != s.key(host) {
			t.Errorf("at %s arrived %+v", host, all)
		}
	}
	said := r.Must(t, "receipt", "verify", receipt)
	if !strings.Contains(said, "memory-added, memory-standin\n") {
		t.Errorf("the receipt does not name the secrets: %s", said)
	}
	values := spellings(mark)
	if found := append(values.inFiles(t, filepath.Join(r.State, "audit")), values.inFiles(t, filepath.Dir(receipt))...); len(found) > 0 {
		t.Errorf("on record or on the receipt is %q", found)
	}
}

// searchAround looks for what all values have in common, and that the search
// would find it: it does find the stand-in, and the values in the keeper.
func searchAround(t *testing.T, r *rig.Rig, mark, standIn string) {
	t.Helper()
	began := time.Now()
	s, values, fakes := r.Inspect(t, "searched").Status, spellings(mark), spellings(standIn[:20])
	for _, p := range r.Processes() {
		for _, name := range []string{"cmdline", "environ"} {
			data, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", p.PID, name))
			if err != nil && !errors.Is(err, fs.ErrNotExist) { // a holder may have ended
				t.Error(err)
			}
			if found, _, _ := values.in(strings.NewReader(string(data))); len(found) > 0 {
				t.Errorf("the %s of the %s has a value: %q", name, p.Kind, found)
			}
		}
		if p.Kind != rig.VMM && p.Kind != rig.Holder {
			continue
		}
		found, size := values.inMemory(t, p.PID)
		if len(found) > 0 {
			t.Errorf("the memory of the %s has a value: %q", p.Kind, found)
		}
		t.Logf("%s: %d MiB searched", p, size>>20)
		if p.PID != s.VMMPID {
			continue
		}
		if size < 512<<20 {
			t.Errorf("only %d bytes of the VMM were searched, which is less than its machine has", size)
		}
		if found, _ := fakes.inMemory(t, p.PID); len(found) == 0 {
			t.Error("the stand-in was not found in the machine's memory, where it is")
		}
	}
	if found := values.inFiles(t, r.State); len(found) > 0 {
		t.Errorf("on disk there is %q", found)
	}
	if found, err := fakes.inFile(filepath.Join(r.State, "sandboxes", s.ID, "scratch.img")); len(found) == 0 {
		t.Errorf("the stand-in was not found on the machine's disk, where it is: %v", err)
	}
	if found, _ := values.inMemory(t, s.KeeperPID); len(found) == 0 {
		t.Error("the values were not found in the keeper, which has them")
	}
	checkPowerless(t, rig.Keeper, s.KeeperPID) // no core either
	checkUndumpable(t, s.KeeperPID)
	checkUnreadable(t, s.KeeperPID)
	t.Logf("the search took %s", time.Since(began))
}

// checkUnreadable wants a process's memory closed to its own user.
func checkUnreadable(t *testing.T, pid int) {
	t.Helper()
	uid, err := strconv.ParseUint(strings.Fields(procStatus(pid)["Uid"])[0], 10, 32)
	if err != nil {
		t.Fatal(err)
	}
	opens := func(process string) error {
		cmd := exec.Command("sh", "-c", fmt.Sprintf(": </proc/%s/mem", process))
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
		return cmd.Run()
	}
	if err := opens("self"); err != nil {
		t.Errorf("user %d cannot read its own memory: %v", uid, err)
	}
	if opens(strconv.Itoa(pid)) == nil {
		t.Errorf("user %d can read the memory of process %d", uid, pid)
	}
}
