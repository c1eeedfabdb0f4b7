package policy

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
)

// index finds the rules of a destination by lookups, as many as the name has
// labels, however many rules there are.
type index struct {
	names        map[string]*node
	nets         map[netip.Prefix]*bucket
	bits4, bits6 []int // prefix lengths in use, longest first
}

// node holds what is said of a name, of *.NAME and of **.NAME; the node of ""
// has ** as deep.
type node struct{ exact, one, deep bucket }

// bucket holds the rules of one host pattern or prefix.
type bucket struct{ allow, deny []*Rule }

func (x *index) build(rules []Rule) {
	*x = index{names: map[string]*node{}, nets: map[netip.Prefix]*bucket{}}
	for i := range rules {
		r := &rules[i]
		var b *bucket
		switch {
		case r.Prefix.IsValid():
			b = at(x.nets, r.Prefix)
			lengths := &x.bits6
			if r.Prefix.Addr().Is4() {
				lengths = &x.bits4
			}
			if !slices.Contains(*lengths, r.Prefix.Bits()) {
				*lengths = append(*lengths, r.Prefix.Bits())
			}
		case r.Host == "**":
			b = &at(x.names, "").deep
		case strings.HasPrefix(r.Host, "**."):
			b = &at(x.names, r.Host[3:]).deep
		case strings.HasPrefix(r.Host, "*."):
			b = &at(x.names, r.Host[2:]).one
		default:
			b = &at(x.names, r.Host).exact
		}
		if r.Deny {
			b.deny = append(b.deny, r)
		} else {
			b.allow = append(b.allow, r)
		}
	}
	for _, lengths := range [][]int{x.bits4, x.bits6} {
		slices.SortFunc(lengths, func(a, b int) int { return cmp.Compare(b, a) })
	}
	for _, n := range x.names {
		n.exact.sort()
		n.one.sort()
		n.deep.sort()
	}
	for _, b := range x.nets {
		b.sort()
	}
}

func at[K comparable, V any](m map[K]*V, k K) *V {
	if m[k] == nil {
		m[k] = new(V)
	}
	return m[k]
}

func (b *bucket) sort() {
	slices.SortFunc(b.allow, bySpecificity)
	slices.SortFunc(b.deny, func(a, b *Rule) int { return cmp.Compare(a.key, b.key) })
}

// found holds the buckets of one destination, most specific first. Its array
// keeps a decision from allocating; deep names grow out of it.
type found struct {
	list  []*bucket
	array [6]*bucket
}

func (f *found) add(b *bucket) {
	if len(b.allow)+len(b.deny) > 0 {
		f.list = append(f.list, b)
	}
}

// named finds the buckets of a cleaned name.
func (x *index) named(host string, f *found) []*bucket {
	f.list = f.array[:0]
	if n := x.names[host]; n != nil {
		f.add(&n.exact)
	}
	if host == HostAlias {
		return f.list
	}
	_, parent, ok := strings.Cut(host, ".")
	for first := true; ok; first = false {
		if n := x.names[parent]; n != nil {
			if first {
				f.add(&n.one)
			}
			f.add(&n.deep)
		}
		_, parent, ok = strings.Cut(parent, ".")
	}
	if n := x.names[""]; n != nil {
		f.add(&n.deep)
	}
	return f.list
}

// addressed finds the buckets of an unmapped address.
func (x *index) addressed(addr netip.Addr, f *found) []*bucket {
	f.list = f.array[:0]
	lengths := x.bits6
	if addr.Is4() {
		lengths = x.bits4
	}
	for _, bits := range lengths {
		prefix, err := addr.Prefix(bits)
		if err != nil {
			break
		}
		if b := x.nets[prefix]; b != nil {
			f.add(b)
		}
	}
	return f.list
}

// Covering are the rules whose destination covers all of the rule's own,
// denies first within each destination; the rule itself is one of them where
// it is of this policy.
func (p *Policy) Covering(r *Rule) (out []*Rule) {
	for _, b := range p.wider(r) {
		out = append(append(out, b.deny...), b.allow...)
	}
	return out
}

func (p *Policy) wider(r *Rule) (out []*bucket) {
	var near found
	if r.Prefix.IsValid() {
		for _, b := range p.index.addressed(r.Prefix.Addr(), &near) {
			if b.any().Prefix.Bits() <= r.Prefix.Bits() {
				out = append(out, b)
			}
		}
		return out
	}
	// Names that the pattern matches find every bucket that may cover it.
	probes := []string{r.Host}
	if wildcard(r.Host) {
		below := strings.TrimLeft(r.Host, "*")
		probes = []string{"x" + below, "x.x" + below}
	}
	for _, host := range probes {
		for _, b := range p.index.named(host, &near) {
			if !slices.Contains(out, b) && Covers(b.any().Host, r.Host) {
				out = append(out, b)
			}
		}
	}
	return out
}

// any is one of the bucket's rules: all have the same destination.
func (b *bucket) any() *Rule {
	if len(b.allow) > 0 {
		return b.allow[0]
	}
	return b.deny[0]
}
