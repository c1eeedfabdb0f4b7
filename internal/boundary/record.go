package boundary

import (
	"context"
	"fmt"
	"strings"
	"sync"

	"creel/internal/audit"
	"creel/internal/audit/event"
	"creel/internal/boundary/credential"
	"creel/internal/boundary/netstack"
	"creel/internal/policy"
	"creel/internal/policy/tier"
	"creel/internal/sandbox"
)

// record returns when the event is durable; what it announces must not happen
// otherwise.
func (e *Edge) record(ctx context.Context, kind audit.Kind, data any) error {
	return e.append(ctx, e.event(kind, data))
}

func (e *Edge) event(kind audit.Kind, data any) audit.Event {
	return audit.Event{Kind: kind, Sandbox: e.cfg.Sandbox, Data: data}
}

// append is record for events that stand or fall together.
func (e *Edge) append(ctx context.Context, events ...audit.Event) error {
	if err := e.cfg.Audit.Append(ctx, events...); err != nil {
		return fmt.Errorf("record %s: %w", events[0].Kind, err)
	}
	return nil
}

// recordAfter is for what has happened already and must not be lost: it goes on
// record as soon as it can.
func (e *Edge) recordAfter(kind audit.Kind, data any) {
	e.cfg.Owed.Tell(e.event(kind, data))
}

// note is for how something ended whose beginning is on record; nobody waits.
func (e *Edge) note(kind audit.Kind, data any) {
	e.cfg.Audit.Note(e.unrecorded, e.event(kind, data))
}

func (e *Edge) unrecorded(err error) {
	e.cfg.Log.Error("what has happened is not on record", "err", err)
}

func (e *Edge) policyEvent(r Rules, generation int) audit.Event {
	rules := 0
	if r.Policy != nil {
		rules = len(r.Policy.Rules)
	}
	return e.event(event.KindPolicy, event.Policy{Generation: generation, Policy: r.Digest, Rules: rules})
}

// counted is what a guest can bring about at will and what lets nothing
// happen.
type counted struct {
	kind audit.Kind
	to   event.Destination
}

// ruleOf is what destinations are gathered by: a guest can make up any number of
// names and ports, but not of rules.
func ruleOf(c counted) counted {
	return counted{c.kind, event.Destination{Decision: c.to.Decision, Rule: c.to.Rule}}
}

func (e *Edge) recordTallies(tallies []audit.Tally[counted]) error {
	var events []audit.Event
	for _, t := range tallies {
		kind := t.Key.kind
		if t.Others {
			t.Key.to.Decision = event.Deny // allowed names may be among them
			kind = event.KindDenied
		}
		events = append(events, e.event(kind, event.Tally{Destination: t.Key.to, Count: t.Count, Names: t.Distinct, Others: t.Others}))
	}
	return e.append(context.Background(), events...)
}

// recordDropped puts on record what never reached a decision.
func (e *Edge) recordDropped() {
	frames := map[string]uint64{}
	for reason, n := range e.stack.Dropped() {
		if n > 0 {
			frames[netstack.Reason(reason).String()] = n
		}
	}
	if len(frames) > 0 {
		e.recordAfter(event.KindDropped, event.Dropped{Frames: frames})
	}
}

// destination is what a decision was about, for the record. The names that a
// guest asks for may hold anything.
func destination(d policy.Decision) event.Destination {
	out := event.Destination{
		Host: d.Request.Host, Port: d.Request.Port, Protocol: string(d.Request.Protocol),
		Decision: event.Deny, Rule: d.RuleName(), Reason: d.Reason(),
	}
	if out.Host == "" && d.Request.Addr.IsValid() {
		out.Host = d.Request.Addr.String()
	}
	out.Host = tier.Hide(out.Host)
	if d.Allow {
		out.Decision = event.Allow
		if out.Protocol == "" {
			out.Protocol = string(d.Protocol)
		}
	}
	return out
}

// deny counts a denial, for the record and for people.
func (e *Edge) deny(d policy.Decision) {
	if d.Request.Host == "" && namePool.Contains(d.Request.Addr) {
		e.denyAs(d, "no name was given this address", "connect to a name", alikeOf(d))
		return
	}
	e.denyAs(d, d.Reason(), d.Hint(), alikeOf(d))
}

// denyWords is deny for what policy has no words for.
func (e *Edge) denyWords(d policy.Decision, reason, hint string) {
	e.denyAs(d, reason, hint, alikeGreetings(destination(d).Host))
}

func (e *Edge) denyAs(d policy.Decision, reason, hint string, of alike) {
	d.Allow = false
	kind := event.KindDenied
	if d.Request.Op == policy.Resolve {
		kind = event.KindName
	}
	to := destination(d)
	to.Reason = tier.Hide(reason)
	e.tallies.Add(counted{kind, to})
	e.tell(sandbox.Denial{Target: tier.Hide(d.Target()), Reason: to.Reason, Hint: tier.Hide(hint)}, of)
}

// alert puts on record that a mark was about to leave.
func (e *Edge) alert(d policy.Decision, found credential.Found) {
	a := event.Alert{Destination: destination(d), Where: found.Where}
	a.Decision = event.Deny
	a.Alert, a.Name = credential.Mark(found.Mark)
	a.Reason = "a " + a.Alert + " was about to leave"
	denial := sandbox.Denial{
		Target: tier.Hide(d.Target()), Reason: fmt.Sprintf("the %s %q was about to leave in the %s", a.Alert, a.Name, a.Where),
		Hint: "find out who sent it, since no honest task does",
	}
	if first, _ := e.alerts.add(denial, alike{}); first != nil {
		e.recordAfter(event.KindAlert, a)
	} else { // the guest can bring them about at will
		e.tallies.Add(counted{event.KindDenied, a.Destination})
	}
	e.tell(denial, alike{})
	if e.cfg.Alerted != nil {
		e.cfg.Alerted(a)
	}
}

// maxDenials are told apart for people; the rest is counted.
const maxDenials = 256

// denials are what was denied, for people.
type denials struct {
	mu     sync.Mutex
	order  []*sandbox.Denial
	index  map[string]*sandbox.Denial
	groups map[string]*group // by the key of what is alike
	total  int64
}

// add returns the destination where it is new, or what the many have become
// that it is one of; many reports the latter.
func (d *denials) add(what sandbox.Denial, of alike) (first *sandbox.Denial, many bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.total++
	if g := d.groups[of.key]; g != nil && g.whole != nil {
		g.whole.Count++
		return nil, false
	}
	key := what.Target + "\n" + what.Reason
	if seen := d.index[key]; seen != nil {
		seen.Count++
		return nil, false
	}
	if len(d.order) >= maxDenials {
		return nil, false
	}
	if d.index == nil {
		d.index = map[string]*sandbox.Denial{}
	}
	what.Count = 1
	d.index[key] = &what
	d.order = append(d.order, &what)
	told := what
	if of.key != "" && d.joinGroup(of, key) {
		told, many = *d.groups[of.key].whole, true
	}
	return &told, many
}

// Denials are what was denied so far: destinations in the order in which they
// first came, and how many denials there were in all.
func (e *Edge) Denials() (list []sandbox.Denial, total int64) {
	e.denials.mu.Lock()
	defer e.denials.mu.Unlock()
	for _, d := range e.denials.order {
		list = append(list, *d)
	}
	return list, e.denials.total
}

// printable keeps what a guest wrote to what records and people can read.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, s[:min(len(s), 300)])
}
