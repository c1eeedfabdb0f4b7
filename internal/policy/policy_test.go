package policy_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	. "creel/internal/policy"
	"creel/internal/policy/syntax"

	"github.com/google/go-cmp/cmp"
)

// must parses rules written without their heading.
func must(t testing.TB, rules string) *Policy {
	t.Helper()
	p, _, err := syntax.Parse([]byte("version: 1\nrules:\n"+rules), syntax.Inputs{})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestZeroDenies(t *testing.T) {
	var none *Policy
	for _, p := range []*Policy{none, {}, must(t, "  []")} {
		for _, op := range []Op{0, Resolve, Connect, Dial, Ask, 99} {
			d := p.Decide(Request{Op: op, Host: "example.com", Addr: netip.MustParseAddr("1.1.1.1"), Port: 443, Method: "GET", Path: "/"})
			if d.Allow || d.Reason() == "" {
				t.Errorf("op %d: %+v", op, d)
			}
		}
	}
	if (Decision{}).Allow || must(t, `  - allow: "**"`).Decide(Request{Host: "a.b", Port: 443}).Allow {
		t.Error("the zero Decision, or the zero Op, is allowed")
	}
}

func TestExplain(t *testing.T) {
	p := must(t, `
  - {allow: api.example.com, name: api}
  - {allow: "*.one.test", ports: [443, 8443]}
  - {allow: "**.deep.test", ports: 80}
  - {deny: bad.deep.test}
  - {allow: db.test, ports: 5432}
  - {allow: time.test, ports: 123, protocol: udp}
  - {allow: 10.1.0.0/16, ports: 1-1000, allow_private: true}
  - {deny: 10.1.2.0/24}
  - {allow: 8.8.8.8}
  - {allow: rest.test, methods: [GET, HEAD], paths: ["/v1/**", "/status"], name: rest}
  - {allow: rest.test, methods: POST, paths: "/v1/*/do"}
  - {deny: rest.test, paths: "/v1/admin/**", name: no-admin}
  - {allow: host.creel.internal, ports: 5000}
  - {allow: "**.wide.test", ports: 80, methods: GET}
  - {deny: tcp.test, methods: DELETE}
  - {allow: tcp.test, ports: 9}
`)
	for _, c := range []struct {
		what string
		want bool
		rule string
	}{
		{"GET https://api.example.com/x", true, "api"},
		{"GET https://API.Example.com./x", true, "api"},
		{"GET http://api.example.com/x", false, ""},
		{"GET https://api.example.com:8443/", false, ""},
		{"GET https://www.api.example.com/", false, ""},
		{"GET https://a.one.test/", true, "line 5"},
		{"GET https://a.b.one.test/", false, ""},
		{"GET https://one.test/", false, ""},
		{"tcp://a.one.test:8443", true, "line 5"},
		{"GET http://a.b.deep.test/", true, "line 6"},
		{"GET http://deep.test/", false, ""},
		{"GET http://bad.deep.test/", false, "line 7"},
		{"GET http://a.bad.deep.test/", true, "line 6"},
		{"tcp://db.test:5432", true, "line 8"},
		{"udp://db.test:5432", false, ""},
		{"udp://time.test:123", true, "line 9"},
		{"tcp://time.test:123", false, ""},
		{"tcp://10.1.1.1:22", true, "line 10"},
		{"tcp://10.1.1.1:2000", false, ""},
		{"tcp://10.1.2.1:22", false, "line 11"},
		{"tcp://[::ffff:10.1.2.1]:22", false, "line 11"},
		{"GET https://8.8.8.8/", true, "line 12"},
		{"GET https://rest.test/v1/x?q=1", true, "rest"},
		{"GET https://rest.test/status", true, "rest"},
		{"GET https://rest.test/status/x", false, "line 14"},
		{"POST https://rest.test/v1/x", false, "line 14"},
		{"POST https://rest.test/v1/x/do", true, "line 14"},
		{"GET https://rest.test/v1/admin/x", false, "no-admin"},
		{"GET https://rest.test/v1/%61dmin/x", false, "no-admin"},
		{"GET https://rest.test/v1/ADMIN", false, "no-admin"},
		{"GET https://rest.test/v1/./admin/x", false, "no-admin"},
		{"GET https://rest.test/v1//admin/x", false, "no-admin"},
		{"GET https://rest.test/v1/a/..%2fadmin/x", false, "no-admin"},
		{"GET https://rest.test/v1/..;/v1/x", false, "line 14"},
		{"GET https://rest.test/v1/x;a=b", true, "rest"},
		{"GET https://rest.test/v1/admin;a=b/x", false, "no-admin"},
		{"GET https://rest.test/v1/;/../secret", false, "line 14"},
		{"GET https://rest.test/v1/x?_method=POST", false, "no-admin"},
		{"GET https://rest.test/v1/../secret", false, "line 14"},
		{"GET https://rest.test/v1/%2e%2e/secret", false, "line 14"},
		{"GET https://rest.test/v1/%252e%252e/secret", false, "no-admin"},
		{"tcp://host.creel.internal:5000", true, "line 16"},
		{"tcp://host.creel.internal:5001", false, ""},
		{"DELETE http://x.wide.test/", false, "line 17"},
		{"tcp://tcp.test:9", false, "line 18"},
	} {
		method, url, ok := strings.Cut(c.what, " ")
		if !ok {
			method, url = "", c.what
		}
		e, err := p.Explain(method, url)
		if err != nil {
			t.Fatal(err)
		}
		if e.Decision.Allow != c.want || e.Decision.RuleName() != c.rule {
			t.Errorf("%s: allow %v by %q (%s), want %v by %q", c.what, e.Decision.Allow, e.Decision.RuleName(), e.Decision.Reason(), c.want, c.rule)
		}
		if (e.Decision.Hint() == "") != c.want {
			t.Errorf("%s: hint %q", c.what, e.Decision.Hint())
		}
	}
}

// A hint that names a flag can be pasted into a shell.
func TestHintsCanBePasted(t *testing.T) {
	var none *Policy
	for want, req := range map[string]Request{
		"--allow a.test":                {Op: Resolve, Host: "a.test"},
		"--allow a.test:22":             {Op: Connect, Host: "a.test", Port: 22},
		"--allow 8.8.8.8:53":            {Op: Connect, Addr: netip.MustParseAddr("8.8.8.8"), Port: 53},
		"--allow '[2606:4700::1]:5432'": {Op: Connect, Addr: netip.MustParseAddr("2606:4700::1"), Port: 5432},
	} {
		if got := none.Decide(req).Hint(); got != want {
			t.Errorf("%+v: hint %q, want %q", req, got, want)
		}
	}
}

// What a guest asked for is no reason to let it into this machine, its network
// or its metadata service, by whichever way it asked.
func TestHintsNeverSuggestWhatIsNotPublic(t *testing.T) {
	byName := must(t, "  - {allow: '**', ports: 80}\n  - {allow: 8.8.8.8, ports: 443}")
	var none *Policy
	var asked []Request
	for _, a := range []string{
		"169.254.169.254", "169.254.1.1", "127.0.0.1", "10.0.0.1", "192.168.1.1", "100.100.100.200", "::1", "fe80::1", "fd00:ec2::254",
		"64:ff9b::a9fe:a9fe", "224.0.0.1", "0.0.0.0",
	} {
		addr := netip.MustParseAddr(a)
		asked = append(asked, Request{Op: Connect, Addr: addr, Port: 80}, Request{Op: Connect, Addr: addr, Port: 53, Protocol: UDP},
			Request{Op: Dial, Host: "a.example.com", Addr: addr, Port: 80})
	}
	for _, host := range []string{
		"metadata.google.internal", "metadata", "instance-data.ec2.internal", "localhost", "db.localhost", "printer.local", "router.lan", "intranet",
		"git.corp", HostAlias, "localhost.localdomain", "db.localdomain", "10.0.0.1.nip.io", "app.127-0-0-1.sslip.io", "169.254.169.254.nip.io", "7f000001.nip.io",
		"x-0a000001.nip.io", "--1.sslip.io", "fd00--1.sslip.io", "nip.io", "a.rbndr.us", "x.localtest.me", "lvh.me", "fritz.box", "web.service.consul", "a.home.arpa", "x.lan",
		"x.intranet", "x.home", "laptop.tail1234.ts.net", "ip-10-0-0-5.example.com", "192-168-1-7.abc.plex.direct", "db.default.svc",
	} {
		asked = append(asked, Request{Op: Resolve, Host: host}, Request{Op: Connect, Host: host, Port: 443})
	}
	asked = append(asked, Request{Op: Connect, Addr: netip.MustParseAddr("8.8.4.4"), Port: 80, Own: true})
	for _, p := range []*Policy{none, byName} {
		for _, req := range asked {
			d := p.Decide(req)
			if !d.Allow && (d.Hint() == "" || strings.Contains(d.Hint(), "--allow") || strings.Contains(d.Hint(), "allow_private") || strings.Contains(d.Hint(), "`allow:")) {
				t.Errorf("%+v: hint %q", req, d.Hint())
			}
		}
	}
}

// What only looks a little like a private name has its hint.
func TestHintsOfPublicNames(t *testing.T) {
	for _, host := range []string{
		"a.example.com", "8.8.8.8.nip.io", "app.8-8-8-8.sslip.io", "08080808.nip.io", "2606-4700--1111.sslip.io", "v10-1-2.example.com", "corp.example.com", "home.example.com", "lan-party.com",
		"notlvh.me", "deadbeef.example.com", "1-2-3-4-5.example.com", "consul.io",
	} {
		d := must(t, "\n  - {allow: z.test, ports: 443}").Decide(Request{Op: Connect, Host: host, Port: 443})
		if want := "--allow " + host + ":443"; d.Hint() != want {
			t.Errorf("%s: hint %q", host, d.Hint())
		}
	}
}

func TestDial(t *testing.T) {
	p := must(t, `
  - {allow: pub.test, ports: 1-65535}
  - {allow: priv.test, ports: 443, allow_private: true}
  - {allow: up.test, upstream: {address: "127.0.0.1:8443"}}
  - {allow: meta.test, upstream: {address: "169.254.169.254:80"}}
  - {allow: upname.test, upstream: {address: "gateway.test:8443"}}
  - {allow: upnamep.test, upstream: {address: "gateway.test:8443"}, allow_private: true}
  - {allow: host.creel.internal, ports: 443}
  - {deny: 93.184.216.0/24}
  - {allow: 169.254.169.254, ports: 80, allow_private: true}
`)
	for _, c := range []struct {
		host, addr string
		want       bool
	}{
		{"pub.test", "1.1.1.1", true},
		{"pub.test", "2606:4700::1111", true},
		{"pub.test", "93.184.216.34", false},
		{"pub.test", "64:ff9b::5db8:d822", false}, // the denied network through NAT64
		{"pub.test", "64:ff9b::101:101", true},
		{"pub.test", "10.0.0.1", false},
		{"pub.test", "::ffff:10.0.0.1", false},
		{"pub.test", "64:ff9b::a00:1", false},
		{"pub.test", "2002:a00:1::1", false},
		{"pub.test", "fe80::1%eth0", false},
		{"pub.test", "2606:4700::5efe:10.0.0.1", false},
		{"priv.test", "10.0.0.1", true},
		{"priv.test", "127.0.0.1", true},
		{"priv.test", "169.254.169.254", false},
		{"priv.test", "fe80::1", false},
		{"priv.test", "224.0.0.1", false},
		{"priv.test", "0.0.0.0", false},
		{"up.test", "127.0.0.1", true},
		{"up.test", "10.0.0.1", false},
		{"upname.test", "1.1.1.1", true},
		{"upname.test", "127.0.0.1", false},
		{"upname.test", "10.0.0.1", false},
		{"upnamep.test", "10.0.0.1", true},
		{"meta.test", "169.254.169.254", true},
		{"meta.test", "169.254.1.1", false},
		{"host.creel.internal", "127.0.0.1", true},
		{"host.creel.internal", "10.0.0.1", false},
		{"", "169.254.169.254", false}, // its rule is for port 80
		{"other.test", "1.1.1.1", false},
		{"pub.test", "", false},
	} {
		addr, _ := netip.ParseAddr(c.addr)
		d := p.Decide(Request{Op: Dial, Host: c.host, Addr: addr, Port: 443})
		if d.Allow != c.want {
			t.Errorf("%s at %s: %v (%s)", c.host, c.addr, d.Allow, d.Reason())
		}
	}
	own := Request{Op: Dial, Host: "pub.test", Addr: netip.MustParseAddr("1.1.1.1"), Port: 443, Own: true}
	if d := p.Decide(own); d.Allow || d.Class != Loopback {
		t.Errorf("the host's own public address: %+v", d)
	}
	if !p.Decide(Request{Op: Connect, Addr: netip.MustParseAddr("169.254.169.254"), Port: 80}).Allow {
		t.Error("an explicit rule for the metadata address does not hold")
	}
}

// An address is sent elsewhere by its own rule, not by one of where it is sent.
func TestDialInsteadOfAddress(t *testing.T) {
	p := must(t, `
  - {allow: 8.8.8.8, ports: 53, protocol: tcp, upstream: {address: "127.0.0.1:5353"}}
  - {allow: 9.9.9.9, ports: 53, protocol: tcp}
  - {allow: 10.0.0.1, ports: 53, protocol: tcp, allow_private: true}`)
	for _, c := range []struct {
		instead, addr string
		want          bool
	}{
		{"8.8.8.8", "127.0.0.1", true},
		{"::ffff:8.8.8.8", "127.0.0.1", true},
		{"8.8.8.8", "224.0.0.1", false},
		{"9.9.9.9", "127.0.0.1", false},
		{"1.1.1.1", "10.0.0.1", false},
	} {
		d := p.Decide(Request{Op: Dial, Instead: netip.MustParseAddr(c.instead), Addr: netip.MustParseAddr(c.addr), Port: 53})
		if d.Allow != c.want {
			t.Errorf("%s for %s: %v (%s)", c.addr, c.instead, d.Allow, d.Reason())
		}
	}
	d := p.Decide(Request{Op: Dial, Instead: netip.MustParseAddr("9.9.9.9"), Addr: netip.MustParseAddr("127.0.0.1"), Port: 53})
	if got := d.Target(); got != "9.9.9.9:53" {
		t.Errorf("target %s", got)
	}
	own := must(t, `  - {allow: 10.9.8.7, ports: 7000, upstream: {address: "127.0.0.1:5353"}}`)
	for addr, want := range map[string]bool{"10.9.8.7": true, "10.9.8.8": false} {
		if d := own.Decide(Request{Op: Connect, Addr: netip.MustParseAddr(addr), Port: 7000}); d.Allow != want {
			t.Errorf("connect to %s, which has an upstream: %v (%s)", addr, d.Allow, d.Reason())
		}
	}
	for addr, want := range map[string]bool{"127.0.0.1": true, "10.9.8.7": false} {
		if d := own.Decide(Request{Op: Dial, Instead: netip.MustParseAddr("10.9.8.7"), Addr: netip.MustParseAddr(addr), Port: 7000}); d.Allow != want {
			t.Errorf("dial %s for 10.9.8.7: %v (%s)", addr, d.Allow, d.Reason())
		}
	}
	if d := p.Decide(Request{Op: Connect, Instead: netip.MustParseAddr("8.8.8.8"), Addr: netip.MustParseAddr("1.1.1.1"), Port: 53}); d.Allow {
		t.Error("Instead counts for a Connect")
	}
}

func TestHostsThatAreAddresses(t *testing.T) {
	p := must(t, `  - {allow: "**"}`)
	for _, host := range []string{"2130706433", "0x7f000001", "127.1", "0177.0.0.1", "0x7f.1", "a.0x", "127.0.0.1.", "::1", "", ".", "a..b",
		"-a.b", "a-.b", "a b", "a\x00b", "bücher.example", "a/b", "a:80", strings.Repeat("a", 64) + ".b", strings.Repeat("a.", 127) + "ab"} {
		for _, op := range []Op{Resolve, Connect, Dial} {
			if d := p.Decide(Request{Op: op, Host: host, Port: 443}); d.Allow {
				t.Errorf("%q is allowed", host)
			}
		}
	}
}

func TestAddressClass(t *testing.T) {
	for addr, want := range map[string]Class{
		"1.1.1.1": Public, "2606:4700::1111": Public, "10.1.1.1": Private, "172.31.0.1": Private, "172.32.0.1": Public,
		"192.168.1.1": Private, "100.64.0.1": Private, "100.100.100.200": Metadata, "198.19.0.1": Private, "fd12::1": Private,
		"127.9.9.9": Loopback, "::1": Loopback, "::ffff:127.0.0.1": Loopback, "64:ff9b::7f00:1": Loopback, "2002:7f00:1::": Loopback,
		"64:ff9b:1::a9fe:a9fe": Metadata, "169.254.169.254": Metadata, "fd00:ec2::254": Metadata, "169.254.1.1": LinkLocal,
		"fe80::1": LinkLocal, "fec0::1": LinkLocal, "224.0.0.1": Multicast, "255.255.255.255": Multicast, "ff02::1": Multicast,
		"0.0.0.0": Reserved, "0.1.2.3": Reserved, "::": Reserved, "::7f00:1": Reserved, "240.0.0.1": Reserved, "192.0.2.1": Reserved,
		"2001::1": Reserved, "2001:db8::1": Reserved, "4000::1": Reserved, "fe80::1%eth0": LinkLocal,
		"2606:4700::200:5efe:c0a8:1": Private, "2002:808:808::1": Public, "64:ff9b::808:808": Public,
	} {
		if got := AddressClass(netip.MustParseAddr(addr)); got != want {
			t.Errorf("%s is %s, want %s", addr, got, want)
		}
	}
	if AddressClass(netip.Addr{}) != Reserved {
		t.Error("no address is not reserved")
	}
}

// world is small, so that random rules and requests meet.
var worldHosts = []string{"a.test", "b.test", "x.a.test", "y.x.a.test", "test", "host.creel.internal"}

func randomRules(rnd *rand.Rand) (rules []string) {
	dests := []string{"a.test", "b.test", "x.a.test", `"*.test"`, `"*.a.test"`, `"**.test"`, `"**.a.test"`, `"**"`, "host.creel.internal", "8.8.8.0/24", "8.8.8.8"}
	pick := func(list ...string) string { return list[rnd.IntN(len(list))] }
	for range 1 + rnd.IntN(6) {
		dest := pick(dests...)
		if rnd.IntN(3) == 0 {
			rules = append(rules, fmt.Sprintf("{deny: %s%s}", dest, pick("", ", ports: 443", ", ports: 1-100", ", methods: GET", ", paths: /a/**", ", protocol: udp")))
			continue
		}
		rules = append(rules, fmt.Sprintf("{allow: %s, ports: %s%s}", dest, pick("443", "80", "[80, 443]", "1-1000"),
			pick("", "", ", methods: GET", ", paths: [/a/**, /b]", ", protocol: udp", ", protocol: tcp", ", methods: POST, paths: /a/*, protocol: tls")))
	}
	return rules
}

func randomPolicy(rnd *rand.Rand) *Policy {
	for {
		text := "version: 1\nrules:\n"
		for i, r := range randomRules(rnd) {
			text += "  - " + strings.TrimSuffix(r, "}") + fmt.Sprintf(", name: r%d}\n", i)
		}
		if p, _, err := syntax.Parse([]byte(text), syntax.Inputs{}); err == nil {
			return p
		}
	}
}

func randomRequest(rnd *rand.Rand) Request {
	req := Request{
		Op: []Op{Resolve, Connect, Dial, Ask}[rnd.IntN(4)], Host: worldHosts[rnd.IntN(len(worldHosts))],
		Port: []uint16{80, 443, 50, 5000}[rnd.IntN(4)], Protocol: []Protocol{"", TLS, HTTP, UDP}[rnd.IntN(4)],
		Method: []string{"GET", "POST"}[rnd.IntN(2)], Path: []string{"/", "/a/x", "/b", "/a/../b", "/%61/x", "/a%2Fx"}[rnd.IntN(6)],
	}
	if req.Op == Dial || rnd.IntN(4) == 0 {
		req.Addr = netip.MustParseAddr([]string{"8.8.8.8", "8.8.8.9", "127.0.0.1", "1.1.1.1"}[rnd.IntN(4)])
	}
	if req.Op != Dial && req.Addr.IsValid() {
		req.Host = ""
	}
	return req
}

// meets is the whole of what a rule says about a request, read plainly.
func meets(r *Rule, req Request) bool {
	byHost := r.Host != "" && req.Host != "" && PatternMatches(r.Host, req.Host)
	byAddr := r.Prefix.IsValid() && req.Addr.IsValid() && r.Prefix.Contains(req.Addr) && (req.Host == "" || r.Deny)
	return (byHost || byAddr) && r.CoversPort(req.Port, req.Protocol == UDP)
}

func TestProperties(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	allowed := 0
	for range 1500 {
		p := randomPolicy(rnd)
		shuffled := slices.Clone(p.Rules)
		rnd.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
		other := New(shuffled, p.Budget, nil)
		for range 30 {
			req := randomRequest(rnd)
			d := p.Decide(req)
			if o := other.Decide(req); d.Allow != o.Allow || d.RuleName() != o.RuleName() || d.Why != o.Why {
				t.Fatalf("order matters for %+v:\n%s\n%+v\n%+v", req, syntax.Text(p), d, o)
			}
			if !d.Allow {
				continue
			}
			allowed++
			if d.Rule == nil || d.Rule.Deny || d.Why != WhyRule {
				t.Fatalf("allowed without an allow rule: %+v\n%s", d, syntax.Text(p))
			}
			for i := range p.Rules {
				if r := &p.Rules[i]; r.Deny && !r.Conditional() && req.Op != Resolve && meets(r, req) {
					t.Fatalf("%+v is allowed, and denied by %s\n%s", req, r.Name, syntax.Text(p))
				}
			}
			if req.Op != Resolve && !meets(d.Rule, req) {
				t.Fatalf("%+v is allowed by %s, which does not name it\n%s", req, d.Rule.Name, syntax.Text(p))
			}
			if req.Op != Resolve && req.Host != "" && !p.Decide(Request{Op: Resolve, Host: req.Host}).Allow {
				t.Fatalf("%+v is allowed, but its name does not resolve\n%s", req, syntax.Text(p))
			}
		}
	}
	if allowed < 1000 {
		t.Fatalf("only %d of the random requests were allowed: the test shows nothing", allowed)
	}
}

func TestExplainAgrees(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	verdicts := map[bool]int{}
	for range 5000 {
		p := randomPolicy(rnd)
		host, scheme := worldHosts[rnd.IntN(len(worldHosts))], []string{"https", "http", "tcp", "udp"}[rnd.IntN(4)]
		if rnd.IntN(4) == 0 {
			host = "8.8.8.8"
		}
		method, url := []string{"GET", "POST", "post", "Get", "X!"}[rnd.IntN(5)], fmt.Sprintf("%s://%s:%d/a/x", scheme, host, []int{80, 443, 50}[rnd.IntN(3)])
		e, err := p.Explain(method, url)
		if err != nil {
			t.Fatal(err)
		}
		req, err := RequestOf(method, url)
		if err != nil {
			t.Fatal(err)
		}
		if req.Method != "" { // what the boundary asks with
			req.Method = method
		}
		req.Op = Connect
		want := p.Decide(req)
		if want.Allow && (want.Inspect || want.Protocol == HTTP) && req.Method != "" {
			req.Op = Ask
			want = p.Decide(req)
		}
		if e.Decision.Allow != want.Allow || e.Decision.RuleName() != want.RuleName() {
			t.Fatalf("%s %s: explained as %+v, decided as %+v\n%s", method, url, e.Decision, want, syntax.Text(p))
		}
		// The bearings are found without the index: they must tell the same.
		says := func(text string) bool {
			return slices.ContainsFunc(e.Rules, func(b Bearing) bool { return b.Text == text })
		}
		if want.Allow != says("allows it") && want.Why == WhyRule || want.Allow && says("denies it") {
			t.Fatalf("%s %s: decided as %+v, but the rules say %v\n%s", method, url, want, e.Rules, syntax.Text(p))
		}
		if (want.Why == WhyNoRule) != (len(e.Rules) == 0) && !slices.ContainsFunc(e.Rules, func(b Bearing) bool { return b.Rule.Deny }) {
			t.Fatalf("%s %s: decided as %+v, but the rules say %v\n%s", method, url, want, e.Rules, syntax.Text(p))
		}
		verdicts[want.Allow]++
	}
	if verdicts[true] < 200 || verdicts[false] < 500 {
		t.Fatalf("one-sided: %v", verdicts)
	}
}

func BenchmarkDecide(b *testing.B) {
	for _, n := range []int{10, 1000, 10000} {
		var text strings.Builder
		text.WriteString("version: 1\nrules:\n")
		for i := range n {
			switch i % 10 {
			case 0:
				fmt.Fprintf(&text, "  - {deny: \"**.d%d.example.com\"}\n", i)
			case 1:
				fmt.Fprintf(&text, "  - {allow: \"**.w%d.example.com\"}\n", i)
			case 2:
				fmt.Fprintf(&text, "  - {allow: \"*.o%d.example.com\", ports: [443, 8443]}\n", i)
			case 3:
				fmt.Fprintf(&text, "  - {allow: 8.%d.%d.0/24, ports: 22}\n", i/256, i%256)
			default:
				fmt.Fprintf(&text, "  - {allow: h%d.example.com, ports: 443}\n", i)
			}
		}
		p, _, err := syntax.Parse([]byte(text.String()), syntax.Inputs{})
		if err != nil {
			b.Fatal(err)
		}
		var reqs []Request
		for i := range 1000 {
			k := i * n / 1000 / 10 * 10
			reqs = append(reqs,
				Request{Op: Connect, Host: fmt.Sprintf("h%d.example.com", k+5), Port: 443},
				Request{Op: Connect, Host: fmt.Sprintf("a.b.w%d.example.com", k+1), Port: 443},
				Request{Op: Resolve, Host: fmt.Sprintf("x.d%d.example.com", k)},
				Request{Op: Connect, Host: fmt.Sprintf("nowhere%d.example.org", k), Port: 443},
				Request{Op: Connect, Addr: netip.AddrFrom4([4]byte{8, byte((k + 3) / 256), byte((k + 3) % 256), 9}), Port: 22})
		}
		b.Run(fmt.Sprintf("rules=%d", n), func(b *testing.B) {
			b.ReportAllocs()
			allowed, i := 0, 0
			for b.Loop() {
				if p.Decide(reqs[i%len(reqs)]).Allow {
					allowed++
				}
				i++
			}
			if i >= len(reqs) && allowed < i/2 {
				b.Fatalf("%d of %d allowed", allowed, i)
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "decisions/s")
		})
	}
}

func TestMeter(t *testing.T) {
	p, _, err := syntax.Parse([]byte(`
version: 1
budget: {bytes_out: 100, hosts: 2, requests_per_minute: 3}
rules:
  - {allow: a.test, name: a, budget: {bytes_out: 10, connections: 2}}
  - {allow: b.test, name: b}
`), syntax.Inputs{})
	if err != nil {
		t.Fatal(err)
	}
	a, b := &p.Rules[0], &p.Rules[1]
	now := time.Unix(1e9, 0)
	var m Meter
	for i, step := range []struct {
		rule  *Rule
		use   Usage
		after time.Duration
		limit string
	}{
		{a, Usage{Connections: 1, Host: "a.test"}, 0, ""},
		{a, Usage{BytesOut: 10}, 0, ""},
		{a, Usage{BytesOut: 1}, 0, "bytes_out"},
		{a, Usage{Connections: 1, Host: "a.test"}, 0, "bytes_out"}, // reconnecting resets nothing
		{b, Usage{BytesOut: 80}, 0, ""},
		{b, Usage{Requests: 3}, 0, ""},
		{b, Usage{Requests: 1}, 59 * time.Second, "requests_per_minute"},
		{b, Usage{Requests: 1}, -30 * time.Second, "requests_per_minute"},
		{b, Usage{Requests: 1}, 31 * time.Second, ""},
		{b, Usage{Connections: 1, Host: "b.test"}, 0, ""},
		{b, Usage{Connections: 1, Host: "b.test"}, 0, ""},
		{b, Usage{BytesIn: 1 << 40}, 0, ""},
		{b, Usage{Connections: 1, Host: "c.test"}, 0, "hosts"},
		{b, Usage{BytesOut: 1}, 0, "hosts"},
	} {
		now = now.Add(step.after)
		d := m.Use(p, step.rule, step.use, now)
		if d.Limit != step.limit || d.Allow != (step.limit == "") {
			t.Errorf("step %d: %+v, want limit %q", i, d, step.limit)
		}
		if !d.Allow && (d.Why != WhyBudget || !strings.Contains(d.Reason(), step.limit) || d.Hint() == "") {
			t.Errorf("step %d: reason %q", i, d.Reason())
		}
	}
	if m.Spent(a) != "hosts" || m.Spent(nil) != "hosts" {
		t.Errorf("spent: %q %q", m.Spent(a), m.Spent(nil))
	}
	used, hosts := m.Used()
	if diff := cmp.Diff(Usage{BytesOut: 90, BytesIn: 1 << 40, Requests: 4, Connections: 3}, used); diff != "" || hosts != 2 {
		t.Errorf("used: %s, %d hosts", diff, hosts)
	}
	if m.Use(p, nil, Usage{}, now).Allow || m.Use(nil, a, Usage{}, now).Allow || new(Meter).Use(p, &Rule{Deny: true}, Usage{}, now).Allow {
		t.Error("use without a policy, or without an allow rule, is allowed")
	}
}

// What no rule is about is charged to the task, whose budget it spends for all.
func TestMeterOfTheTask(t *testing.T) {
	p, _, err := syntax.Parse([]byte("version: 1\nbudget: {bytes_out: 100}\nrules:\n  - {allow: a.test}\n"), syntax.Inputs{})
	if err != nil {
		t.Fatal(err)
	}
	now := time.Unix(1e9, 0)
	var m Meter
	if !m.UseTask(nil, Usage{BytesOut: 60}, now).Allow || !m.UseTask(p, Usage{BytesOut: 30}, now).Allow {
		t.Fatal("within the budget, and without one, use is denied")
	}
	if d := m.UseTask(p, Usage{BytesOut: 20}, now); d.Allow || d.Limit != "bytes_out" {
		t.Errorf("over the budget: %+v", d)
	}
	if m.UseTask(p, Usage{}, now).Allow || m.Use(p, &p.Rules[0], Usage{Requests: 1}, now).Allow || m.Spent(nil) != "bytes_out" {
		t.Error("what is spent is not spent for all")
	}
	if used, _ := m.Used(); used.BytesOut != 90 {
		t.Errorf("used: %+v", used)
	}
}

// A new generation of the policy keeps what was used under the old one.
func TestMeterOutlivesPolicy(t *testing.T) {
	var m Meter
	now := time.Unix(1e9, 0)
	for want, limit := range []string{"requests: 1", "requests: 2", "requests: 3"} {
		p := must(t, "  - {allow: b.test}\n  - {allow: a.test, budget: {"+limit+"}}\n")
		if !m.Use(p, &p.Rules[1], Usage{Requests: 1}, now).Allow {
			t.Fatalf("request %d under %s", want, limit)
		}
	}
	p := must(t, "  - {allow: a.test, budget: {requests: 2}}\n")
	if m.Use(p, &p.Rules[0], Usage{Requests: 1}, now).Allow {
		t.Error("a lowered budget forgot what was used")
	}
}

func FuzzDecide(f *testing.F) {
	p, _, err := syntax.Parse([]byte("version: 1\nrules:\n  - {allow: '**.test', protocol: http, ports: 80, paths: ['/a/**', '/*/b*c']}\n  - {deny: '**.test', paths: '/a/secret/**'}"), syntax.Inputs{})
	if err != nil {
		f.Fatal(err)
	}
	f.Add("x.test", "/a/b", "GET")
	f.Add("x.test.", "/a/%73ecret/../secret", "GET")
	f.Fuzz(func(t *testing.T, host, path, method string) {
		d := p.Decide(Request{Op: Ask, Host: host, Port: 80, Path: path, Method: method})
		_, _, _ = d.Reason(), d.Hint(), d.Target()
		if !d.Allow {
			return
		}
		seen, _, _ := strings.Cut(path, "?")
		if !strings.HasPrefix(seen, "/") || strings.Contains(seen, "\\") || !strings.HasSuffix(d.Request.Host, ".test") {
			t.Fatalf("allowed: %q %q", host, path)
		}
		ways, odd := Readings(path)
		if odd != "" {
			t.Fatalf("a path is allowed that %s: %q", odd, path)
		}
		for _, way := range ways {
			if len(way) > 1 && strings.EqualFold(way[0], "a") && strings.EqualFold(way[1], "secret") {
				t.Fatalf("the denied part is allowed: %q", path)
			}
		}
	})
}
