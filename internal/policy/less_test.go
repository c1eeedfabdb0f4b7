package policy_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	. "creel/internal/policy"
	"creel/internal/policy/syntax"
)

func whole(t testing.TB, text string) *Policy {
	t.Helper()
	if text == "" {
		return nil
	}
	p, _, err := syntax.Parse([]byte("version: 1\n"+text), syntax.Inputs{})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestTakesAway(t *testing.T) {
	const ab = "rules: [{allow: a.test, ports: 443}, {allow: b.test, ports: 443}]\n"
	for name, c := range map[string]struct {
		from, to string
		want     bool
	}{
		"nothing":                {ab, "", true},
		"only denies":            {"", "rules: [{deny: a.test}]\n", true},
		"one rule fewer":         {ab, "rules: [{allow: b.test, ports: 443}]\n", true},
		"the same":               {ab, ab, true},
		"more denies":            {ab, "rules: [{allow: a.test, ports: 443}, {deny: b.test}]\n", true},
		"another rule":           {ab, "rules: [{allow: c.test, ports: 443}]\n", false},
		"of nothing":             {"", ab, false},
		"a deny fewer":           {"rules: [{allow: a.test, ports: 443}, {deny: x.a.test}]\n", "rules: [{allow: a.test, ports: 443}]\n", false},
		"a budget":               {ab, "budget: {bytes_out: 1MiB}\n" + ab, true},
		"a smaller budget":       {"budget: {bytes_out: 2MiB}\n" + ab, "budget: {bytes_out: 1MiB}\n" + ab, true},
		"a larger budget":        {"budget: {bytes_out: 1MiB}\n" + ab, "budget: {bytes_out: 2MiB}\n" + ab, false},
		"no budget any more":     {"budget: {hosts: 1}\n" + ab, ab, false},
		"what a narrow rule hid": {"rules: [{allow: a.test, ports: 443, methods: [GET]}, {allow: \"*.test\", ports: 443}]\n", "rules: [{allow: \"*.test\", ports: 443}]\n", false},
		"the broad one":          {"rules: [{allow: a.test, ports: 443, methods: [GET]}, {allow: \"*.other\", ports: 443}]\n", "rules: [{allow: a.test, ports: 443, methods: [GET]}]\n", true},
		"an owner's address": {"rules: [{allow: api.test, ports: 7000, protocol: http, methods: [GET]}, {allow: 93.184.216.0/24, ports: 7000, protocol: tcp}]\n",
			"rules: [{allow: 93.184.216.0/24, ports: 7000, protocol: tcp}]\n", false},
		"an owner of a budget": {"rules: [{allow: api.test, ports: 443, budget: {requests: 1}}, {allow: 93.184.216.0/24, ports: 443}]\n",
			"rules: [{allow: 93.184.216.0/24, ports: 443}]\n", false},
		"an owner by a deny": {"rules: [{allow: api.test, ports: 443}, {deny: api.test, paths: /x}, {allow: 93.184.216.0/24, ports: 443}]\n",
			"rules: [{deny: api.test, paths: /x}, {allow: 93.184.216.0/24, ports: 443}]\n", false},
		"an owner that is denied": {"rules: [{allow: api.test, ports: 443, budget: {requests: 1}, protocol: tcp}, {allow: 93.184.216.0/24, ports: 443, protocol: tcp}]\n",
			"rules: [{allow: api.test, ports: 443, budget: {requests: 1}, protocol: tcp}, {allow: 93.184.216.0/24, ports: 443, protocol: tcp}, {deny: api.test, methods: [GET]}]\n", false},
		"an owner of an upstream": {"rules: [{allow: api.test, ports: 443, methods: [GET], upstream: {address: \"gw.test:8443\"}}, {allow: 93.184.216.0/24, ports: 8443}]\n",
			"rules: [{allow: 93.184.216.0/24, ports: 8443}]\n", false},
		"an owner on another port": {"rules: [{allow: api.test, ports: 443, methods: [GET]}, {allow: 93.184.216.0/24, ports: 22}]\n",
			"rules: [{allow: 93.184.216.0/24, ports: 22}]\n", true},
		"no owner":                {"rules: [{allow: api.test, ports: 443}, {allow: 93.184.216.0/24, ports: 443}]\n", "rules: [{allow: 93.184.216.0/24, ports: 443}]\n", true},
		"does not end the task":   {"on_alert: end\n" + ab, ab, false},
		"does not end it, of one": {"on_alert: end\n" + ab, "", true},
	} {
		if got := TakesAway(whole(t, c.from), whole(t, c.to)); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// Where it says so, nothing is allowed that was not.
func TestTakesAwayNeverGives(t *testing.T) {
	hosts := []string{"a.test", "x.a.test", "\"*.test\"", "\"**.test\"", "\"*.a.test\"", "10.0.0.0/8", "10.1.0.0/16", "10.1.1.1"}
	options := []string{"", ", methods: [GET]", ", paths: [/x/**]", ", protocol: tcp", ", allow_private: true", ", methods: [GET], allow_private: true", ", budget: {connections: 5}",
		", methods: [GET], upstream: {address: \"gw.test:80\"}"}
	random := rand.New(rand.NewPCG(1, 2))
	rule := func() string {
		host := hosts[random.IntN(len(hosts))]
		if random.IntN(4) == 0 {
			return fmt.Sprintf("  - {deny: %s%s}\n", host, []string{"", ", ports: 80"}[random.IntN(2)])
		}
		return fmt.Sprintf("  - {allow: %s, ports: %s%s}\n", host, []string{"80", "443", "80-443"}[random.IntN(3)], options[random.IntN(len(options))])
	}
	parse := func(rules []string) *Policy {
		p, _, err := syntax.Parse([]byte("version: 1\nrules:\n"+strings.Join(rules, "")), syntax.Inputs{})
		if err != nil {
			return nil
		}
		return p
	}
	var asked []Request
	for _, host := range []string{"a.test", "x.a.test", "b.test", "y.x.a.test", ""} {
		for _, addr := range []string{"", "1.1.1.1", "10.1.1.1", "10.2.0.1"} {
			for _, port := range []uint16{80, 443, 100} {
				for _, op := range []Op{Resolve, Connect, Dial, Ask} {
					for _, protocol := range []Protocol{TLS, HTTP, TCP, UDP} {
						for _, path := range []string{"/", "/x/y"} {
							r := Request{Op: op, Host: host, Port: port, Protocol: protocol, Method: "POST", Path: path}
							if addr != "" {
								r.Addr = netip.MustParseAddr(addr)
							}
							asked = append(asked, r)
						}
					}
				}
			}
		}
	}
	said := 0
	for range 3000 {
		rules := map[string]bool{}
		for range 2 + random.IntN(4) {
			rules[rule()] = true
		}
		var before, after []string
		for r := range rules {
			before = append(before, r)
			if random.IntN(3) > 0 {
				after = append(after, r)
			}
		}
		if random.IntN(3) == 0 {
			after = append(after, rule())
		}
		from, to := parse(before), parse(after)
		if from == nil || to == nil || !TakesAway(from, to) {
			continue
		}
		said++
		for _, r := range asked {
			now, was := to.Decide(r), from.Decide(r)
			if now.Allow && (!was.Allow || was.Inspect && !now.Inspect) {
				t.Fatalf("%+v was denied by\n%s and is allowed by\n%s", r, strings.Join(before, ""), strings.Join(after, ""))
			}
			if !now.Allow || r.Host != "" || r.Op != Connect {
				continue
			}
			// A connection by address must not pass by more names than before.
			owners := to.Owners(r.Port)
			for _, o := range from.Owners(r.Port) {
				if !slices.Contains(owners, o) {
					t.Fatalf("%s is kept from those who connect by address, %+v, by\n%s and not by\n%s", o.Host, r, strings.Join(before, ""), strings.Join(after, ""))
				}
			}
			for _, name := range []string{"a.test", "x.a.test", "b.test", "y.x.a.test"} {
				if to.Named(r, name).Allow && !from.Named(r, name).Allow {
					t.Fatalf("%+v, calling %s, was denied by\n%s and is allowed by\n%s", r, name, strings.Join(before, ""), strings.Join(after, ""))
				}
			}
		}
	}
	if said < 100 {
		t.Errorf("it said so of %d pairs; the test looks at nothing", said)
	}
}
