package integration

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"creel/internal/audit/event"
	"creel/test/rig"
)

// httpClients are what tasks use, each told a URL as its user would: no proxy,
// no certificate, no leave to go unverified. $URL is the client's own path of
// a host, $HOST the host.
var httpClients = []struct{ name, run string }{
	{"curl", `curl -sS --fail-with-body $URL/hello`},
	{"curl-http1", `curl -sS --http1.1 --fail-with-body $URL/hello`},
	{"wget", `wget -nv -O - $URL/hello`},
	{"git", `git ls-remote $URL/repo.git`},
	{"openssl", `printf 'GET /openssl/hello HTTP/1.1\r\nHost: '$HOST'\r\nConnection: close\r\n\r\n' |
		openssl s_client -quiet -verify_return_error -verify_hostname $HOST -servername $HOST -connect $HOST:443`},
	{"python-urllib", `python3 -c "import urllib.request as u; print(u.urlopen('$URL/hello').read().decode())"`},
	{"python-requests", `python3 -c "import requests; r = requests.get('$URL/hello'); r.raise_for_status(); print(r.text)"`},
	{"node-https", `node -e "require('https').get('$URL/hello', r => r.pipe(process.stdout))"`},
	{"node-fetch", `node -e "fetch('$URL/hello').then(r => r.text()).then(console.log)"`},
	{"go", `gohttp $URL/hello`},
	{"go-http1", `gohttp -http1 $URL/hello`},
	{"java", `jfetch $URL/hello`},
	{"grpc", `gohttp -grpc $URL`},
	{"websocket", `gohttp -ws $URL/socket`},
	{"events", `gohttp -sse $URL/events`},
}

// matrixMode is what a policy has done with TLS.
type matrixMode struct {
	name, rule     string
	opened, inject bool
}

var matrixModes = []matrixMode{
	{"intercepted", "methods: [GET, POST]", true, false},
	{"injected", "secret: matrix-key", true, true},
	{"spliced", "", false, false},
}

// Every client reaches what its policy names, by name and with certificates
// verified, whether its TLS is spliced, opened, or opened for a key to be put
// in, which only the upstream ever sees.
func TestClientsMatrix(t *testing.T) {
	r, image := clients(t)
	w := newWorld(t)
	serveGit(t, w)
	key := keepSecret(t, r, w, "matrix-key", "--host", "injected.example.com", "--as", "header:"+keyHeader)
	columns := make([]map[string]string, len(matrixModes))
	t.Run("modes", func(t *testing.T) {
		for i, m := range matrixModes {
			t.Run(m.name, func(t *testing.T) {
				t.Parallel() // each has a machine of its own
				columns[i] = matrixColumn(t, r, image, w, m, key)
			})
		}
	})
	t.Log("\n" + matrixTable(columns))
}

// matrixColumn runs every client in one mode, and tells how each went.
func matrixColumn(t *testing.T, r *rig.Rig, image string, w *world, m matrixMode, key string) map[string]string {
	host := m.name + ".example.com"
	rules := fmt.Sprintf("rules:\n  - {allow: %s, upstream: UPSTREAM, %s}\n", host, m.rule)
	name := background(t, r, "--policy", w.policy(t, rules), image, "sleep", "10000")
	if got := r.Must(t, "exec", name, "sh", "-c", "env | grep -i proxy || echo none"); got != "none\n" {
		t.Errorf("proxies of the environment are %q", got)
	}
	args := []string{"exec", name}
	if !m.opened {
		trustUpstream(t, r, name, w)
		args = []string{"exec", "-e", "NODE_EXTRA_CA_CERTS=/upstream.pem", name}
	}
	column, onRecord := map[string]string{}, map[string]bool{}
	for _, c := range httpClients {
		began := time.Now()
		got := r.Run(t, append(args, "sh", "-c", fmt.Sprintf("HOST=%s URL=https://%[1]s/%s\n%s", host, c.name, c.run))...)
		column[c.name] = fmt.Sprintf("ok, %d ms", time.Since(began).Milliseconds())
		fault := judgeClient(got, c.name, m.inject, key)
		if fault == "" {
			fault = judgeArrivals(w.arrived(host, "/"+c.name+"/"), m.inject, key)
		}
		if fault != "" {
			column[c.name] = "FAILED"
			t.Errorf("%s: %s; it printed %q and %q, exit code %d", c.name, fault, got.Out, got.Err, got.Code)
		}
	}
	for _, q := range recordsOf[event.Request](t, r, name, "request") {
		client, _, _ := strings.Cut(strings.TrimPrefix(q.Path, "/"), "/")
		onRecord[client] = true
	}
	for _, c := range httpClients {
		if onRecord[c.name] != m.opened {
			t.Errorf("%s: its requests are on record: %t", c.name, onRecord[c.name])
		}
	}
	if everything := r.Must(t, "audit", "query", "--sandbox", name, "--json") + r.Must(t, "inspect", name); strings.Contains(everything, key) {
		t.Error("the key is on record")
	}
	return column
}

// judgeClient says what is wrong with a client's end, "" for nothing.
func judgeClient(got rig.Result, client string, inject bool, key string) string {
	shown := "<>"
	if inject {
		shown = "<" + strings.Repeat("*", len(key)) + ">"
	}
	switch all := got.Out + got.Err; {
	case got.Code != 0:
		return "it failed"
	case strings.Contains(all, key):
		return "it was shown the key"
	case client == "git": // its answer has no key to tell of
		if !strings.Contains(all, "refs/heads/main") {
			return "it was not told of the branch"
		}
	case !strings.Contains(all, "hello "+client):
		return "it did not get its answer"
	case !strings.Contains(all, "your key is "+shown):
		return "its answer does not have the key as " + shown
	}
	return ""
}

// judgeArrivals says what is wrong with what came to the upstream.
func judgeArrivals(all []arrival, inject bool, key string) string {
	want := ""
	if inject {
		want = key
	}
	if len(all) == 0 {
		return "nothing arrived"
	}
	for _, a := range all {
		if a.Header.Get(keyHeader) != want {
			return fmt.Sprintf("%s %s arrived with the key %q", a.Method, a.Path, a.Header.Get(keyHeader))
		}
	}
	return ""
}

// trustUpstream makes the sandbox trust the world, as a user would who has an
// authority of their own.
func trustUpstream(t *testing.T, r *rig.Rig, name string, w *world) {
	t.Helper()
	got := r.RunIn(t, strings.NewReader(w.authority), "exec", "-i", name, "sh", "-ec", `cat >/upstream.pem
		cat /upstream.pem >>/etc/ssl/certs/ca-certificates.crt
		keytool -importcert -noprompt -cacerts -storepass changeit -alias upstream -file /upstream.pem`)
	if got.Code != 0 {
		t.Fatalf("trust the upstream: %+v", got)
	}
}

func matrixTable(columns []map[string]string) string {
	var out bytes.Buffer
	table := tabwriter.NewWriter(&out, 0, 8, 3, ' ', 0)
	fmt.Fprint(table, "CLIENT")
	for _, m := range matrixModes {
		fmt.Fprintf(table, "\t%s", strings.ToUpper(m.name))
	}
	for _, c := range httpClients {
		fmt.Fprintf(table, "\n%s", c.name)
		for _, column := range columns {
			fmt.Fprintf(table, "\t%s", column[c.name])
		}
	}
	fmt.Fprintln(table)
	table.Flush()
	return out.String()
}

// Without a policy no name resolves; with one, those that it does not name do
// not either.
func TestClientsWithoutPolicy(t *testing.T) {
	r, image := clients(t)
	const ask = `for host in intercepted.example.com spliced.example.com; do
		dig +time=5 +tries=1 $host | grep -o 'status: [A-Z]*'
		curl -sS https://$host/ 2>&1; echo "curl $?"; done`
	want := strings.Repeat("status: NXDOMAIN\ncurl: (6) Could not resolve host: HOST\ncurl 6\n", 2)
	for _, host := range []string{"intercepted.example.com", "spliced.example.com"} {
		want = strings.Replace(want, "HOST", host, 1)
	}
	for _, flags := range [][]string{nil, {"--net", "none"}, {"--allow", "example.com"}} {
		args := append(append([]string{"run"}, flags...), image, "sh", "-c", ask)
		if got := r.Run(t, args...); got.Out != want {
			t.Errorf("%q: %+v", args, got)
		}
	}
}
