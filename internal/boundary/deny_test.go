package boundary

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"creel/internal/audit/event"
	"creel/internal/boundary/netstack/netstacktest"
	"creel/internal/policy"
	"creel/internal/policy/syntax"

	"github.com/google/go-cmp/cmp"
)

// Invariant 4: nothing that the guest tries leads anywhere.
func TestEmptyPolicyDeniesEverything(t *testing.T) {
	for _, text := range []string{"", "rules: []\n"} {
		t.Run(text, func(t *testing.T) { wantNothing(t, text) })
	}
}

func wantNothing(t *testing.T, text string) {
	j := newJournal()
	server := netip.MustParseAddrPort(j.echo(t))
	r := j.open(t, text)
	for _, name := range []string{"example.com", policy.HostAlias, "localhost", "192.168.127.1", "a.b.c"} {
		if a, err := r.guest.Resolve(t, name); !errors.Is(err, netstacktest.ErrNoName) {
			t.Errorf("%s is %v, %v", name, a, err)
		}
	}
	for _, to := range []string{"198.18.0.1:443", "203.0.113.7:80", "169.254.169.254:80", "192.168.127.1:80"} {
		if c, err := r.guest.Dial(t, netip.MustParseAddrPort(to)); err == nil {
			t.Errorf("connected to %s: %v", to, c.RemoteAddr())
		}
	}
	if err := r.guest.Inject(netstacktest.SYN(40000, server)); err != nil { // its own stack would keep it
		t.Error(err)
	}
	for _, to := range []netip.AddrPort{netip.MustParseAddrPort("203.0.113.7:443"), netip.MustParseAddrPort("192.168.127.1:123")} {
		c := r.guest.DialUDP(t, to)
		c.Write([]byte("x"))
		netstacktest.AwaitRefusal(t, c)
	}
	j.wantNothingOutside(t)
	for _, kind := range []string{"lookup", "connection", "request"} {
		if n := j.count("record " + kind); n != 0 {
			t.Errorf("%d records of %s", n, kind)
		}
	}
	r.awaitDenials(5)
}

func TestWithoutDialerNothingLeaves(t *testing.T) {
	j := newJournal()
	text := rules(allow("open.test", j.echo(t)))
	r := j.open(t, text, func(c *Config) { c.Dialer = nil })
	r.wantReset("open.test", 7000)
	if err := r.edge.SetRules(t.Context(), parse(t, text)); err == nil {
		t.Error("a sandbox without a network was given a policy")
	}
	j.wantNothingOutside(t)
}

// What a denial says would allow it does so.
func TestHintsAllow(t *testing.T) {
	r := open(t, "rules: [{allow: known.test, ports: 443}]\n")
	r.guest.Resolve(t, "Fresh.Example.com")
	r.guest.Dial(t, r.to("known.test", 22))
	r.guest.Dial(t, netip.MustParseAddrPort("93.184.216.34:5432"))
	r.guest.Dial(t, netip.MustParseAddrPort("10.1.2.3:80"))
	r.guest.Dial(t, netip.MustParseAddrPort("10.1.2.3:80"))
	asked := map[string]policy.Request{
		"fresh.example.com":  {Op: policy.Resolve, Host: "fresh.example.com"},
		"known.test:22":      {Op: policy.Connect, Host: "known.test", Port: 22},
		"93.184.216.34:5432": {Op: policy.Connect, Addr: netip.MustParseAddr("93.184.216.34"), Port: 5432},
		"10.1.2.3:80":        {Op: policy.Connect, Addr: netip.MustParseAddr("10.1.2.3"), Port: 80},
	}
	list := r.awaitDenials(5)
	if len(list) != 4 || list[3].Count != 2 {
		t.Errorf("denials: %+v", list)
	}
	for _, d := range list {
		req, ok := asked[d.Target]
		value, allow := strings.CutPrefix(d.Hint, "--allow ")
		if req.Addr.IsPrivate() {
			if allow || d.Hint == "" {
				t.Errorf("denial %+v", d)
			}
			continue
		}
		if !ok || !allow {
			t.Errorf("denial %+v", d)
			continue
		}
		p, _, err := syntax.FromFlags(nil, syntax.Flags{Allow: []string{value}}, syntax.Inputs{})
		if err != nil {
			t.Errorf("%s: %v", d.Hint, err)
		} else if got := p.Decide(req); !got.Allow {
			t.Errorf("%s does not allow %s: %s", d.Hint, d.Target, got.Reason())
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.told) != 4 {
		t.Errorf("told of %+v, want each destination once", r.told)
	}
}

// Addresses of the names' that none was given, and those that nobody can
// connect to, are nothing that a flag could allow.
func TestNoHintWhereNothingAllows(t *testing.T) {
	r := open(t, "")
	r.guest.Dial(t, netip.MustParseAddrPort("198.18.77.1:443"))
	r.guest.Dial(t, netip.MustParseAddrPort("203.0.113.7:443"))
	list := r.awaitDenials(2)
	if len(list) != 2 {
		t.Errorf("denials: %+v", list)
	}
	for _, d := range list {
		if strings.Contains(d.Hint, "--allow") {
			t.Errorf("denial: %+v", d)
		}
	}
}

func TestDenialsAreBounded(t *testing.T) {
	r := open(t, "")
	for i := range 10000 {
		r.edge.mayResolve(fmt.Sprintf("www.n%d-example.com", i)) // each somebody else's
	}
	list, total := r.edge.Denials()
	if len(list) != maxDenials+1 || list[0].Target != "*" || total != 10000 { // so many domains are an alert
		t.Errorf("%d in the list, %d in all", len(list), total)
	}
	if err := r.edge.tallies.Flush(); err != nil {
		t.Fatal(err)
	}
	var sum, gathered int64
	tallies := of[event.Tally](r.journal)
	for _, t := range tallies {
		sum += t.Count
		gathered += t.Names
	}
	if sum != 10000 || len(tallies) > 2*1024 || gathered != sum-int64(len(tallies)-1) {
		t.Errorf("%d tallies count %d, %d of them gathered", len(tallies), sum, gathered)
	}
}

// Invariant 5, from end to end.
func TestPrivateUpstreamNeedsLeave(t *testing.T) {
	j := newJournal()
	address := netip.MustParseAddrPort(j.echo(t))
	hosts := map[string][]netip.Addr{"inner.test": {address.Addr()}}
	text := "rules: [{allow: inner.test, ports: %d, protocol: tcp, allow_private: %v}]\n"
	r := j.open(t, fmt.Sprintf(text, address.Port(), false), withHosts(t, hosts))
	r.wantReset("inner.test", address.Port())
	j.wantNothingOutside(t)
	r.setRules(fmt.Sprintf(text, address.Port(), true))
	wantEcho(t, r.dial("inner.test", address.Port()), "hello")
	list := r.awaitDenials(1)
	if len(list) != 1 || strings.Contains(list[0].Hint, "allow_private") || list[0].Hint == "" || list[0].Target != fmt.Sprintf("inner.test:%d", address.Port()) {
		t.Errorf("denials: %+v", list)
	}
}

func TestHostAliasReachesOnlyListedPorts(t *testing.T) {
	j := newJournal()
	one, other := netip.MustParseAddrPort(j.echo(t)), netip.MustParseAddrPort(j.echo(t))
	r := j.open(t, fmt.Sprintf("rules: [{allow: host.creel.internal, ports: %d}]\n", one.Port()))
	r.wantReset(policy.HostAlias, other.Port())
	j.wantNothingOutside(t)
	wantEcho(t, r.dial(policy.HostAlias, one.Port()), "hello")
	if diff := cmp.Diff([]string{fmt.Sprintf("%s:%d", policy.HostAlias, other.Port())}, targets(r.awaitDenials(1))); diff != "" {
		t.Error(diff)
	}
}

func TestOddRequestsGoNowhere(t *testing.T) {
	j := newJournal()
	address := j.web(t, "", func(w http.ResponseWriter, r *http.Request) {})
	r := j.open(t, rules(fmt.Sprintf("- {allow: web.test, ports: 80, methods: [GET], paths: [/open/**], name: R, upstream: {address: %q}}\n", address)))
	tests := map[string]string{
		"host mismatch":     "GET /open/ HTTP/1.1\r\nHost: other.test\r\n\r\n",
		"absolute form":     "GET http://other.test/open/ HTTP/1.1\r\nHost: web.test\r\n\r\n",
		"absolute own name": "GET http://web.test/open/ HTTP/1.1\r\nHost: web.test\r\n\r\n",
		"connect":           "CONNECT other.test:443 HTTP/1.1\r\nHost: other.test:443\r\n\r\n",
		"both lengths":      "POST /open/ HTTP/1.1\r\nHost: web.test\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"two hosts":         "GET /open/ HTTP/1.1\r\nHost: web.test\r\nHost: other.test\r\n\r\n",
		"method":            "DELETE /open/x HTTP/1.1\r\nHost: web.test\r\nContent-Length: 0\r\n\r\n",
		"path":              "GET /shut/ HTTP/1.1\r\nHost: web.test\r\n\r\n",
		"path with dots":    "GET /open/../shut/ HTTP/1.1\r\nHost: web.test\r\n\r\n",
		"not HTTP":          "SSH-2.0-x\r\n\r\n",
	}
	for name, request := range tests {
		t.Run(name, func(t *testing.T) {
			c := r.guest.MustDial(t, r.to("web.test", 80))
			io.WriteString(c, request)
			c.CloseWrite()
			answer, _ := io.ReadAll(c)
			if !strings.HasPrefix(string(answer), "HTTP/1.1 4") {
				t.Errorf("answer %q", answer)
			}
			if name == "method" || name == "path" {
				for _, want := range []string{"HTTP/1.1 403", "Creel-Decision: deny", "Creel-Rule: ", `"by":"creel"`, `"hint":"`} {
					if !strings.Contains(string(answer), want) {
						t.Errorf("no %q in the answer %q", want, answer)
					}
				}
			}
		})
	}
	j.wantNothingOutside(t)
	if status, _ := r.get(r.client(""), "http://web.test/open/x"); status != 200 {
		t.Errorf("status %d for what is allowed", status)
	}
}
