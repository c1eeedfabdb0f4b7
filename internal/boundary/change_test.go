package boundary

import (
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"

	"creel/internal/audit/event"
)

func TestRulesChangeAtOnce(t *testing.T) {
	j := newJournal()
	a, b := j.echo(t), j.echo(t)
	r := j.open(t, rules(allow("a.test", a), allow("b.test", b)))
	kept, ended := r.dial("a.test", 7000), r.dial("b.test", 7000)
	wantEcho(t, kept, "one")
	wantEcho(t, ended, "one")
	to := r.to("b.test", 7000)
	r.setRules(rules(allow("a.test", a, "budget: {bytes_in: 1GiB}")))
	wantBroken(t, ended)
	wantEcho(t, kept, "two")
	if _, err := r.guest.Dial(t, to); err == nil {
		t.Error("connected to what is not allowed any more")
	}
	j.await(t, "broken", 1) // the server is told too
	j.fail[event.KindPolicy] = true
	if err := r.edge.SetRules(t.Context(), parse(t, rules(allow("a.test", a), allow("b.test", b)))); err == nil {
		t.Error("a policy that allows more is in force without a record")
	}
	wantEcho(t, kept, "three")
	r.setRules("") // to take away needs no record
	wantBroken(t, kept)
	if n := len(of[event.Policy](j)); n != 2 {
		t.Errorf("%d policies on record, where none can be written", n)
	}
	j.set(func(j *journal) { j.fail[event.KindPolicy] = false })
	if missed := r.owed.Close(); len(missed) > 0 {
		t.Errorf("missed: %v", missed)
	}
	generations := of[event.Policy](j)
	if len(generations) != 3 || generations[1].Generation != 2 || generations[2].Generation != 3 || generations[2].Rules != 0 {
		t.Errorf("generations: %+v", generations)
	}
	for _, d := range of[event.Disconnected](j) {
		if d.Error != errRules.Error() {
			t.Errorf("disconnected: %+v", d)
		}
	}
}

// Rules that come while a connection is decided about, or made, hold for it.
func TestRulesChangeForWhatIsUnderWay(t *testing.T) {
	j := newJournal()
	address := j.echo(t)
	release := make(chan struct{})
	j.hold[event.KindConnection] = release
	r := j.open(t, rules(allow("slow.test", address)))
	to := r.to("slow.test", 7000)
	refused := make(chan error, 1)
	go func() {
		c, err := r.guest.DialContext(t.Context(), to)
		if err == nil {
			_, err = c.Read(make([]byte, 1))
			c.Close()
		}
		refused <- err
	}()
	awaitFlows(t, r.edge, 1)
	r.setRules("")
	j.set(func(j *journal) { delete(j.hold, event.KindConnection) })
	close(release)
	if err := <-refused; err == nil {
		t.Error("it was let through")
	}
	r.edge.Close()
	j.wantNothingOutside(t)
}

func awaitFlows(t testing.TB, e *Edge, n int) {
	t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); runtime.Gosched() {
		e.flows.mu.Lock()
		open := len(e.flows.open)
		e.flows.mu.Unlock()
		if open == n {
			return
		}
	}
	t.Fatalf("there are not %d flows", n)
}

// A connection that was decided about under other rules is looked at again
// once the edge knows it.
func TestFlowBeginsUnderTheRulesInForce(t *testing.T) {
	r := open(t, rules("- {allow: x.test, ports: 443}\n"))
	addr := r.to("x.test", 443)
	for name, text := range map[string]string{
		"nothing":     "",
		"inspection":  rules("- {allow: x.test, ports: 443, methods: [GET]}\n"),
		"elsewhere":   rules("- {allow: x.test, ports: 443, upstream: {address: \"127.0.0.1:1\"}}\n"),
		"as opaque":   rules("- {allow: x.test, ports: 443, protocol: tcp}\n"),
		"other rules": rules("- {allow: x.test, ports: 443}\n", "- {allow: y.test, ports: 443}\n"),
	} {
		r.setRules(rules("- {allow: x.test, ports: 443}\n"))
		old := r.edge.judge(addr, "")
		r.setRules(text)
		ctx, f := r.edge.begin(t.Context(), old)
		if same := name == "other rules"; (ctx.Err() == nil) != same {
			t.Errorf("%s: the flow has ended: %v", name, ctx.Err())
		}
		r.edge.flows.remove(f)
	}
}

// An address that the new rules deny ends what leads there.
func TestDeniedAddressEndsFlows(t *testing.T) {
	j := newJournal()
	address := netip.MustParseAddrPort(j.echo(t))
	rule := fmt.Sprintf("- {allow: inner.test, ports: %d, protocol: tcp, allow_private: true}\n", address.Port())
	r := j.open(t, rules(rule), withHosts(t, map[string][]netip.Addr{"inner.test": {address.Addr()}}))
	c := r.dial("inner.test", address.Port())
	wantEcho(t, c, "hello")
	r.setRules(rules(rule, "- deny: 127.0.0.0/8\n"))
	wantBroken(t, c)
}

// So it does where the address is just being dialled.
func TestDeniedAddressEndsDials(t *testing.T) {
	j := newJournal()
	address := netip.MustParseAddrPort(j.echo(t))
	release := make(chan struct{})
	j.hold[event.KindConnection] = release
	rule := fmt.Sprintf("- {allow: inner.test, ports: %d, protocol: tcp, allow_private: true}\n", address.Port())
	r := j.open(t, rules(rule), withHosts(t, map[string][]netip.Addr{"inner.test": {address.Addr()}}))
	to := r.to("inner.test", address.Port())
	refused := make(chan error, 1)
	go func() {
		c, err := r.guest.DialContext(t.Context(), to)
		if err == nil {
			_, err = c.Read(make([]byte, 1))
			c.Close()
		}
		refused <- err
	}()
	awaitFlows(t, r.edge, 1)
	r.setRules(rules(rule, "- deny: 127.0.0.0/8\n"))
	close(release)
	select {
	case err := <-refused:
		if err == nil {
			t.Error("it was let through")
		}
	case <-time.After(patience):
		t.Error("it stays open")
	}
}

// A request under way whose rule is gone ends; one whose rule has stayed goes
// on.
func TestRulesChangeForRequests(t *testing.T) {
	j := newJournal()
	release := make(chan struct{})
	address := j.web(t, "api.test", func(w http.ResponseWriter, r *http.Request) {
		w.(http.Flusher).Flush()
		select {
		case <-release:
			io.WriteString(w, "done")
		case <-r.Context().Done():
			j.note("cut off")
		}
	})
	one, two := tlsRule("api.test", address, ", paths: [/one], name: One"), tlsRule("api.test", address, ", paths: [/two], name: Two")
	r := j.open(t, rules(one, two))
	begin := func(path string) *http.Response {
		res, err := r.client(r.edge.CA()).Get("https://api.test" + path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { res.Body.Close() })
		return res
	}
	first, second := begin("/one"), begin("/two")
	r.setRules(rules(strings.Replace(one, "name: One", "name: Uno", 1), tlsRule("api.test", address, ", paths: [/three]")))
	if b, err := io.ReadAll(second.Body); err == nil {
		t.Errorf("the request went on: %q", b)
	}
	j.await(t, "cut off", 1)
	close(release)
	if b, err := io.ReadAll(first.Body); err != nil || string(b) != "done" {
		t.Errorf("the request that is still allowed: %q, %v", b, err)
	}
}

func TestWalletChanges(t *testing.T) {
	j := newJournal()
	r, _ := recordRig(t, j)
	j.set(func(j *journal) { j.fail[event.KindSecrets] = true })
	if err := r.edge.SetWallet(t.Context(), nil, []string{"key"}); err == nil {
		t.Error("secrets were replaced without a record")
	}
	if status, _ := r.get(r.client(""), "http://api.test/s"); status != 200 {
		t.Errorf("status %d with the secret that was kept", status)
	}
	j.set(func(j *journal) { j.fail[event.KindSecrets] = false })
	if err := r.edge.SetWallet(t.Context(), nil, []string{"key"}); err != nil {
		t.Fatal(err)
	}
	if status, body := r.get(r.client(""), "http://api.test/s"); status != 403 || !strings.Contains(body, "was not given") {
		t.Errorf("status %d without the secret: %s", status, body)
	}
}

// What begins while the edge is being closed, ends.
func TestNothingBeginsOnceClosed(t *testing.T) {
	r := open(t, rules("- {allow: x.test, ports: 443}\n"))
	d := r.edge.judge(r.to("x.test", 443), "")
	r.edge.flows.closeAll()
	ctx, f := r.edge.begin(t.Context(), d)
	defer r.edge.flows.remove(f)
	if ctx.Err() == nil || f.dials() {
		t.Error("the flow goes on")
	}
}
