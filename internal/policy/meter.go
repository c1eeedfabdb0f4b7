package policy

import (
	"sync"
	"time"
)

// Usage is what one act takes from the budgets. Bytes are payload, counted
// before they are forwarded.
type Usage struct {
	BytesOut, BytesIn, Requests, Connections int64
	Host                                     string // set with Connections: the destination
}

// MaxHosts bounds the destinations that a Meter remembers, and so a budget of
// hosts.
const MaxHosts = 1 << 16

// Meter counts what a task used, for the task and for each rule. It outlives
// connections and policy generations, so that neither resets a budget. The
// zero Meter is ready; it is safe for use by several goroutines.
type Meter struct {
	mu    sync.Mutex
	task  counters
	rules map[string]*counters // by Rule.key
}

type counters struct {
	used  Usage
	hosts map[string]struct{}
	spent string // the first total that was exceeded

	// perSecond holds the requests of the minute that ends at last, one slot a
	// second.
	perSecond [60]int64
	last      int64 // Unix seconds
}

// Use charges an act to the task and to the rule that allowed it, or denies it
// and charges nothing. A total that would be exceeded is spent from then on:
// every later Use of the same scope is denied, and [Meter.Spent] says so, for
// what is open to be closed. Only requests_per_minute recovers by waiting.
func (m *Meter) Use(p *Policy, rule *Rule, u Usage, now time.Time) Decision {
	m.mu.Lock()
	defer m.mu.Unlock()
	if p == nil || rule == nil || rule.Deny {
		return Decision{Why: WhyNoRule}
	}
	mine := m.counters(rule)
	m.task.advance(now)
	mine.advance(now)
	if limit := m.task.exceeds(&p.Budget, &u); limit != "" {
		return Decision{Why: WhyBudget, Limit: limit}
	}
	if limit := mine.exceeds(&rule.Budget, &u); limit != "" {
		return Decision{Why: WhyBudget, Limit: limit, Rule: rule}
	}
	m.task.add(&u)
	mine.add(&u)
	return Decision{Allow: true, Why: WhyRule, Rule: rule}
}

// UseTask is Use for what no rule is about: connections that are let in. It is
// charged to the task alone; without a policy there is nothing to exceed.
func (m *Meter) UseTask(p *Policy, u Usage, now time.Time) Decision {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.task.advance(now)
	if p != nil {
		if limit := m.task.exceeds(&p.Budget, &u); limit != "" {
			return Decision{Why: WhyBudget, Limit: limit}
		}
	}
	m.task.add(&u)
	return Decision{Allow: true, Why: WhyRule}
}

// Spent names the total that was exceeded by the task, or by a rule (nil: only
// the task), or is "".
func (m *Meter) Spent(rule *Rule) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.task.spent != "" || rule == nil {
		return m.task.spent
	}
	return m.counters(rule).spent
}

// Used is what was charged to the task so far, and the number of distinct
// destinations.
func (m *Meter) Used() (u Usage, hosts int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.task.used, len(m.task.hosts)
}

func (m *Meter) counters(rule *Rule) *counters {
	if m.rules == nil {
		m.rules = map[string]*counters{}
	}
	return at(m.rules, rule.key)
}

// advance forgets the seconds that are a minute old. A clock that goes
// backwards counts as standing still.
func (c *counters) advance(now time.Time) {
	sec := now.Unix()
	if sec-c.last >= int64(len(c.perSecond)) {
		c.perSecond = [60]int64{}
		c.last = sec
	}
	for c.last < sec {
		c.last++
		c.perSecond[c.last%60] = 0
	}
}

// exceeds names the first limit that u would break.
func (c *counters) exceeds(b *Budget, u *Usage) string {
	if c.spent != "" {
		return c.spent
	}
	over := func(limit, used, more int64) bool { return limit > 0 && more > 0 && more > limit-used }
	_, known := c.hosts[u.Host]
	switch {
	case over(b.BytesOut, c.used.BytesOut, u.BytesOut):
		c.spent = "bytes_out"
	case over(b.BytesIn, c.used.BytesIn, u.BytesIn):
		c.spent = "bytes_in"
	case over(b.Requests, c.used.Requests, u.Requests):
		c.spent = "requests"
	case over(b.Connections, c.used.Connections, u.Connections):
		c.spent = "connections"
	case b.Hosts > 0 && u.Host != "" && !known && int64(len(c.hosts)) >= b.Hosts:
		c.spent = "hosts"
	}
	minute := int64(0)
	for _, n := range c.perSecond {
		minute += n
	}
	if c.spent == "" && over(b.RequestsPerMinute, minute, u.Requests) {
		return "requests_per_minute"
	}
	return c.spent
}

func (c *counters) add(u *Usage) {
	c.used.BytesOut += u.BytesOut
	c.used.BytesIn += u.BytesIn
	c.used.Requests += u.Requests
	c.used.Connections += u.Connections
	c.perSecond[(c.last%60+60)%60] += u.Requests
	if u.Host == "" || len(c.hosts) >= MaxHosts {
		return
	}
	if c.hosts == nil {
		c.hosts = map[string]struct{}{}
	}
	c.hosts[u.Host] = struct{}{}
}
