package boundary

import (
	"cmp"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"creel/internal/audit/event"
	"creel/internal/boundary/egress"
	"creel/internal/sandbox"
	"creel/internal/secret"
)

// Names by the thousand are one line, with an alert and nothing to paste; what
// else was denied is beside it.
func TestManyNamesBecomeOneLine(t *testing.T) {
	r := open(t, "")
	r.edge.mayResolve("first.example.org")
	const many = 3000
	for i := range many {
		r.edge.mayResolve(fmt.Sprintf("x%d.data.example.com", i))
	}
	r.edge.mayResolve("last.example.org")
	list, total := r.edge.Denials()
	if total != many+2 || len(list) != 3 {
		t.Fatalf("%d denials, %+v", total, list)
	}
	line := list[1]
	if line.Target != "*.example.com" || line.Count != many || strings.Contains(line.Hint, "--allow") || line.Hint == "" {
		t.Errorf("%+v", line)
	}
	if list[0].Target != "first.example.org" || list[2].Target != "last.example.org" || !strings.Contains(list[2].Hint, "--allow") {
		t.Errorf("%+v", list)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.alerts) != 1 || r.alerts[0].Alert != event.AlertNames || r.alerts[0].Name != "example.com" {
		t.Errorf("alerts %+v", r.alerts)
	}
	if n := r.count("record alert"); n != 1 {
		t.Errorf("%d alerts on record", n)
	}
	if n := len(r.told); n != maxAlike+1+2 { // one by one, until they are many
		t.Errorf("told of %d", n)
	}
}

// As many as are told apart stay apart.
func TestFewNamesStayApart(t *testing.T) {
	r := open(t, "")
	for i := range maxAlike {
		r.edge.mayResolve(fmt.Sprintf("x%d.example.com", i))
		r.edge.mayResolve(fmt.Sprintf("x%d.example.co.uk", i)) // co.uk is nobody's
		r.edge.mayResolve(fmt.Sprintf("example%d.co.uk", i))
	}
	if list, _ := r.edge.Denials(); len(list) != 3*maxAlike {
		t.Errorf("%d lines", len(list))
	}
}

// Who looks for open ports, at the gateway or elsewhere, is counted, on record
// and for people.
func TestPortScansAreCounted(t *testing.T) {
	r := open(t, "")
	const ports = 40
	stranger := netip.MustParseAddr("93.184.216.34")
	for port := range uint16(ports) {
		r.guest.Dial(t, netip.AddrPortFrom(gatewayAddress, 1000+port))
		r.guest.Dial(t, netip.AddrPortFrom(stranger, 1000+port))
	}
	list := r.awaitDenials(2 * ports)
	if len(list) != 2 {
		t.Fatalf("%+v", list)
	}
	for _, d := range list {
		if d.Target != gatewayAddress.String() && d.Target != stranger.String() || d.Count != ports || strings.Contains(d.Hint, "--allow") {
			t.Errorf("%+v", d)
		}
	}
	if err := r.edge.tallies.Flush(); err != nil {
		t.Fatal(err)
	}
	var gateway int64
	for _, tally := range of[event.Tally](r.journal) {
		if tally.Host == gatewayAddress.String() && tally.Decision == event.Deny {
			gateway += tally.Count
		}
	}
	if gateway != ports {
		t.Errorf("the record has %d knocks at the gateway, want %d", gateway, ports)
	}
}

// awaitTroubles waits until people are told of n things.
func (r *rig) awaitTroubles(n int) []sandbox.Trouble {
	r.t.Helper()
	for end := time.Now().Add(patience); ; runtime.Gosched() {
		list := r.edge.Troubles()
		if len(list) >= n {
			return list
		}
		if time.Now().After(end) {
			r.t.Fatalf("told of %+v, want %d", list, n)
		}
	}
}

// closedPort is one where nothing listens.
func closedPort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// What is allowed and cannot be had is on record and told with the reason.
func TestFailuresOfUpstreamsAreTold(t *testing.T) {
	j := newJournal()
	closed := closedPort(t)
	cut := j.serve(t, func(c net.Conn) { c.(*net.TCPConn).SetLinger(0) })
	stranger := ca().Config("signed.test")
	stranger.NextProtos = nil
	signed := j.serve(t, func(c net.Conn) { tls.Server(c, stranger).Handshake() })
	dialer, err := egress.New(egress.Config{Nameservers: []netip.AddrPort{j.nameserver(t)}})
	if err != nil {
		t.Fatal(err)
	}
	r := j.open(t, rules(
		allow("refused.test", closed), "- {allow: nowhere.test, ports: 7000, protocol: tcp}\n",
		fmt.Sprintf("- {allow: signed.test, ports: 443, methods: [GET], upstream: {address: %q}}\n", signed),
		fmt.Sprintf("- {allow: cut.test, ports: 80, upstream: {address: %q}}\n", cut),
	), func(c *Config) { c.Dialer = dialer })
	for range 2 {
		r.wantReset("refused.test", 7000)
	}
	r.wantReset("nowhere.test", 7000)
	for _, url := range []string{"https://signed.test/", "http://cut.test/"} {
		if status, body := r.get(r.client(r.edge.CA()), url); status != http.StatusBadGateway {
			t.Errorf("%s: status %d, %s", url, status, body)
		}
	}
	list := r.awaitTroubles(4)
	for _, want := range []struct {
		target, reason string
		count          int64
	}{
		{"refused.test:7000", "it refused the connection: nothing listens there", 2}, {"nowhere.test:7000", "the name has no address", 1},
		{"signed.test:443", "its certificate is of an authority that this machine does not trust", 1}, {"cut.test:80", "it ", 1},
	} {
		i := slices.IndexFunc(list, func(one sandbox.Trouble) bool { return one.Target == want.target })
		if i < 0 || !strings.HasPrefix(list[i].Reason, want.reason) || list[i].Count != want.count {
			t.Errorf("want %+v in %+v", want, list)
		}
	}
	if err := r.edge.Close(); err != nil {
		t.Fatal(err)
	}
	refused := 0
	for _, d := range of[event.Disconnected](r.journal) {
		if d.Host == "refused.test" && d.Error == egress.Refused {
			refused++
		}
	}
	if refused != 2 {
		t.Errorf("the record has %d refused connections", refused)
	}
	if i := slices.IndexFunc(of[event.Response](r.journal), func(res event.Response) bool { return res.Error == egress.UnknownSigner }); i < 0 {
		t.Errorf("no response has the reason: %+v", of[event.Response](r.journal))
	}
	failed := of[event.Tally](r.journal)
	if i := slices.IndexFunc(failed, func(f event.Tally) bool {
		return f.Host == "nowhere.test" && f.Reason == egress.NoSuchName && f.Count == 1
	}); i < 0 {
		t.Errorf("the record does not have the name without an address: %+v", failed)
	}
	if n := j.count("record failed"); n != 1 {
		t.Errorf("%d records of kind failed, want 1", n)
	}
}

// A dial that fails behind a request has its reason in the request's record.
func TestResponseHasTheReasonOfAFailedDial(t *testing.T) {
	j := newJournal()
	r := j.open(t, rules(fmt.Sprintf("- {allow: web.test, ports: 80, upstream: {address: %q}}\n", closedPort(t))))
	if status, _ := r.get(r.client(""), "http://web.test/"); status != http.StatusBadGateway {
		t.Errorf("status %d", status)
	}
	r.await(t, "record response", 1)
	if got := of[event.Response](j); got[0].Error != egress.Refused {
		t.Errorf("%+v", got)
	}
	if list := r.awaitTroubles(1); len(list) != 1 || list[0].Count != 1 {
		t.Errorf("told of %+v: a failure is one", list)
	}
}

// The first thing that everybody gets wrong: a placeholder goes to its own host,
// where it is harmless, and is not swapped.
func TestUnswappedPlaceholdersAreTold(t *testing.T) {
	j := newJournal()
	web := j.web(t, "", func(http.ResponseWriter, *http.Request) {})
	rule := func(more string) string {
		return rules(fmt.Sprintf("- {allow: api.test, name: R, ports: 80, upstream: {address: %q}%s}\n", web, more))
	}
	for name, c := range map[string]struct {
		rules, header, reason, hint string
		scheme                      string // Bearer
	}{
		"no secret in the rule":                        {rule(""), "Authorization", `rule "R" names no secret`, "write `secret: key` in the rule", ""},
		"a header of its own":                          {rule(", secret: key"), "X-Odd", "it is swapped in header:", "secret set key --in", ""},
		"as it should be":                              {rule(", secret: key"), "Authorization", "", "", ""},
		"a scheme that is not known":                   {rule(", secret: key"), "Authorization", `the placeholder of "key" was left out of header Authorization: it is swapped only as a whole token behind a known scheme such as Bearer`, "send it alone", "Digest"},
		"a scheme that is not known, without a secret": {rule(""), "Authorization", `was sent as it is: rule "R" names no secret`, "write `secret: key`", "Digest"},
		"spliced TLS":                                  {rules(tlsRule("api.test", j.tlsEcho(t, "api.test"), ", name: R")), "", "nobody looks into the connection", "write `secret: key` in the rule", ""},
	} {
		t.Run(name, func(t *testing.T) {
			r := newJournal().open(t, c.rules, withWallet(wallet(t, secret.AsStandIn, web)))
			if c.header == "" {
				conn := tls.Client(r.guest.MustDial(t, r.to("api.test", 443)), &tls.Config{ServerName: "api.test", RootCAs: trust(ca().PEM()).RootCAs})
				wantEcho(t, conn, "hello")
				conn.Close()
			} else {
				req, err := http.NewRequest("GET", "http://api.test/", nil)
				if err != nil {
					t.Fatal(err)
				}
				req.Header.Set(c.header, cmp.Or(c.scheme, "Bearer")+" "+standIn)
				res, err := r.client("").Do(req)
				if err != nil {
					t.Fatal(err)
				}
				io.Copy(io.Discard, res.Body)
				res.Body.Close()
			}
			if c.reason == "" {
				if list := r.edge.Troubles(); len(list) != 0 {
					t.Errorf("told of %+v", list)
				}
				return
			}
			list := r.awaitTroubles(1)
			if len(list) != 1 || !strings.Contains(list[0].Reason, c.reason) || !strings.Contains(list[0].Hint, c.hint) || !strings.HasPrefix(list[0].Target, "api.test:") {
				t.Errorf("told of %+v", list)
			}
		})
	}
}

// Nothing is told of a request that was refused: nothing of it was sent.
func TestRefusedRequestsAreNotToldAsSent(t *testing.T) {
	j := newJournal()
	web := j.web(t, "", func(http.ResponseWriter, *http.Request) {})
	r := j.open(t, rules(fmt.Sprintf("- {allow: api.test, ports: 80, upstream: {address: %q}, budget: {requests: 1}}\n", web)), withWallet(wallet(t, secret.AsStandIn, web)))
	for range 3 {
		req, err := http.NewRequest("GET", "http://api.test/", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-Odd", standIn)
		res, err := r.client("").Do(req)
		if err != nil {
			continue // what had begun under the budget that is used up is cut off
		}
		res.Body.Close()
	}
	if list := r.awaitTroubles(1); len(list) != 1 || list[0].Count != 1 {
		t.Errorf("told of %+v; one request was sent", list)
	}
}

// A connection that nobody reads is no trouble of a task whose placeholder is
// swapped elsewhere.
func TestUnreadConnectionsAreNoTroubleOfASecretInUse(t *testing.T) {
	j := newJournal()
	web := j.web(t, "", func(http.ResponseWriter, *http.Request) {})
	r := j.open(t, rules(fmt.Sprintf("- {allow: api.test, ports: 80, secret: key, upstream: {address: %q}}\n", web),
		tlsRule("api.test", j.tlsEcho(t, "api.test"), "")), withWallet(wallet(t, secret.AsStandIn, web)))
	conn := tls.Client(r.guest.MustDial(t, r.to("api.test", 443)), &tls.Config{ServerName: "api.test", RootCAs: trust(ca().PEM()).RootCAs})
	wantEcho(t, conn, "hello")
	conn.Close()
	r.awaitTroubles(1)
	req, _ := http.NewRequest("GET", "http://api.test/", nil)
	req.Header.Set("Authorization", "Bearer "+standIn)
	res, err := r.client("").Do(req)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if list := r.edge.Troubles(); len(list) != 0 {
		t.Errorf("told of %+v", list)
	}
}

func TestTroublesAreBounded(t *testing.T) {
	r := open(t, "")
	for i := range 1000 {
		r.edge.troubles.add(trouble{Trouble: sandbox.Trouble{Target: fmt.Sprint(i)}})
	}
	if n := len(r.edge.Troubles()); n != maxTroubles {
		t.Errorf("%d troubles", n)
	}
	// Nobody is told of what was not wanted any more, nor of what was denied.
	for _, err := range []error{&egress.Denied{}, net.ErrClosed} {
		if reason, _ := egress.Explain(egress.Class(err)); reason != "" && !errors.Is(err, net.ErrClosed) {
			t.Errorf("%v is told as %q", err, reason)
		}
	}
}
