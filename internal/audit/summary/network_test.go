package summary

import (
	"fmt"
	"strings"
	"testing"

	"creel/internal/audit"
	"creel/internal/audit/event"
	"creel/internal/audit/receipt"

	"github.com/google/go-cmp/cmp"
)

func to(host string, port uint16, decision string) event.Destination {
	return event.Destination{Host: host, Port: port, Decision: decision}
}

// ran is the receipt of a run of which a keeper has written the log.
func ran(t *testing.T, budget map[string]int64, keeper func(add func(audit.Kind, any))) receipt.Receipt {
	t.Helper()
	s := begin(t)
	s.add(s.ledger, "aa", audit.KindAdmitted, event.Admitted{Name: "web", Policy: "sha256:22", Budget: budget})
	s.run("aa", func(l *audit.Log) {
		keeper(func(kind audit.Kind, data any) { s.add(l, "aa", kind, data) })
	}, true)
	got, err := s.of("aa")
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func TestReceiptTellsOfTheNetwork(t *testing.T) {
	limits := map[string]int64{"bytes_out": 100, "connections": 9, "hosts": 2, "requests_per_minute": 60}
	got := ran(t, limits, func(add func(audit.Kind, any)) {
		add(event.KindPolicy, event.Policy{Generation: 1, Policy: "sha256:22"})
		add(event.KindName, event.Tally{Destination: to("only-asked.example", 0, event.Allow), Count: 5})
		add(event.KindName, event.Tally{Destination: to("evil.example", 0, event.Deny), Count: 3})
		for id, out := range []int64{60, 30} {
			add(event.KindLookup, to("api.example", 443, event.Allow))
			add(event.KindConnection, event.Connection{Destination: to("api.example", 443, event.Allow), ID: int64(id), Address: "192.0.2.7:443"})
			add(event.KindRequest, event.Request{Destination: to("api.example", 443, event.Allow), ID: 7})
			add(event.KindSecret, event.Secret{Destination: to("api.example", 443, event.Allow), Name: []string{"TOKEN", "KEY"}[id]})
			add(event.KindDisconnected, event.Disconnected{ID: int64(id), Host: "api.example", Port: 443, BytesOut: out, BytesIn: 1000})
		}
		add(event.KindSecret, event.Secret{Destination: to("api.example", 443, event.Allow), Name: "TOKEN"})
		add(event.KindConnection, event.Connection{Destination: to("api.example", 22, event.Allow), ID: 9})
		add(event.KindDisconnected, event.Disconnected{ID: 9, Host: "api.example", Port: 22, Error: "refused"})
		add(event.KindConnection, event.Connection{Destination: to("api.example", 22, event.Allow), ID: 10})
		add(event.KindDisconnected, event.Disconnected{ID: 10, Host: "api.example", Port: 22}) // it ended in order, with nothing said
		for _, n := range []int64{2, 4} {
			add(event.KindDenied, event.Tally{Destination: to("10.0.0.1", 22, event.Deny), Count: n})
			add(event.KindDenied, event.Tally{Count: n, Others: true})
			add(event.KindAlert, event.Alert{Destination: to("evil.example", 80, event.Deny), Alert: "stand-in", Name: "KEY", Where: "body"})
			add(event.KindPublished, event.Published{From: fmt.Sprint("127.0.0.1:", n), Port: 80, Proto: "tcp"})
		}
		add(event.KindDenied, event.Tally{Destination: event.Destination{Decision: event.Deny}, Marked: event.Marked{Alert: "stand-in", Name: "OTHER"}, Count: 1})
		add(event.KindPublished, event.Published{From: "127.0.0.1", Port: 80, Proto: "tcp", Minute: true})
		add(event.KindVisits, event.Visits{From: "127.0.0.1", Port: 80, Proto: "tcp", Count: 40})
		add(event.KindBudget, event.Budget{Limit: "bytes_out", Host: "api.example"})
		add(event.KindBudget, event.Budget{Limit: "requests", Rule: "api", Host: "api.example"})
		add(event.KindBudget, event.Budget{Limit: "hosts", Rule: "api", Host: "api.example"})
	})
	want := receipt.Receipt{
		Policies: []string{"sha256:22"}, Secrets: []string{"KEY", "TOKEN"},
		Hosts: []receipt.Host{
			{Host: "api.example", Port: 443, Decision: "allow", Count: 2, BytesOut: 90, BytesIn: 2000},
			{Host: "api.example", Port: 22, Decision: "allow", Count: 2, Failed: 1},
			{Host: "10.0.0.1", Port: 22, Decision: "deny", Count: 6},
			{Host: "evil.example", Decision: "deny", Count: 3},
			{Decision: "deny", Count: 7, Others: true},
		},
		Ports: []receipt.Port{{Port: 80, Proto: "tcp", Count: 42}},
		Budgets: []receipt.Budget{
			{Name: "bytes_out", Limit: 100, Used: 90, Spent: true}, {Name: "connections", Limit: 9, Used: 4}, {Name: "hosts", Limit: 2, Used: 1},
			{Name: "requests_per_minute", Limit: 60}, {Name: "hosts", Rule: "api", Spent: true}, {Name: "requests", Rule: "api", Spent: true},
		},
		Alerts: []receipt.Alert{{Alert: "stand-in", Name: "KEY", Where: "body", Host: "evil.example", Port: 80, Count: 2}, {Alert: "stand-in", Name: "OTHER", Count: 1}},
	}
	said := receipt.Receipt{Policies: got.Policies, Secrets: got.Secrets, Hosts: got.Hosts, Ports: got.Ports, Budgets: got.Budgets, Alerts: got.Alerts,
		Contradictions: got.Contradictions}
	if diff := cmp.Diff(want, said); diff != "" {
		t.Error(diff)
	}
}

// A guest can ask for as many names as it likes, and for one that is allowed
// among them.
func TestReceiptIsBoundedAndHidesNothingThatWasReached(t *testing.T) {
	n := newNetwork()
	take := func(kind audit.Kind, data string) {
		t.Helper()
		if err := n.take(audit.Record{Kind: kind, Data: []byte(data)}); err != nil {
			t.Fatal(err)
		}
	}
	const guests = maxApart + 500
	for i := range guests {
		take(event.KindDenied, fmt.Sprintf(`{"host":"n%d.example","decision":"deny","count":2}`, i))
		take(event.KindAlert, fmt.Sprintf(`{"host":"n%d.example","decision":"deny","alert":"canary","name":"aws","where":"name"}`, i))
	}
	for i := range guests {
		take(event.KindConnection, fmt.Sprintf(`{"host":"h%d.example","port":443,"decision":"allow"}`, i%(guests/2)))
	}
	take(event.KindConnection, `{"host":"api.example","port":443,"decision":"allow"}`)
	take(event.KindDisconnected, `{"host":"api.example","port":443,"bytesOut":5,"bytesIn":9}`)
	for i := range guests / 2 {
		take(event.KindDisconnected, fmt.Sprintf(`{"host":"h%d.example","port":443,"bytesOut":1,"bytesIn":2}`, i))
	}
	var out receipt.Receipt
	n.fill(&out, map[string]int64{"hosts": 9})
	if len(out.Hosts) != 2*(most+1) || out.Hosts[0] != (receipt.Host{Host: "api.example", Port: 443, Decision: "allow", Count: 1, BytesOut: 5, BytesIn: 9}) {
		t.Fatalf("%d hosts, the first %+v", len(out.Hosts), out.Hosts[0])
	}
	const more = guests/2 - (most - 1)
	if h := out.Hosts[most]; h != (receipt.Host{Decision: "allow", Others: true, Count: 2 * more, BytesOut: more, BytesIn: 2 * more}) {
		t.Errorf("of those that were reached the rest is %+v", h)
	}
	denied := int64(0)
	for _, h := range out.Hosts[most+1:] {
		denied += h.Count
	}
	if rest := out.Hosts[2*most+1]; !rest.Others || rest.Host != "" || rest.Decision != "deny" || denied != 2*guests {
		t.Errorf("of those that were denied the rest is %+v, %d denials in all", rest, denied)
	}
	if a := out.Alerts; len(a) != most+1 || a[most] != (receipt.Alert{Others: true, Count: guests - most}) {
		t.Errorf("%d alerts, the last %+v", len(a), a[len(a)-1])
	}
	if len(n.denied) > maxApart+1 || len(n.alerts) > maxApart+1 || out.Budgets[0].Used != guests/2+1 {
		t.Errorf("%d denied hosts and %d alerts are held apart, %d hosts were used", len(n.denied), len(n.alerts), out.Budgets[0].Used)
	}
}

// More names than are told apart are counted together.
func TestMoreIsReachedThanIsToldApart(t *testing.T) {
	hosts := map[place]*receipt.Host{}
	for i := range maxApart + 3 {
		at(hosts, place{fmt.Sprint(i), 1}).Count++
	}
	if len(hosts) != maxApart+1 || hosts[place{}].Count != 3 {
		t.Errorf("%d entries, others %+v", len(hosts), hosts[place{}])
	}
	n := network{reached: hosts}
	if got := len(n.names()); got != maxApart {
		t.Errorf("%d names", got)
	}
}

// The ledger says which policies were let in, the log which came into force.
func TestPoliciesInForce(t *testing.T) {
	first := event.Policy{Generation: 1, Policy: "sha256:11"}
	for name, c := range map[string]struct {
		admitted   []string // after sha256:11
		force      []event.Policy
		want       []string
		contradict string
		limit      int64
	}{
		"killed before it was in force": {nil, nil, []string{"sha256:11"}, "", 1},
		"changed and back": {[]string{"sha256:22", "sha256:11"}, []event.Policy{first, {Generation: 2, Policy: "sha256:22"}, {Generation: 3, Policy: "sha256:11"}},
			[]string{"sha256:11", "sha256:22", "sha256:11"}, "", 1},
		"let in, never in force": {[]string{"sha256:22", "sha256:33"}, []event.Policy{first, {Generation: 2, Policy: "sha256:33"}},
			[]string{"sha256:11", "sha256:33"}, "", 3},
		"never let in":    {nil, []event.Policy{first, {Generation: 2, Policy: "sha256:forged"}}, []string{"sha256:11"}, "sha256:forged", 1},
		"another at once": {[]string{"sha256:22"}, []event.Policy{{Generation: 1, Policy: "sha256:22"}}, []string{"sha256:11"}, "sha256:22", 1},
	} {
		t.Run(name, func(t *testing.T) {
			s := begin(t)
			for i, p := range append([]string{"sha256:11"}, c.admitted...) {
				budget := map[string]int64{"requests": int64(p[len(p)-1] - '0')}
				s.add(s.ledger, "aa", audit.KindAdmitted, event.Admitted{Name: fmt.Sprint("web", i), Policy: p, Budget: budget})
			}
			s.add(s.ledger, "aa", audit.KindRefused, event.Admitted{Name: "web", Policy: "sha256:refused"})
			s.run("aa", func(l *audit.Log) {
				for _, p := range c.force {
					s.add(l, "aa", event.KindPolicy, p)
				}
			}, true)
			s.run("aa", func(l *audit.Log) { // a helper has a boundary of its own
				s.add(l, "aa", event.KindPolicy, event.Policy{Generation: 1, Policy: "sha256:00"})
			}, true)
			got, err := s.of("aa")
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, got.Policies); diff != "" {
				t.Error(diff)
			}
			if all := strings.Join(got.Contradictions, "\n"); !strings.Contains(all, c.contradict) || (all == "") != (c.contradict == "") {
				t.Errorf("contradictions %q, want %q", all, c.contradict)
			}
			if got.Name != fmt.Sprint("web", len(c.admitted)) || got.Budgets[0].Limit != c.limit {
				t.Errorf("name %q, budgets %+v", got.Name, got.Budgets)
			}
		})
	}
}

// To take everything away on a full disk leaves no admission, and contradicts
// nothing.
func TestNoPolicyNeedsNoAdmission(t *testing.T) {
	s := begin(t)
	s.add(s.ledger, "aa", audit.KindAdmitted, event.Admitted{Name: "web", Policy: "sha256:11"})
	s.run("aa", func(l *audit.Log) {
		s.add(l, "aa", event.KindPolicy, event.Policy{Generation: 1, Policy: "sha256:11"})
		s.add(l, "aa", event.KindPolicy, event.Policy{Generation: 2, Policy: event.NoPolicy})
	}, true)
	got, err := s.of("aa")
	if err != nil || len(got.Contradictions) > 0 || !cmp.Equal(got.Policies, []string{"sha256:11", event.NoPolicy}) {
		t.Errorf("%v, %v, %v", got.Policies, got.Contradictions, err)
	}
}

// A name is taken by who runs under it, and another policy is no new sandbox.
func TestNamedIsWhoRan(t *testing.T) {
	s := begin(t)
	run := func(id string) { s.run(id, func(*audit.Log) {}, true) }
	s.admitted("aa", "web")
	run("aa")
	s.admitted("bb", "web")
	run("bb")
	s.admitted("cc", "web") // the name was taken, it never ran
	s.admitted("aa", "web") // another policy
	if got, err := Named(t.Context(), s.dir, "web"); got != "bb" || err != nil {
		t.Errorf("web is %q, %v", got, err)
	}
	if got, err := Named(t.Context(), s.dir, "a"); got != "aa" || err != nil {
		t.Errorf("a is %q, %v", got, err)
	}
}
