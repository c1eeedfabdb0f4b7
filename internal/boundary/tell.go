package boundary

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"sync"

	"creel/internal/audit/event"
	"creel/internal/boundary/egress"
	"creel/internal/policy"
	"creel/internal/policy/tier"
	"creel/internal/sandbox"

	"golang.org/x/net/publicsuffix"
)

// maxAlike destinations of one kind are told apart for people. Beyond them they
// are one line: nobody decides about thousands of names, and a task that is
// honest has no use for them.
const maxAlike = 16

// alike is what a denied destination is one of.
type alike struct {
	key    string // "": nothing
	whole  sandbox.Denial
	parent string // of names; "" for ports
}

// alikeOf groups names by the domain that somebody registered, ports and
// requests by their host.
func alikeOf(d policy.Decision) alike {
	req := d.Request
	host := req.Host
	if host == "" {
		host = req.Addr.String()
	}
	switch req.Op {
	case policy.Resolve:
		parent, err := publicsuffix.EffectiveTLDPlusOne(host)
		if err != nil {
			return alike{} // it is no name, or of nobody
		}
		return alike{key: "name " + parent, parent: parent, whole: sandbox.Denial{
			Target: "*." + parent, Reason: fmt.Sprintf("more than %d different names below it were asked for", maxAlike),
			Hint: "find out who asks: data is carried out in such names, and none of these was looked up",
		}}
	case policy.Connect:
		return alike{key: "port " + host, whole: sandbox.Denial{
			Target: host, Reason: fmt.Sprintf("more than %d different ports of it were tried", maxAlike),
			Hint: "find out who looks for open ports",
		}}
	case policy.Ask:
		return alike{key: "request " + host, whole: sandbox.Denial{
			Target: host, Reason: fmt.Sprintf("more than %d different requests to it were denied", maxAlike),
			Hint: "`creel audit query --decision deny` lists them",
		}}
	}
	return alike{}
}

// alikeGreetings groups what is wrong with how a host was spoken to.
func alikeGreetings(host string) alike {
	return alike{key: "greeting " + host, whole: sandbox.Denial{
		Target: host, Reason: fmt.Sprintf("it was spoken to in more than %d different ways that are not allowed", maxAlike),
		Hint: "`creel audit query --decision deny` lists them",
	}}
}

// knocked counts who knocks at the sandbox's own gateway, where nothing is open
// but names: whatever the port, it is one destination.
func (e *Edge) knocked(_ netip.AddrPort, udp bool) {
	to := event.Destination{Host: gatewayAddress.String(), Decision: event.Deny, Reason: "no port of the gateway is open"}
	if udp {
		to.Protocol = string(policy.UDP)
	}
	e.tallies.Add(counted{kind: event.KindDenied, to: to})
	e.tell(sandbox.Denial{Target: to.Host, Reason: to.Reason, Hint: "find out who looks for open ports"}, alike{})
}

// tell adds a denial to what people are told.
func (e *Edge) tell(what sandbox.Denial, a alike) {
	told, alert := e.denials.add(what, a)
	e.notify(told)
	if alert != nil {
		e.alertNames(*alert)
	}
}

// notify tells of what is new.
func (e *Edge) notify(told []sandbox.Denial) {
	if e.cfg.Denied == nil {
		return
	}
	for _, d := range told {
		e.cfg.Denied(d)
	}
}

// alertNames puts on record that names are asked for by the dozen.
func (e *Edge) alertNames(of alike) {
	a := event.Alert{
		Destination: event.Destination{Host: tier.Hide(of.whole.Target), Decision: event.Deny, Reason: of.whole.Reason},
		Alert:       event.AlertNames, Name: tier.Hide(of.parent), Where: "name",
	}
	e.recordAfter(event.KindAlert, a)
	if e.cfg.Alerted != nil {
		e.cfg.Alerted(a)
	}
}

// maxTroubles are told apart for people.
const maxTroubles = 64

// troubles are what was allowed and did not work, for people.
type troubles struct {
	mu      sync.Mutex
	order   []*trouble
	swapped map[string]bool // placeholders that were swapped at least once
}

type trouble struct {
	sandbox.Trouble
	unless string // a secret whose use shows that there is none
}

func (t *troubles) add(what trouble) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, known := range t.order {
		if known.Target == what.Target && known.Reason == what.Reason {
			known.Count++
			return
		}
	}
	if len(t.order) < maxTroubles {
		what.Count = 1
		t.order = append(t.order, &what)
	}
}

func (t *troubles) noteSwap(name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.swapped == nil {
		t.swapped = map[string]bool{}
	}
	t.swapped[name] = true
}

// Troubles are what was allowed so far and did not work.
func (e *Edge) Troubles() (list []sandbox.Trouble) {
	e.troubles.mu.Lock()
	defer e.troubles.mu.Unlock()
	for _, t := range e.troubles.order {
		if !e.troubles.swapped[t.unless] {
			list = append(list, t.Trouble)
		}
	}
	return list
}

// targetOf is a flow's destination, for people.
func targetOf(f *flow) string {
	host := f.req.Host
	if host == "" {
		host = f.req.Addr.String()
	}
	return tier.Hide(net.JoinHostPort(host, strconv.Itoa(int(f.req.Port))))
}

// upstreamFailed tells why a destination that is allowed could not be had. One
// that never came as far as a dial goes on record here: there is no connection
// whose end could say it.
func (e *Edge) upstreamFailed(f *flow, err error, dialled bool) {
	class := egress.Class(err)
	reason, hint := egress.Explain(class)
	if reason == "" {
		return // it was denied, or nobody wanted it any more
	}
	if !dialled {
		to := destination(policy.Decision{Request: f.req, Rule: f.charged(), Allow: true, Why: policy.WhyRule})
		to.Reason = class
		e.tallies.Add(counted{kind: event.KindFailed, to: to})
	}
	e.troubles.add(trouble{Trouble: sandbox.Trouble{Target: targetOf(f), Reason: reason, Hint: hint}})
}

// unread tells of a connection that nobody looks into and that leads to where a
// placeholder belongs: it is not swapped there. That is none of a task's
// trouble whose placeholder is swapped elsewhere.
func (e *Edge) unread(f *flow) {
	for _, name := range e.wallet.Load().PlaceholdersFor(f.req.Host) {
		e.troubles.add(trouble{unless: name, Trouble: sandbox.Trouble{
			Target: targetOf(f),
			Reason: fmt.Sprintf("the placeholder of %q is not swapped here: rule %q names no secret, so that nobody looks into the connection", name, f.charged().Name),
			Hint:   fmt.Sprintf("write `secret: %s` in the rule", name),
		}})
	}
}
