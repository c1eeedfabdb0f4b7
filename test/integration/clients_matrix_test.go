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
var httpClients = []struct {
	name, run string
	key       bool // the answer tells of the key
}{
	{"curl", `curl -sS --fail-with-body $URL/hello`, true},
	{"curl-http1", `curl -sS --http1.1 --fail-with-body $URL/hello`, true},
	{"wget", `wget -nv -O - $URL/hello`, true},
	{"git", `git ls-remote $URL/repo.git`, false},
	{"openssl", `printf 'GET /openssl/hello HTTP/1.1\r\nHost: '$HOST'\r\nConnection: close\r\n\r\n' |
		openssl s_client -quiet -verify_return_error -verify_hostname $HOST -servername $HOST -connect $HOST:443`, true},
	{"python-urllib", `python3 -c "import urllib.request as u; print(u.urlopen('$URL/hello').read().decode())"`, true},
	{"python-requests", `python3 -c "import requests; r = requests.get('$URL/hello'); r.raise_for_status(); print(r.text)"`, true},
	{"node-https", `node -e "require('https').get('$URL/hello', r => r.pipe(process.stdout))"`, true},
	{"node-fetch", `node -e "fetch('$URL/hello').then(r => r.text()).then(console.log)"`, true},
	{"go", `gohttp $URL/hello`, true},
	{"go-http1", `gohttp -http1 $URL/hello`, true},
	{"java", `jfetch $URL/hello`, true},
	{"grpc", `gohttp -grpc $URL`, true},
	{"websocket", `gohttp -ws $URL/socket`, true},
	{"events", `gohttp -sse $URL/events`, true},
}

// matrixModes are what a policy can have done with TLS.
var matrixModes = []struct {
	host, rule     string
	opened, inject bool
}{
	{"intercepted.example.com", "methods: [GET, POST]", true, false},
	{"injected.example.com", "secret: matrix-key", true, true},
	// Last, because its client is given an authority that the others do not need.
	{"spliced.example.com", "", false, false},
}

// Every client reaches what its policy names, by name and with certificates
// verified, whether its TLS is spliced, opened, or opened for a key to be put
// in, which only the upstream ever sees. Without a policy there are no names.
func TestClientsMatrix(t *testing.T) {
	r, image := clients(t)
	w := newWorld(t)
	serveGit(t, w)
	key := keepSecret(t, r, "matrix-key", "--host", "injected.example.com", "--as", "header:"+keyHeader)
	var rules strings.Builder
	for _, m := range matrixModes {
		fmt.Fprintf(&rules, "  - {allow: %s, upstream: UPSTREAM, %s}\n", m.host, m.rule)
	}
	name := background(t, r, "--policy", w.policy(t, "rules:\n"+rules.String()), image, "sleep", "10000")
	if got := r.Must(t, "exec", name, "sh", "-c", "env | grep -i proxy || echo none"); got != "none\n" {
		t.Errorf("proxies of the environment are %q", got)
	}
	results := map[string]string{}
	for _, m := range matrixModes {
		args := []string{"exec", name}
		if !m.opened {
			trustUpstream(t, r, name, w)
			args = []string{"exec", "-e", "NODE_EXTRA_CA_CERTS=/upstream.pem", name}
		}
		for _, c := range httpClients {
			began := time.Now()
			url := "https://" + m.host + "/" + c.name
			got := r.Run(t, append(args, "sh", "-c", "HOST="+m.host+" URL="+url+"\n"+c.run)...)
			fault := judgeClient(got, c.name, c.key, m.inject, key)
			if fault == "" {
				fault = judgeArrivals(w.arrived(m.host, "/"+c.name+"/"), m.inject, key)
			}
			results[c.name+m.host] = fmt.Sprintf("ok, %d ms", time.Since(began).Milliseconds())
			if fault != "" {
				results[c.name+m.host] = "FAILED"
				t.Errorf("%s, %s: %s; it printed %q and %q, exit code %d", c.name, m.host, fault, got.Out, got.Err, got.Code)
			}
		}
	}
	t.Log("\n" + matrixTable(results))
	opened := map[string]bool{}
	for _, q := range recordsOf[event.Request](t, r, name, "request") {
		client, _, _ := strings.Cut(strings.TrimPrefix(q.Path, "/"), "/")
		opened[q.Host+client] = true
	}
	for _, m := range matrixModes {
		for _, c := range httpClients {
			if opened[m.host+c.name] != m.opened {
				t.Errorf("%s, %s: on record as a request: %t", c.name, m.host, !m.opened)
			}
		}
	}
	if everything := r.Must(t, "audit", "query", "--sandbox", name, "--json") + r.Must(t, "inspect", name); strings.Contains(everything, key) {
		t.Error("the key is on record")
	}
}

// judgeClient says what is wrong with a client's end, "" for nothing.
func judgeClient(got rig.Result, client string, tellsKey, inject bool, key string) string {
	shown := "<>"
	if inject {
		shown = "<" + strings.Repeat("*", len(key)) + ">"
	}
	switch all := got.Out + got.Err; {
	case got.Code != 0:
		return "it failed"
	case strings.Contains(all, key):
		return "it was shown the key"
	case !tellsKey:
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

func matrixTable(results map[string]string) string {
	var out bytes.Buffer
	table := tabwriter.NewWriter(&out, 0, 8, 3, ' ', 0)
	fmt.Fprint(table, "CLIENT")
	for _, m := range matrixModes {
		fmt.Fprintf(table, "\t%s", strings.ToUpper(strings.TrimSuffix(m.host, ".example.com")))
	}
	for _, c := range httpClients {
		fmt.Fprintf(table, "\n%s", c.name)
		for _, m := range matrixModes {
			fmt.Fprintf(table, "\t%s", results[c.name+m.host])
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
