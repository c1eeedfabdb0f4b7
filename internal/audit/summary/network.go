package summary

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"creel/internal/audit"
	"creel/internal/audit/event"
	"creel/internal/audit/receipt"
)

const (
	// most is how many entries of a kind a receipt tells apart. What a guest
	// could make more of is told in one entry for all others.
	most = 1000
	// maxApart is how many are told apart while the log is read, of hosts for
	// each decision.
	maxApart = 1 << 14
)

// network is what the logs tell of the edge.
type network struct {
	reached map[place]*receipt.Host
	denied  map[place]*receipt.Host
	alerts  map[receipt.Alert]int64 // by all but the count
	ports   map[receipt.Port]int64  // likewise
	secrets map[string]struct{}
	spent   map[event.Budget]struct{} // by limit and rule
	used    map[string]int64          // of each limit of the task
}

// place is a destination; the zero one stands for all others.
type place struct {
	host string
	port uint16
}

func newNetwork() network {
	return network{
		reached: map[place]*receipt.Host{}, denied: map[place]*receipt.Host{}, alerts: map[receipt.Alert]int64{}, ports: map[receipt.Port]int64{},
		secrets: map[string]struct{}{}, spent: map[event.Budget]struct{}{}, used: map[string]int64{},
	}
}

// take counts one record.
func (n *network) take(r audit.Record) error {
	switch r.Kind {
	case event.KindConnection:
		return with(r, func(c event.Connection) {
			n.used["connections"]++
			at(n.reached, place{c.Host, c.Port}).Count++
		})
	case event.KindDisconnected:
		return with(r, n.disconnected)
	case event.KindRequest:
		n.used["requests"]++
	case event.KindName, event.KindDenied:
		return with(r, func(t event.Tally) {
			if t.Alert != "" {
				n.alert(receipt.Alert{Alert: t.Alert, Name: t.Name, Where: t.Where, Host: t.Host, Port: int(t.Port)}, t.Count)
			}
			switch {
			case t.Others: // of no decision in particular; few of them are names that were allowed
				at(n.denied, place{}).Count += t.Count
			case t.Decision != event.Deny: // a name that was allowed is not reached by being known
			default: // without a host: names of one rule that were gathered
				at(n.denied, place{t.Host, t.Port}).Count += t.Count
			}
		})
	case event.KindFailed:
		return with(r, func(t event.Tally) { at(n.reached, place{t.Host, t.Port}).Failed += t.Count })
	case event.KindSecret:
		return with(r, func(s event.Secret) { n.secrets[s.Name] = struct{}{} })
	case event.KindBudget:
		return with(r, func(b event.Budget) { n.spent[event.Budget{Limit: b.Limit, Rule: b.Rule}] = struct{}{} })
	case event.KindAlert:
		return with(r, func(a event.Alert) {
			n.alert(receipt.Alert{Alert: a.Alert, Name: a.Name, Where: a.Where, Host: a.Host, Port: int(a.Port)}, 1)
		})
	case event.KindPublished:
		return with(r, func(p event.Published) {
			count := int64(1)
			if p.Minute {
				count = 0 // visits say it
			}
			n.ports[receipt.Port{Port: int(p.Port), Proto: p.Proto}] += count
		})
	case event.KindVisits:
		return with(r, func(v event.Visits) { n.ports[receipt.Port{Port: int(v.Port), Proto: v.Proto}] += v.Count })
	}
	return nil
}

func (n *network) alert(a receipt.Alert, count int64) {
	if _, known := n.alerts[a]; !known && len(n.alerts) >= maxApart {
		a = receipt.Alert{Others: true}
	}
	n.alerts[a] += count
}

func (n *network) disconnected(d event.Disconnected) {
	h := at(n.reached, place{d.Host, d.Port})
	h.BytesOut += d.BytesOut
	h.BytesIn += d.BytesIn
	n.used["bytes_out"] += d.BytesOut
	n.used["bytes_in"] += d.BytesIn
	if d.Error != "" && d.BytesOut == 0 && d.BytesIn == 0 {
		h.Failed++
	}
}

// at is the entry that counts for a place.
func at(hosts map[place]*receipt.Host, p place) *receipt.Host {
	if hosts[p] == nil && len(hosts) >= maxApart {
		p = place{}
	}
	if hosts[p] == nil {
		hosts[p] = &receipt.Host{Host: p.host, Port: int(p.port), Others: p == place{}}
	}
	return hosts[p]
}

// fill puts what was counted into the receipt; limits are those of the task.
func (n *network) fill(out *receipt.Receipt, limits map[string]int64) {
	n.used["hosts"] = int64(len(n.names()))
	out.Hosts = append(listed(n.reached, event.Allow), listed(n.denied, event.Deny)...)
	out.Secrets = slices.Sorted(maps.Keys(n.secrets))
	out.Budgets = n.budgets(limits)
	out.Alerts = n.listedAlerts()
	for p, count := range n.ports {
		p.Count = count
		out.Ports = append(out.Ports, p)
	}
	slices.SortFunc(out.Ports, func(a, b receipt.Port) int {
		return cmp.Or(cmp.Compare(a.Port, b.Port), strings.Compare(a.Proto, b.Proto))
	})
}

// names are the hosts that were connected to, whatever the port.
func (n *network) names() map[string]struct{} {
	out := map[string]struct{}{}
	for p, h := range n.reached {
		if !h.Others {
			out[p.host] = struct{}{}
		}
	}
	return out
}

// listed are the destinations of one decision, those first to which most has
// gone, and at the end one entry for what is beyond the limit. What was reached
// has a list of its own: a guest that is denied often must not crowd it out.
func listed(hosts map[place]*receipt.Host, decision string) (out []receipt.Host) {
	rest := receipt.Host{Decision: decision, Others: true}
	add := func(h receipt.Host) {
		rest.Count += h.Count
		rest.Failed += h.Failed
		rest.BytesOut += h.BytesOut
		rest.BytesIn += h.BytesIn
	}
	for _, h := range hosts {
		if h.Others {
			add(*h)
			continue
		}
		entry := *h
		entry.Decision = decision
		out = append(out, entry)
	}
	slices.SortFunc(out, func(a, b receipt.Host) int {
		return cmp.Or(cmp.Compare(b.BytesOut, a.BytesOut), cmp.Compare(b.Count, a.Count), strings.Compare(a.Host, b.Host), cmp.Compare(a.Port, b.Port))
	})
	for _, h := range out[min(most, len(out)):] {
		add(h)
	}
	out = out[:min(most, len(out))]
	if rest != (receipt.Host{Decision: decision, Others: true}) {
		out = append(out, rest)
	}
	return out
}

func (n *network) listedAlerts() (out []receipt.Alert) {
	rest := receipt.Alert{Others: true}
	for a, count := range n.alerts {
		if a.Others {
			rest.Count += count
			continue
		}
		a.Count = count
		out = append(out, a)
	}
	slices.SortFunc(out, func(a, b receipt.Alert) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), strings.Compare(a.Alert, b.Alert), strings.Compare(a.Name, b.Name),
			strings.Compare(a.Host, b.Host), cmp.Compare(a.Port, b.Port), strings.Compare(a.Where, b.Where))
	})
	for _, a := range out[min(most, len(out)):] {
		rest.Count += a.Count
	}
	out = out[:min(most, len(out))]
	if rest.Count > 0 {
		out = append(out, rest)
	}
	return out
}

// budgets are the limits of the task, and those of rules that were used up.
func (n *network) budgets(limits map[string]int64) (out []receipt.Budget) {
	for _, name := range slices.Sorted(maps.Keys(limits)) {
		_, spent := n.spent[event.Budget{Limit: name}]
		out = append(out, receipt.Budget{Name: name, Limit: limits[name], Used: n.used[name], Spent: spent})
	}
	rules := len(out)
	for b := range n.spent {
		if _, listed := limits[b.Limit]; b.Rule != "" || !listed {
			out = append(out, receipt.Budget{Name: b.Limit, Rule: b.Rule, Spent: true})
		}
	}
	slices.SortFunc(out[rules:], func(a, b receipt.Budget) int {
		return cmp.Or(strings.Compare(a.Rule, b.Rule), strings.Compare(a.Name, b.Name))
	})
	return out
}
