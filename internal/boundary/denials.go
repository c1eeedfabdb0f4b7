package boundary

import (
	"fmt"
	"hash/maphash"
	"slices"
	"sync"

	"creel/internal/sandbox"
)

// Bounds of what people are told of. A guest can bring denials about at will,
// so that what matters is never one of a list that it can fill.
const (
	maxDenials = 256  // destinations that are told apart
	maxAlerts  = 16   // alerts of one mark that are told apart, and on record one by one
	maxGroups  = 1024 // domains, or hosts, of which few destinations were denied so far
	maxMany    = 64   // domains, or hosts, that are one line since there were many
)

// denials are what was denied, for people.
type denials struct {
	seed maphash.Seed

	mu     sync.Mutex
	total  int64
	order  []*denial
	index  map[string]*denial
	names  groups
	others groups // ports and requests, by host
	marks  map[string]*marked
	firsts []*sandbox.Denial // the first alert of each mark, and the first of names
	alerts []*sandbox.Denial // the rest of them
	spread *sandbox.Denial   // of names of more domains than are told apart
}

// denial is one destination that was denied.
type denial struct {
	sandbox.Denial
	group string
}

// groups are what is alike. They do not depend on which destinations are listed.
type groups struct {
	few  map[string]*few
	many map[string]*sandbox.Denial
}

// few are the destinations of a group that is not many yet.
type few struct {
	seen  []uint64 // hashes
	count int64
}

// marked are the alerts of one mark.
type marked struct {
	apart map[string]*sandbox.Denial
	rest  *sandbox.Denial
}

// add counts a denial. It returns what is new for people, and, where names have
// become so many that it is an alert, what they are alike in.
func (d *denials) add(what sandbox.Denial, of alike) (told []sandbox.Denial, alert *alike) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.total++
	key := what.Target + "\n" + what.Reason
	if of.key != "" {
		var whole bool
		if whole, told, alert = d.join(of, key); whole {
			return told, alert
		}
	}
	if seen := d.index[key]; seen != nil {
		seen.Count++
		return told, alert
	}
	if len(d.order) >= maxDenials {
		return told, alert
	}
	what.Count = 1
	line := &denial{what, of.key}
	if d.index == nil {
		d.index = map[string]*denial{}
	}
	d.index[key] = line
	d.order = append(d.order, line)
	return append(told, what), alert
}

// join counts a denial to what it is one of; whole reports that this has a line
// for all.
func (d *denials) join(of alike, key string) (whole bool, told []sandbox.Denial, alert *alike) {
	in := &d.others
	if of.parent != "" {
		in = &d.names
	}
	if line := in.many[of.key]; line != nil {
		line.Count++
		return true, nil, nil
	}
	g := in.few[of.key]
	if g == nil {
		if len(in.few) >= maxGroups { // whoever asks so widely is told of for that
			clear(in.few)
			told, alert = d.spreadOut(of, 1)
		}
		if in.few == nil {
			in.few, in.many = map[string]*few{}, map[string]*sandbox.Denial{}
		}
		g = &few{}
		in.few[of.key] = g
	}
	g.count++
	if hash := maphash.String(d.seed, key); !slices.Contains(g.seen, hash) {
		g.seen = append(g.seen, hash)
	}
	if len(g.seen) <= maxAlike {
		return false, told, alert
	}
	delete(in.few, of.key)
	if len(in.many) >= maxMany {
		told, alert = d.spreadOut(of, g.count)
		return false, told, alert
	}
	line := of.whole
	line.Count = max(g.count, d.drop(of.key))
	in.many[of.key] = &line
	if of.parent == "" {
		if len(d.order) < maxDenials {
			d.order = append(d.order, &denial{line, of.key})
			in.many[of.key] = &d.order[len(d.order)-1].Denial
		}
		return true, []sandbox.Denial{line}, nil
	}
	if len(in.many) == 1 {
		d.firsts = append(d.firsts, &line)
	} else {
		d.alerts = append(d.alerts, &line)
	}
	return true, []sandbox.Denial{line}, &of
}

// spreadOut counts names below more domains than are told apart; the first time,
// that is an alert. For anything else there is none.
func (d *denials) spreadOut(of alike, count int64) ([]sandbox.Denial, *alike) {
	if of.parent == "" {
		return nil, nil
	}
	if d.spread != nil {
		d.spread.Count += count
		return nil, nil
	}
	d.spread = &sandbox.Denial{
		Target: "*", Reason: fmt.Sprintf("names below more than %d domains, or many names below more than %d, were asked for", maxGroups, maxMany),
		Hint: of.whole.Hint, Count: count,
	}
	d.firsts = append(d.firsts, d.spread)
	return []sandbox.Denial{*d.spread}, &alike{parent: "*", whole: *d.spread}
}

// drop removes the lines of a group, and returns how many denials they were.
func (d *denials) drop(group string) (count int64) {
	d.order = slices.DeleteFunc(d.order, func(l *denial) bool {
		if l.group != group {
			return false
		}
		count += l.Count
		delete(d.index, l.Target+"\n"+l.Reason)
		return true
	})
	return count
}

// addAlert counts an alert of a mark. It returns what is new for people, and
// whether it is one of the few of its mark that are on record one by one.
func (d *denials) addAlert(mark string, what sandbox.Denial) (told []sandbox.Denial, apart bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.total++
	m := d.marks[mark]
	if m == nil {
		if d.marks == nil {
			d.marks = map[string]*marked{}
		}
		m = &marked{apart: map[string]*sandbox.Denial{}}
		d.marks[mark] = m
	}
	key := what.Target + "\n" + what.Reason
	what.Count = 1
	switch {
	case m.apart[key] != nil:
		m.apart[key].Count++
		return nil, false
	case len(m.apart) < maxAlerts:
		m.apart[key], apart = &what, true
	case m.rest == nil:
		what.Target, what.Reason = "other destinations", mark
		m.rest = &what
	default:
		m.rest.Count++
		return nil, false
	}
	if len(m.apart) == 1 {
		d.firsts = append(d.firsts, &what)
	} else {
		d.alerts = append(d.alerts, &what)
	}
	return []sandbox.Denial{what}, apart
}

// Denials are what was denied so far, and how many denials there were in all:
// the first alert of each mark, the other alerts, and then destinations in the
// order in which they first came.
func (e *Edge) Denials() (list []sandbox.Denial, total int64) {
	d := &e.denials
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, alerts := range [][]*sandbox.Denial{d.firsts, d.alerts} {
		for _, a := range alerts {
			list = append(list, *a)
		}
	}
	for _, l := range d.order {
		list = append(list, l.Denial)
	}
	return list, d.total
}
