package syntax

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"

	"creel/internal/policy"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

const testCA = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"

var testInputs = Inputs{
	Preset: func(name string) ([]policy.Rule, error) {
		if name != "tools" {
			return nil, fmt.Errorf("preset %q is not known", name)
		}
		return []policy.Rule{
			{Name: "tools: a", Host: "tools.test", Ports: []policy.PortRange{{First: 443, Last: 443}}},
			{Name: "tools: b", Host: "api.test", Ports: []policy.PortRange{{First: 443, Last: 443}}},
		}, nil
	},
	File: func(name string) ([]byte, error) {
		if name != "ca.pem" {
			return nil, os.ErrNotExist
		}
		return []byte(testCA), nil
	},
}

const whole = `# everything that a policy can say
version: 1
presets: [tools]
budget: {bytes_out: 10 MiB, bytes_in: 1GiB, requests: 100, connections: 50, hosts: 5, requests_per_minute: 60}
on_alert: end
rules:
  - allow: api.test
    name: the API
    methods: [POST, GET]
    paths: [/v1/**]
    secret: api-key
    upstream: {address: "127.0.0.1:8443", ca: ca.pem}
    allow_private: true
    ech: allow
    unreadable: allow
    budget: {bytes_out: 1KiB}
  - allow: "**.open.test"
    ports: [443, 8000-8100]
    protocol: tls
  - deny: "*.open.test"
    ports: 8050
    protocol: tcp
  - {allow: "2606:4700::/32", ports: 53, protocol: udp}
tests:
  - allow: GET https://api.test/v1/x
    rule: the API
  - deny: tcp://nowhere.test:1
`

func TestParseWhole(t *testing.T) {
	p, warnings, err := Parse([]byte(whole), testInputs)
	if err != nil || len(warnings) != 1 || !strings.Contains(warnings.Error(), "may hold a secret that nobody takes out") {
		t.Fatal(err, warnings)
	}
	checkRoundTrip(t, p)
	want := policy.Budget{BytesOut: 10 << 20, BytesIn: 1 << 30, Requests: 100, Connections: 50, Hosts: 5, RequestsPerMinute: 60}
	if p.Budget != want || len(p.Rules) != 5 || p.Rules[0].Upstream.CA != testCA || p.Rules[0].Line != 7 || !p.Rules[0].Unreadable || !p.EndOnAlert {
		t.Errorf("%+v", p)
	}
	if p.Rules[4].Host != "tools.test" {
		t.Error("a preset's rule replaced, or stood beside, the user's for the same destination")
	}
	for _, c := range p.Cases {
		if got := c.Run(p); got != "" {
			t.Errorf("%s: %s", c, got)
		}
	}
	if got := (policy.Case{Allow: true, URL: "tcp://nowhere.test:1"}).Run(p); got != "no rule names this destination" {
		t.Errorf("a case that fails: %q", got)
	}
	if got := (policy.Case{Allow: true, Method: "GET", URL: "https://api.test/v1/x", Rule: "other"}).Run(p); !strings.Contains(got, "the API") {
		t.Errorf("a case that is decided by another rule: %q", got)
	}
}

func TestFaults(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"", "line 1: the file is empty; write `version: 1`"},
		{"rules: []", "line 1: no version"},
		{"version: 2", `line 1: version "2" is not known`},
		{"version: 1\nrule: []", `line 2: unknown key "rule" in a policy; the keys here are budget, on_alert, presets, rules, tests, version`},
		{"version: 1\nversion: 1", "line 2: version is given twice, first in line 1"},
		{"version: 1\n---\nversion: 1", "more than one document"},
		{"version: 1\nrules: &a []", "anchor or alias"},
		{"version: [", "mend the YAML"},
		{"version: 1\npresets: other", `line 2: preset "other" is not known`},
		{"{allow: a.test, deny: a.test}", "one of allow and deny, this has 2"},
		{"{ports: 443}", "this has 0"},
		{"{allow: a.test, host: b}", `line 3: unknown key "host" in a rule`},
		{"{allow: a.*.test}", "a wildcard stands for whole labels"},
		{"{allow: \"*\"}", "write ** for every name"},
		{"{allow: '127.1'}", "ends in a number"},
		{"{allow: 10.0.0.1/8, allow_private: true}", "write 10.0.0.0/8"},
		{"{allow: \"::ffff:1.1.1.1\"}", "write the IPv4 address itself"},
		{"{allow: 10.0.0.1}", "is private; add `allow_private: true`"},
		{"{allow: 224.0.0.0/8}", "is multicast, where nothing can be connected to"},
		{"{allow: bücher.test}", "xn-- form"},
		{"{allow: a.test, ports: 0}", `port "0"`},
		{"{allow: a.test, ports: 9-8}", `port "9-8"`},
		{"{allow: a.test, ports: [1-5, 5]}", "ports 1-5 and 5 overlap"},
		{"{allow: a.test, ports: []}", "ports is an empty list"},
		{"{allow: a.test, ports: [1, 1]}", "twice"},
		{"{allow: a.test, protocol: quic}", `protocol "quic" is not known; write tls, http, tcp or udp`},
		{"{allow: a.test, protocol: udp}", "no ports, and there is no usual one"},
		{"{allow: host.creel.internal}", "no ports"},
		{"{allow: \"*.host.creel.internal\"}", "matches nothing"},
		{"{allow: a.test, methods: get}", `method "get"`},
		{"{allow: a.test, paths: x}", "begin it with /"},
		{"{allow: a.test, paths: /a%2f}", "write it decoded"},
		{"{allow: a.test, paths: /a**}", "** stands alone"},
		{"{allow: a.test, ports: 22, methods: GET}", "port 22 is opaque tcp; write `protocol: tls` or `protocol: http`"},
		{"{allow: a.test, secret: \"sk 1\"}", "the value itself never belongs in a policy"},
		{"{allow: \"**\", secret: key}", `secret "key" would be given to every host`},
		{"{allow: 1.1.1.1, secret: key}", "by name and not by address"},
		{"{allow: a.test, ech: deny}", `ech "deny" is not known`},
		{"{allow: a.test, unreadable: true}", `unreadable "true" is not known`},
		{"version: 1\non_alert: kill", `line 2: on_alert "kill" is not known`},
		{"{deny: a.test, unreadable: allow}", "a deny has no unreadable"},
		{"{allow: a.test, allow_private: 1}", "neither true nor false"},
		{"{allow: a.test, budget: {bytes_out: 0}}", "to allow nothing, deny the destination"},
		{"{allow: a.test, budget: {hosts: 70000}}", "at most 65536"},
		{"{allow: a.test, upstream: {address: x}}", "write `address: HOST:PORT`"},
		{"{allow: a.test, upstream: {address: \"224.0.0.1:1\"}}", "multicast"},
		{"{allow: a.test, upstream: {address: \"a.b:1\", ca: no.pem}}", "name a readable PEM file"},
		{"{allow: a.test, upstream: {address: \"a.b:1\", ca: \"-----BEGIN X\"}}", "no certificate"},
		{"{deny: a.test, secret: x}", "a deny has no secret; remove it"},
		{"{deny: a.test, protocol: tls}", "a deny is by transport"},
		{"{deny: 1.1.1.1, methods: GET}", "by name and not by address"},
		{"{allow: a.test}\n  - {allow: a.test}", `line 4: shadowed: rule "line 3" allows this already`},
		{"{allow: a.test}\n  - {allow: \"*.test\"}", `line 3: shadowed: rule "line 4" allows this already`},
		{"{allow: a.b.test}\n  - {allow: \"**.test\"}", `line 3: shadowed: rule "line 4"`},
		{"{allow: \"**.b.test\"}\n  - {allow: \"**\"}", `line 3: shadowed: rule "line 4"`},
		{"{allow: 1.1.1.1}\n  - {allow: 1.0.0.0/8}", `line 3: shadowed: rule "line 4"`},
		{"{allow: a.test, methods: GET}\n  - {allow: a.test}", `line 3: shadowed`},
		{"{allow: a.test}\n  - {deny: \"**.test\"}", `line 3: never allows anything: rule "line 4" denies all of it`},
		{"{allow: a.test, methods: GET}\n  - {deny: a.test, methods: [GET, PUT]}", `line 3: shadowed: rule "line 4" denies these requests`},
		{"{deny: a.test}\n  - {deny: \"**\"}", `line 3: shadowed: rule "line 4" denies this already`},
		{"{deny: a.test}\n  - {deny: a.test}", `line 4: shadowed: rule "line 3" denies this already`},
		{"{allow: a.test, ports: 443}\n  - {allow: a.test, ports: [443, 1], protocol: tcp}", `line 4: contradicts rule "line 3": one port`},
		{"{allow: a.test, methods: GET}\n  - {allow: a.test, methods: PUT, allow_private: true}", `line 4: contradicts rule "line 3": upstream, allow_private and ech`},
		{"{allow: a.test, secret: a}\n  - {allow: a.test, secret: b}", `line 4: contradicts rule "line 3": the same requests cannot use two secrets`},
		{"{allow: a.test, budget: {requests: 1}}\n  - {allow: a.test, budget: {requests: 2}}", `two budgets`},
		{"{allow: a.test, name: x}\n  - {allow: b.test, name: x}", `line 4: two rules are named "x"`},
	} {
		text := c.text
		if strings.HasPrefix(text, "{") {
			text = "version: 1\nrules:\n  - " + text
		}
		_, _, err := Parse([]byte(text), testInputs)
		if _, ok := errors.AsType[policy.Faults](err); !ok || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s\n\tgot  %v\n\twant %s", text, err, c.want)
		}
	}
}

func TestEveryFaultAtOnce(t *testing.T) {
	_, _, err := Parse([]byte("version: 3\nrules:\n  - {allow: 'a..b', ports: 0, protocol: x}\n  - {deny: b.test, nope: 1}\nextra: 1\n"), Inputs{})
	if faults, _ := errors.AsType[policy.Faults](err); len(faults) != 5 {
		t.Errorf("got %v, want five faults", err)
	}
}

func TestNoFalseShadows(t *testing.T) {
	for _, rules := range []string{
		"  - {allow: a.test, secret: k}\n  - {allow: '**.test'}\n",
		"  - {allow: a.test, methods: GET}\n  - {allow: '**.test'}\n", // narrows a.test
		"  - {allow: a.test, ports: 22}\n  - {allow: a.test}\n",
		"  - {allow: a.test, ports: 443, protocol: udp}\n  - {allow: a.test}\n",
		"  - {allow: '**.test'}\n  - {deny: a.test}\n",
		"  - {allow: a.test}\n  - {deny: a.test, methods: DELETE}\n",
		"  - {allow: test}\n  - {allow: '**.test'}\n",
		"  - {allow: '**.test'}\n  - {allow: '*.test', ports: 80}\n",
		"  - {allow: a.test, methods: GET, secret: r}\n  - {allow: a.test, methods: POST, secret: w}\n",
		"  - {allow: 1.0.0.0/8}\n  - {deny: 1.1.1.1}\n",
		"  - {deny: a.test, ports: 443, protocol: udp}\n  - {allow: a.test}\n",
	} {
		checkRoundTrip(t, must(t, rules))
	}
}

func TestWarnings(t *testing.T) {
	for rule, want := range map[string]string{
		`"**.amazonaws.com"`:           "anyone can receive data: amazonaws.com",
		`"*.s3.amazonaws.com"`:         "anyone can receive data: amazonaws.com",
		`"*.github.com"`:               "gist.github.com",
		`"**"`:                         "and 4",
		`"**.corp.test", secret: k`:    "every name that",
		`a.test, ports: 80, secret: k`: "unencrypted",
		`1.0.0.0/4`:                    "line 3: 1.0.0.0/4 has bits",
		`0.0.0.0/4`:                    "a large part",
		`gist.github.com`:              "",
		`"**.corp.test"`:               "",
	} {
		_, warnings, err := Parse([]byte("version: 1\nrules:\n  - {allow: "+rule+"}"), Inputs{})
		got := warnings.Error()
		if err != nil {
			got = err.Error()
		}
		if (want == "") != (got == "") || !strings.Contains(got, want) {
			t.Errorf("%s: %q, want %q", rule, got, want)
		}
	}
}

func TestFromFlags(t *testing.T) {
	base := must(t, "  - {allow: base.test}\n")
	for _, c := range []struct {
		flags Flags
		url   string // allowed
		fault string
	}{
		{Flags{Allow: []string{"a.test"}}, "https://a.test/", ""},
		{Flags{Allow: []string{"a.test:22"}}, "tcp://a.test:22", ""},
		{Flags{Allow: []string{"a.test:80"}}, "http://a.test/", ""},
		{Flags{Allow: []string{"*.a.test"}}, "https://x.a.test/", ""},
		{Flags{Allow: []string{"10.0.0.5:5432"}}, "tcp://10.0.0.5:5432", ""},
		{Flags{Allow: []string{"10.0.0.0/8:22"}}, "tcp://10.9.9.9:22", ""},
		{Flags{Allow: []string{"[2606:4700::1]:22"}}, "tcp://[2606:4700::1]:22", ""},
		{Flags{Allow: []string{"2606:4700::1"}}, "https://[2606:4700::1]/", ""},
		{Flags{Allow: []string{"host.creel.internal:99"}}, "tcp://host.creel.internal:99", ""},
		{Flags{Allow: []string{"a.test"}}, "https://base.test/", ""},
		{Flags{Presets: []string{"tools"}}, "https://tools.test/", ""},
		{Flags{Net: "none"}, "", "--net none: contradicts"},
		{Flags{Net: "host"}, "", "--net host: a sandbox has a network of its own"},
		{Flags{Allow: []string{"http://a.test"}}, "", "want HOST[:PORT], not a URL: --allow a.test:80"},
		{Flags{Allow: []string{"https://u:p@a.test:8443/v1/x"}}, "", "not a URL: --allow a.test:8443; requests to /v1/x alone are allowed by a policy file, `paths: [/v1/x]`"},
		{Flags{Allow: []string{"HTTP://[2606:4700::1]/"}}, "", "not a URL: --allow [2606:4700::1]:80"},
		{Flags{Allow: []string{"ssh://git.test/x"}}, "", "not a URL: --allow git.test:22"},
		{Flags{Allow: []string{"a.test/v1"}}, "", "want HOST[:PORT] without a path: --allow a.test; requests to /v1 alone"},
		{Flags{Allow: []string{"10.0.0.0/33"}}, "", "--allow 10.0.0.0/33: "},
		{Flags{Allow: []string{"a.test:"}}, "", "--allow a.test:: no port"},
		{Flags{Allow: []string{"a.test:x"}}, "", `--allow a.test:x: port "x"`},
		{Flags{Allow: []string{"[::1"}}, "", "--allow [::1: want"},
		{Flags{Allow: []string{""}}, "", "want HOST"},
		{Flags{Allow: []string{"a.test:443/udp"}}, "", "udp needs a policy file: `- {allow: a.test, protocol: udp, ports: PORT}`"},
		{Flags{Allow: []string{"a.test:99/tcp"}}, "tcp://a.test:99", ""},
		{Flags{Allow: []string{"localhost:80"}}, "", "localhost is the sandbox itself; this machine is host.creel.internal, so write --allow host.creel.internal:PORT"},
		{Flags{Allow: []string{"Db.LocalHost."}}, "", "is the sandbox itself"},
		{Flags{Allow: []string{"224.0.0.1"}}, "", "multicast"},
		{Flags{Allow: []string{"base.test"}}, "", "--allow base.test: shadowed"},
		{Flags{Presets: []string{"x"}}, "", `--preset x: preset "x" is not known`},
	} {
		p, _, err := FromFlags(base, c.flags, testInputs)
		if c.fault != "" {
			if err == nil || !strings.Contains(err.Error(), c.fault) {
				t.Errorf("%v: %v, want %s", c.flags, err, c.fault)
			}
			continue
		}
		if err != nil {
			t.Errorf("%v: %v", c.flags, err)
			continue
		}
		if e, err := p.Explain("GET", c.url); err != nil || !e.Decision.Allow {
			t.Errorf("%v: %s: %v %s", c.flags, c.url, err, e.Decision.Reason())
		}
		checkRoundTrip(t, p)
	}
	if p, _, err := FromFlags(nil, Flags{Net: "none"}, Inputs{}); err != nil || p == nil || len(p.Rules) != 0 {
		t.Errorf("--net none: %v %v", p, err)
	}
}

// What a denial suggests must do what it says.
func TestHintsWork(t *testing.T) {
	empty := must(t, "  []")
	for _, url := range []string{"https://a.test/", "http://a.test/", "tcp://a.test:5432", "tcp://8.8.8.8:22", "tcp://[2606:4700::1]:22"} {
		e, err := empty.Explain("GET", url)
		if err != nil || e.Decision.Allow {
			t.Fatal(url, err)
		}
		flag, ok := strings.CutPrefix(e.Decision.Hint(), "--allow ")
		flag = strings.Trim(flag, "'") // as a shell does
		p, _, err := FromFlags(empty, Flags{Allow: []string{flag}}, Inputs{})
		if !ok || err != nil {
			t.Errorf("%s: hint %q: %v", url, e.Decision.Hint(), err)
			continue
		}
		if e, _ := p.Explain("GET", url); !e.Decision.Allow {
			t.Errorf("%s: still denied with --allow %s: %s", url, flag, e.Decision.Reason())
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(whole)
	f.Add("version: 1\nrules:\n  - {allow: '**', methods: GET, paths: ['/a/*/**'], protocol: http}\n  - {deny: 1.0.0.0/8}")
	f.Add("version: 1\nrules: [*a, &a {allow: x}]\ntests: [{deny: tcp://x:1}]")
	f.Fuzz(func(t *testing.T, text string) {
		p, warnings, err := Parse([]byte(text), testInputs)
		_ = warnings.Error()
		if err != nil {
			if p != nil || err.Error() == "" {
				t.Fatalf("%v with %v", p, err)
			}
			return
		}
		checkRoundTrip(t, p)
	})
}

var sameMeaning = cmp.Options{
	cmpopts.IgnoreFields(policy.Rule{}, "Line"), cmpopts.IgnoreFields(policy.Case{}, "Line"), cmpopts.IgnoreUnexported(policy.Policy{}, policy.Rule{}),
	cmpopts.EquateComparable(netip.Prefix{}), cmpopts.EquateEmpty(),
}

func checkRoundTrip(t *testing.T, p *policy.Policy) {
	t.Helper()
	text := Text(p)
	again, _, err := Parse(text, Inputs{})
	if err != nil {
		t.Fatalf("the printed policy does not parse: %v\n%s", err, text)
	}
	if diff := cmp.Diff(p, again, sameMeaning); diff != "" {
		t.Fatalf("printed and parsed:\n%s", diff)
	}
	if got := Text(again); string(got) != string(text) {
		t.Fatalf("printing is not stable:\n%s\n%s", text, got)
	}
}

func must(t testing.TB, rules string) *policy.Policy {
	t.Helper()
	p, _, err := Parse([]byte("version: 1\nrules:\n"+rules), Inputs{})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// The page that people copy from must be right.
func TestDocumentedExample(t *testing.T) {
	page, err := os.ReadFile("../../../docs/policy.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(page), "```yaml\n")
	text, _, closed := strings.Cut(rest, "```")
	if !ok || !closed {
		t.Fatal("docs/policy.md has no example")
	}
	in := Inputs{
		Preset: func(string) ([]policy.Rule, error) { return nil, nil },
		File:   func(string) ([]byte, error) { return []byte(testCA), nil },
	}
	p, _, err := Parse([]byte(text), in)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range p.Cases {
		if got := c.Run(p); got != "" {
			t.Errorf("%s: %s", c, got)
		}
	}
}

// What a stranger's policy may reach beyond the internet is warned of.
func TestWarningsOfWhatIsNear(t *testing.T) {
	for rule, want := range map[string]string{
		"{allow: 169.254.169.254, ports: 80, allow_private: true}":                   "metadata",
		"{allow: 169.254.0.0/16, ports: 80, allow_private: true}":                    "link-local",
		"{allow: a.test, protocol: http, upstream: {address: '169.254.169.254:80'}}": "metadata",
		`{allow: "*.a.test", allow_private: true}`:                                   "private network",
		"{allow: a.test, allow_private: true}":                                       "",
		"{allow: a.test, upstream: {address: '127.0.0.1:80'}}":                       "",
		"{deny: 169.254.169.254}":                                                    "",
	} {
		_, warnings, err := Parse([]byte("version: 1\nrules:\n  - "+rule+"\n"), Inputs{})
		if err != nil {
			t.Fatal(rule, err)
		}
		if want == "" && len(warnings) > 0 || want != "" && (len(warnings) != 1 || !strings.Contains(warnings[0].String(), want)) {
			t.Errorf("%s: %v, want %q", rule, warnings, want)
		}
	}
}
