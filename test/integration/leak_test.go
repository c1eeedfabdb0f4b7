package integration

import (
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"creel/test/rig"
)

// keeperBound is what a keeper may have taken at most, whatever its guest did:
// netstack's limits.go adds up to 130 MiB of buffers, and Go keeps garbage for
// as much again.
const keeperBound = 300 << 20

const leakPolicy = `version: 1
rules:
  - allow: tls.example.com
    upstream: {address: "127.0.0.1:%[1]d", ca: ca.pem}
  - allow: ech.example.com
    ech: allow
    upstream: {address: "127.0.0.1:%[1]d", ca: ca.pem}
  - allow: api.example.com
    methods: GET
    paths: [/, /allowed/**]
    upstream: {address: "127.0.0.1:%[1]d", ca: ca.pem}
  - allow: http.example.com
    ports: 80
    upstream: {address: "127.0.0.1:%[2]d"}
  - allow: paths.example.com
    ports: 80
    paths: [/, /allowed/**]
    upstream: {address: "127.0.0.1:%[2]d"}
  - allow: db.example.com
    ports: 5432
    upstream: {address: "127.0.0.1:%[3]d"}
  - allow: "*.many.example.com"
    ports: 5432
    upstream: {address: "127.0.0.1:%[3]d"}
  - allow: 10.9.8.7
    ports: 7000
    upstream: {address: "127.0.0.1:%[3]d"}
  - allow: host.creel.internal
    ports: %[3]d
  - allow: udp.example.com
    ports: [443, 853, 5353]
    protocol: udp
    upstream: {address: "127.0.0.1:%[4]d"}
`

// leakProgram prepares what rows need.
const leakProgram = `
address() { getent ahostsv4 "$1" | { read -r a _; echo "$a"; }; }
export TLS=$(address tls.example.com) HTTP=$(address http.example.com) DB=$(address db.example.com)
export UDP=$(address udp.example.com) ALIAS=$(address host.creel.internal)
mkdir /tmp/leaks && cd /tmp/leaks
cat >numbers.py <<'EOF'
import socket, sys
reached = 0
for host in sys.argv[2:]:
    try:
        s = socket.create_connection((host, sys.argv[1]), 3)
        s.settimeout(3)
        s.sendall(b"GET / HTTP/1.0\r\n\r\n")
        reached += bool(s.recv(100))
    except OSError as e:
        print(host, e)
print(reached, "reached")
sys.exit(reached == 0)
EOF
python3 -m http.server --bind :: 8099 >/dev/null 2>&1 &
server=$!
until curl -s http://127.0.0.1:8099/ >/dev/null; do sleep 0.1; done
`

func TestLeaks(t *testing.T) {
	r, image := clients(t)
	before := r.Snapshot(t)
	out := newOutside(t, "tls.example.com", "ech.example.com", "api.example.com")
	policy := writeLeakPolicy(t, out)
	atOnce, inTurn := join(nameWays(), packetWays(), hostWays(), tlsWays(), httpWays(), linkWays()), cardWays()
	floods := floodWays()
	own := ownAddress(t)

	task := r.Start(t, "run", "-i", "--name", "leaks", "--timeout", "15m", "--policy", policy,
		"-e", "OWN="+own.String(), "-e", "OWN_NUMBER="+number(own), "-e", "DECOY="+strconv.Itoa(out.Decoy),
		"-e", "TCP_PORT="+strconv.Itoa(out.TCP), "-e", "HOST_NAME="+hostName(t), image, "bash", "-c", leakScript(atOnce, inTurn, floods))
	sheet := sheet{}
	sheet.read(t, task, len(atOnce)+len(inTurn))
	keeper := r.Inspect(t, "leaks").Status.KeeperPID
	quiet := peakMemory(keeper)
	others := make(chan rig.Result, 1) // another sandbox, while the first one floods
	go func() {
		others <- r.Run(t, "run", "-q", "--policy", policy, image, "bash", "-c",
			`for i in 1 2 3 4 5; do probe -wait 10s connect db.example.com:5432 send || exit; curl -sS -m 20 https://api.example.com/allowed/other || exit; done`)
	}()
	fmt.Fprintln(task.Stdin, "flood")
	sheet.read(t, task, len(floods))
	if got := <-others; got.Code != 0 || strings.Count(got.Out, "tcp greets") != 5 || strings.Count(got.Out, "tls was here") != 5 {
		t.Errorf("another sandbox beside the floods: %+v", got)
	}
	peak := peakMemory(keeper)
	t.Logf("the keeper's memory: %d MiB before the floods, %d MiB at most", quiet>>20, peak>>20)
	if peak == 0 || peak > keeperBound {
		t.Errorf("the keeper took %d MiB, more than %d", peak>>20, keeperBound>>20)
	}
	fmt.Fprintln(task.Stdin, "end")
	if code := task.Wait(); code != 7 {
		t.Errorf("the task's exit code is %d: %s", code, task.Stderr)
	}
	sheet.judge(t, join(atOnce, inTurn, floods))
	checkOutside(t, out)
	checkLeakRecord(t, r, out)
	r.Clean(t, before)
}

func writeLeakPolicy(t *testing.T, out *outside) string {
	t.Helper()
	dir := t.TempDir()
	policy := filepath.Join(dir, "policy.yaml")
	for file, text := range map[string]string{
		filepath.Join(dir, "ca.pem"): out.CA,
		policy:                       fmt.Sprintf(leakPolicy, out.TLS, out.HTTP, out.TCP, out.UDP),
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return policy
}

// ownAddress is one of this machine that is not loopback, or loopback where it
// has none.
func ownAddress(t *testing.T) netip.Addr {
	t.Helper()
	all, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range all {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Is4() && !p.Addr().IsLoopback() {
			return p.Addr()
		}
	}
	t.Log("this machine has no address but loopback: rows about its own address prove less")
	return netip.MustParseAddr("127.0.0.1")
}

func number(a netip.Addr) string {
	b := a.As4()
	return strconv.Itoa(int(b[0])<<24 | int(b[1])<<16 | int(b[2])<<8 | int(b[3]))
}

func hostName(t *testing.T) string {
	t.Helper()
	name, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	return name
}

func leakScript(atOnce, inTurn, floods []way) string {
	var b strings.Builder
	b.WriteString(leakProgram)
	n := 0
	add := func(atOnce int, rows []way) {
		fmt.Fprintf(&b, "probe -rows %d <<'END OF ROWS' || exit\n", atOnce)
		for _, w := range rows {
			command := w.command
			if !strings.HasPrefix(command, "probe -wait") { // what is refused is refused at once
				command = strings.Replace(command, "probe ", "probe -wait 20s ", 1)
			}
			fmt.Fprintf(&b, "%d\t%s\n", n, command)
			n++
		}
		b.WriteString("END OF ROWS\n")
	}
	add(12, atOnce)
	b.WriteString("kill $server\n")
	add(1, inTurn)
	b.WriteString("read -r word\n")
	add(1, floods)
	b.WriteString("read -r word\nexit 7\n")
	return b.String()
}

// Root of the guest takes the agent's own port and speaks on it. The keeper
// ends the run, with everything of it, and says why.
func TestLeakControlPort(t *testing.T) {
	r, image := clients(t)
	before := r.Snapshot(t)
	got := r.Run(t, "run", "--timeout", "2m", image, "probe", "-wait", "1s", "stolen-port", "1")
	if strings.Contains(got.Out, "holds no port") || strings.Contains(got.Out, "wrote 0") || strings.Contains(got.Out, "borrow") {
		t.Errorf("nothing was said on the port: %+v", got)
	}
	t.Logf("exit code %d: %s%s", got.Code, got.Out, got.Err)
	if got.Code == 0 || strings.Contains(got.Err, "timeout") {
		t.Errorf("a run whose control was taken over ended with exit code %d: %s", got.Code, got.Err)
	}
	r.Clean(t, before)
}

// line is what the sandbox said of one row.
type line struct {
	code int
	took time.Duration
	said string
}

// sheet is what it said of all.
type sheet map[int]line

// read reads the lines of so many rows.
func (s sheet) read(t *testing.T, task *rig.Running, rows int) {
	t.Helper()
	for range rows {
		text := task.Line()
		cells := strings.SplitN(text, "\t", 4)
		if len(cells) != 4 {
			t.Fatalf("the sandbox said %q; %s", text, task.Stderr)
		}
		row, err := strconv.Atoi(cells[0])
		code, cerr := strconv.Atoi(cells[1])
		micros, terr := strconv.Atoi(cells[2])
		if err != nil || cerr != nil || terr != nil {
			t.Fatalf("the sandbox said %q", text)
		}
		s[row] = line{code, time.Duration(micros) * time.Microsecond, cells[3]}
	}
}

// verdict is what became of a row, and whether that is what was to be.
func (l line) verdict(w way) (got string, right bool) {
	var p struct {
		Case          string
		Sent, Reached bool
		Detail        string
	}
	if strings.Contains(w.command, "probe ") {
		if err := json.Unmarshal([]byte(l.said), &p); err != nil || l.code != 0 {
			return fmt.Sprintf("no result, exit code %d: %s", l.code, l.said), false
		}
		if !p.Sent && !w.local {
			return "proves nothing, for nothing was sent: " + p.Detail, false
		}
	} else {
		p.Reached, p.Detail = l.code == 0, l.said
		if l.code == 127 || l.code == 124 {
			return fmt.Sprintf("no result, exit code %d: %s", l.code, l.said), false
		}
	}
	got = "stopped"
	if p.Reached {
		got = "passes"
	}
	if w.local && !p.Reached {
		got += " in the guest"
	}
	right = p.Reached == w.passes && (w.says == "" || regexp.MustCompile(w.says).MatchString(p.Detail))
	return got + ": " + p.Detail, right
}

// judge prints the table, and fails on every surprise.
func (s sheet) judge(t *testing.T, rows []way) {
	t.Helper()
	var table strings.Builder
	columns := tabwriter.NewWriter(&table, 0, 0, 1, ' ', 0)
	fmt.Fprintln(columns, "kind\t| case\t| expected\t| got\t| ms")
	for i, w := range rows {
		expected := map[bool]string{true: "passes", false: "stopped"}[w.passes]
		got, right := s[i].verdict(w)
		fmt.Fprintf(columns, "%s\t| %s\t| %s\t| %.110s\t| %d\n", w.kind, w.name, expected, got, s[i].took.Milliseconds())
		if !right {
			t.Errorf("%s, %s: expected %s %s; got %s", w.kind, w.name, expected, w.says, got)
		}
	}
	columns.Flush()
	t.Logf("%d ways out\n%s", len(rows), &table)
}

// checkOutside holds what the servers got against what was allowed.
func checkOutside(t *testing.T, out *outside) {
	t.Helper()
	if seen, conns := out.got("decoy"); conns > 0 || len(seen) > 0 {
		t.Errorf("what no rule names was reached: %d connections, %q", conns, seen)
	}
	for server, want := range map[string]string{
		"sni":  `^((tls|ech|api)\.example\.com)$`,
		"tls":  `^(GET (tls\.example\.com|front\.example\.net) / |GET api\.example\.com /allowed/(plain|other|after) )$`,
		"http": `^(POST http\.example\.com / |GET (http|paths)\.example\.com(:80)? (http://http\.example\.com)?/(second|allowed/x|\?to=\S*)? )$`,
		"tcp":  `^GET / HTTP/1\.0\r\n\r\n$`,
		"udp":  `^datagram "`,
	} {
		seen, conns := out.got(server)
		if len(seen) == 0 {
			t.Errorf("%s got nothing: no row proves anything", server)
		}
		t.Logf("%s: %d connections, %d notes", server, conns, len(seen))
		pattern := regexp.MustCompile(want)
		for _, what := range seen {
			if !pattern.MatchString(what) {
				t.Errorf("%s got %q", server, what)
			}
		}
	}
}

// checkLeakRecord wants nothing on record to have left for elsewhere, and
// denials of every kind.
func checkLeakRecord(t *testing.T, r *rig.Rig, out *outside) {
	t.Helper()
	allowed := map[string]bool{}
	for _, port := range []int{out.TLS, out.HTTP, out.TCP, out.UDP} {
		allowed[fmt.Sprintf("127.0.0.1:%d", port)] = true
	}
	denied := map[string]bool{}
	counts := map[string]int{}
	for text := range strings.Lines(r.Must(t, "audit", "query", "--sandbox", "leaks", "--json")) {
		var rec struct {
			Kind string
			Data struct {
				Host, Decision, Address string
				Port                    int
			}
		}
		if err := json.Unmarshal([]byte(text), &rec); err != nil {
			t.Fatal(err)
		}
		counts[rec.Kind]++
		switch {
		case rec.Kind == "lookup":
			t.Errorf("a name left the host: %s", text)
		case rec.Kind == "connection" && !allowed[rec.Data.Address]:
			t.Errorf("a connection left for elsewhere: %s", text)
		case rec.Data.Decision == "deny":
			denied[rec.Data.Host] = true
		}
	}
	t.Logf("on record: %v; %d destinations were denied", counts, len(denied))
	for _, host := range []string{"denied.example.net", "x.tls.example.com", "8.8.8.8", "169.254.169.254", "10.9.8.8", "1.1.1.1",
		"host.creel.internal", "tls.example.com", "api.example.com", "paths.example.com", "db.example.com", "udp.example.com"} {
		if !denied[host] {
			t.Errorf("no denial of %s is on record: %v", host, slices.Sorted(maps.Keys(denied)))
		}
	}
}
