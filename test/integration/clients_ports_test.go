package integration

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"strings"
	"testing"

	"creel/internal/audit/event"
	"creel/test/rig"

	"github.com/google/go-cmp/cmp"
)

const portsProgram = `
import http.server, os, socket, threading
os.chdir("/srv")
open("file", "w").write("from the sandbox\n")
datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
datagrams.bind(("0.0.0.0", 9090))
def answer():
    while True:
        data, peer = datagrams.recvfrom(2048)
        datagrams.sendto(b"you said " + data, peer)
threading.Thread(target=answer, daemon=True).start()
server = http.server.ThreadingHTTPServer(("0.0.0.0", 8080), http.server.SimpleHTTPRequestHandler)
print("ready", flush=True)
server.serve_forever()`

// Ports that are published let connections in, on record, for as long as the
// sandbox runs. A sandbox needs no policy for that.
func TestPublishedPorts(t *testing.T) {
	r := machines(t)
	task := r.Start(t, "run", "-q", "--name", "ports", "-p", "127.0.0.1:0:8080", "-p", "0:9090/udp", "debian", "python3", "-c", portsProgram)
	if line := task.Line(); line != "ready" {
		t.Fatalf("the task said %q; %s", line, task.Stderr)
	}
	shown := r.Must(t, "ps", "--filter", "name=ports", "--format", "{{.Ports}}")
	found := regexp.MustCompile(`^127\.0\.0\.1:(\d+)->8080/tcp, 127\.0\.0\.1:(\d+)->9090/udp\n$`).FindStringSubmatch(shown)
	if found == nil {
		t.Fatalf("`ps` shows the ports as %q", shown)
	}
	stream, datagram := found[1], found[2]
	response, err := http.Get("http://127.0.0.1:" + stream + "/file")
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(response.Body)
	response.Body.Close()
	http.DefaultClient.CloseIdleConnections()
	if err != nil || string(body) != "from the sandbox\n" {
		t.Errorf("the sandbox served %q, %v", body, err)
	}
	if got := sendDatagram(t, "127.0.0.1:"+datagram, "hello"); got != "you said hello" {
		t.Errorf("the sandbox answered %q", got)
	}
	refusedPorts(t, r, stream)
	task.Stdin.Close()
	r.Must(t, "kill", "ports")
	task.Wait()
	if c, err := net.Dial("tcp", "127.0.0.1:"+stream); err == nil {
		c.Close()
		t.Error("the port is still open after the sandbox's end")
	}
	var in []string
	for _, p := range recordsOf[event.Published](t, r, "ports", "published") {
		in = append(in, fmt.Sprintf("%d/%s", p.Port, p.Proto))
	}
	if diff := cmp.Diff([]string{"8080/tcp", "9090/udp"}, in); diff != "" {
		t.Errorf("on record (-want +got):\n%s", diff)
	}
}

// refusedPorts tries what is refused before anything starts.
func refusedPorts(t *testing.T, r *rig.Rig, taken string) {
	t.Helper()
	for _, c := range []struct {
		flags []string
		says  string
	}{
		{[]string{"-p", taken + ":80"}, "publish port 127.0.0.1:" + taken + "->80/tcp: listen tcp 127.0.0.1:" + taken + ": bind: address already in use; choose another host port"},
		{[]string{"-p", "80", "--tier", "untrusted", "--pids-limit", "64", "--timeout", "1m"}, "-p 127.0.0.1:0->80/tcp: ports in: none (tier untrusted)"},
	} {
		before := r.Snapshot(t)
		got := r.Run(t, append(append([]string{"run"}, c.flags...), "debian", "echo", "started")...)
		if got.Code != 125 || got.Out != "" || !strings.Contains(got.Err, c.says) {
			t.Errorf("%q: %+v", c.flags, got)
		}
		if diff := cmp.Diff(before, r.Snapshot(t)); diff != "" {
			t.Errorf("%q left something behind (-before +after):\n%s", c.flags, diff)
		}
	}
}

func sendDatagram(t *testing.T, address, text string) (answer string) {
	t.Helper()
	c, err := net.Dial("udp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	deadline, _ := rig.Context(t).Deadline() // it has one
	c.SetDeadline(deadline)
	buf := make([]byte, 2048)
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	n, err := c.Read(buf)
	if err != nil {
		t.Fatalf("no answer to a datagram: %v", err)
	}
	return string(buf[:n])
}

// deniedOf is how often a sandbox was denied something, as `ps` and `inspect`
// have it.
func deniedOf(t *testing.T, r *rig.Rig, name string) (listed string, inspected int64) {
	t.Helper()
	var all []struct{ Status struct{ Denied int64 } }
	if err := json.Unmarshal([]byte(r.Must(t, "inspect", name)), &all); err != nil || len(all) != 1 {
		t.Fatalf("inspect: %v, %v", all, err)
	}
	return strings.TrimSpace(r.Must(t, "ps", "-a", "--filter", "name="+name, "--format", "{{.Denied}}")), all[0].Status.Denied
}
