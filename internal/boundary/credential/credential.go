// Package credential puts the secrets of one sandbox into its requests, and
// knows what of them must never be seen where. [Wallet] holds what the sandbox
// was granted and what was planted in it; it is made anew when a value changes,
// and then knows by [Wallet.After] what the sandbox was granted before.
//
// The package must not decide which requests may use a secret (a rule of the
// policy says so), must not send anything, and must not let a value into an
// error or a name.
package credential

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"

	"creel/internal/boundary/scrub"
	"creel/internal/policy"
	"creel/internal/secret"
)

// Canary is a credential that opens nothing, planted where attackers look.
type Canary struct{ Name, Value string }

// Prefixes of the names of marks.
const (
	standInMark = "stand-in "
	canaryMark  = "canary "
)

// Wallet is safe for use by several goroutines, and not changed once made. A
// nil Wallet is empty.
type Wallet struct {
	held   map[string]*held
	known  map[string]string // name → value, of all that were ever granted
	marks  map[string]string // mark → what must not leave
	values *scrub.Set
	lower  *scrub.Set // marks as the name system leaves them

	mu   sync.Mutex
	sets map[string]*marked // by the marks that are left out
}

// marked is what is looked for.
type marked struct {
	set *scrub.Set
	low map[string]string // in lower case, as the name of a header may have them
}

// held is one grant with its binding made ready.
type held struct {
	secret.Grant
	bound *policy.Policy
}

// New makes a wallet of what is granted and planted.
func New(grants []secret.Grant, canaries []Canary) (*Wallet, error) {
	w := &Wallet{held: map[string]*held{}, known: map[string]string{}, marks: map[string]string{}}
	for _, g := range grants {
		if err := g.Validate(); err != nil {
			return nil, fmt.Errorf("secret %s: %w", g.Name, err)
		}
		w.held[g.Name] = &held{g, boundTo(g.Binding)}
		w.known[g.Name] = g.Value.Reveal()
		if g.StandIn != "" {
			w.marks[standInMark+g.Name] = g.StandIn
		}
	}
	for _, c := range canaries {
		w.marks[canaryMark+c.Name] = c.Value
	}
	return w, w.compile()
}

// After is w, which also looks for everything that old looks for: a value that
// was replaced or taken back is still known outside, and may come back. What is
// open goes on with what the caller of [Wallet.Succeed] says.
func (w *Wallet) After(old *Wallet) (*Wallet, error) {
	if old == nil {
		return w, nil
	}
	out := &Wallet{held: map[string]*held{}, known: maps.Clone(old.known), marks: maps.Clone(old.marks)}
	if w != nil {
		out.held = w.held
		add(out.known, w.known)
		add(out.marks, w.marks)
	}
	return out, out.compile()
}

// add adds what is not there by any name. What is there under the same name
// becomes a former one.
func add(all, more map[string]string) {
	for name, value := range more {
		before, taken := all[name]
		if before == value {
			continue
		}
		all[name] = value
		for i := 1; taken; i++ {
			former := fmt.Sprintf("%s, former %d", name, i)
			if _, used := all[former]; !used {
				all[former], taken = before, false
			}
		}
	}
}

// Succeed puts w in the place of old, also for the search in what is open. It
// must be old's [Wallet.After].
func (w *Wallet) Succeed(old *Wallet) {
	if old != nil && old != w {
		old.values.Succeed(w.values)
	}
}

// compile makes the sets of what is looked for.
func (w *Wallet) compile() (err error) {
	w.sets = map[string]*marked{}
	public := map[string]int{}
	for name, value := range w.known {
		if v, err := secret.NewValue(value); err == nil {
			public[name] = v.Public()
		}
	}
	if w.values, err = scrub.CompileParts(w.known, public); err != nil {
		return fmt.Errorf("prepare the search for secrets, those that were replaced included: %w", err)
	}
	if _, err = w.without(nil); err != nil {
		return err
	}
	lower := map[string]string{}
	for name, value := range w.marks {
		lower[name] = strings.ToLower(value)
	}
	if w.lower, err = scrub.Compile(lower); err != nil {
		return fmt.Errorf("prepare the search in names: %w", err)
	}
	return nil
}

// boundTo is a binding as a policy, so that hosts, methods and paths mean the
// same in both.
func boundTo(b secret.Binding) *policy.Policy {
	var rules []policy.Rule
	for _, host := range b.Hosts {
		rules = append(rules, policy.Rule{
			Name: host, Host: host, Ports: []policy.PortRange{{First: 1, Last: 65535}}, Protocol: policy.HTTP,
			Methods: b.Methods, Paths: b.Paths, AllowPrivate: true,
		})
	}
	return policy.New(rules, policy.Budget{}, nil)
}

// Values are those of every secret, to be taken out of responses.
func (w *Wallet) Values() *scrub.Set {
	if w == nil {
		return nil
	}
	return w.values
}

// Marks are stand-ins and canaries that must not leave for host: all but the
// stand-ins of secrets that are bound to it, which are harmless there.
func (w *Wallet) Marks(host string) *scrub.Set {
	if w == nil {
		return nil
	}
	return w.marksFor(host).set
}

func (w *Wallet) marksFor(host string) *marked {
	m, err := w.without(w.harmless(host))
	if err != nil { // all of them compiled, and so do some
		panic(err)
	}
	return m
}

// harmless are the marks that may leave for host, sorted.
func (w *Wallet) harmless(host string) []string {
	names := w.PlaceholdersFor(host)
	for i, name := range names {
		names[i] = standInMark + name
	}
	return names
}

// Like reports whether old looks for the same marks in what leaves for host: if
// not, what is open to it was searched for others.
func (w *Wallet) Like(old *Wallet, host string) bool {
	var marks, before map[string]string
	var left, leftBefore []string
	if w != nil {
		marks, left = w.marks, w.harmless(host)
	}
	if old != nil {
		before, leftBefore = old.marks, old.harmless(host)
	}
	return maps.Equal(marks, before) && slices.Equal(left, leftBefore)
}

// InName is the mark in a name that is asked for, or "": none may be in one,
// whosever it is, and case means nothing there.
func (w *Wallet) InName(name string) string {
	if w == nil {
		return ""
	}
	if _, found := w.lower.Text(strings.ToLower(name)); len(found) > 0 {
		return found[0]
	}
	return ""
}

func (w *Wallet) without(left []string) (*marked, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	key := strings.Join(left, "\n")
	if m := w.sets[key]; m != nil {
		return m, nil
	}
	marks := maps.Clone(w.marks)
	for _, name := range left {
		delete(marks, name)
	}
	set, err := scrub.Compile(marks)
	if err != nil {
		return nil, fmt.Errorf("prepare the search for stand-ins: %w", err)
	}
	for name, mark := range marks {
		marks[name] = strings.ToLower(mark)
	}
	m := &marked{set, marks}
	w.sets[key] = m
	return m, nil
}

// Mark tells what a found mark is: a stand-in's or a canary's, and its name.
func Mark(found string) (alert, name string) {
	if name, ok := strings.CutPrefix(found, canaryMark); ok {
		return "canary", name
	}
	return "stand-in", strings.TrimPrefix(found, standInMark)
}

// Found is a mark in a request that must not go to where it is sent.
type Found struct {
	Mark  string
	Where string // header, path or query
}

// Look finds marks that must not leave for host in a request's head.
func (w *Wallet) Look(host string, r *http.Request) (found *Found) {
	if w == nil {
		return nil
	}
	m := w.marksFor(host)
	if m.set.Empty() {
		return nil
	}
	for name := range r.Header {
		if f := m.inName(name); f != nil {
			return f
		}
	}
	// All at once first, which is what nearly always suffices.
	var all strings.Builder
	each(r, func(_, text string) {
		all.WriteString(text)
		all.WriteByte(0) // in no head
	})
	if _, names := m.set.Text(all.String()); len(names) > 0 {
		each(r, func(where, text string) {
			if _, names := m.set.Text(text); found == nil && len(names) > 0 {
				found = &Found{names[0], where}
			}
		})
	}
	return found
}

// each goes over the texts of a request's head, but for the names of headers.
func each(r *http.Request, do func(where, text string)) {
	for _, values := range r.Header {
		for _, text := range values {
			do("header", text)
		}
	}
	do("path", r.Method)
	do("path", r.URL.EscapedPath())
	do("query", r.URL.RawQuery)
}

// inName looks at the name of a header, whose case the guest's client and
// net/http have changed.
func (m *marked) inName(name string) *Found {
	if len(name) < scrub.MinValue {
		return nil
	}
	name = strings.ToLower(name)
	for mark, low := range m.low {
		if strings.Contains(name, low) {
			return &Found{mark, "header"}
		}
	}
	return nil
}

// Bound reports why a secret may not be used in a request; nil where it may.
func (w *Wallet) Bound(name string, req policy.Request) error {
	if w == nil || w.held[name] == nil {
		return fmt.Errorf("secret %q was not given to this sandbox", name)
	}
	req.Op, req.Protocol = policy.Ask, ""
	if !w.held[name].bound.Decide(req).Allow {
		return fmt.Errorf("secret %q is not bound to this host, method and path", name)
	}
	return nil
}

// MayGo reports why a secret may not go where a rule sends a request; nil where
// it may. The binding may be another since the rule was admitted.
func (w *Wallet) MayGo(name string, r *policy.Rule, plain bool) error {
	if w == nil || w.held[name] == nil {
		return fmt.Errorf("secret %q was not given to this sandbox", name)
	}
	if err := w.held[name].Binding.MayGo(r.Upstream.Address, r.Upstream.CA, plain); err != nil {
		return fmt.Errorf("secret %q is %w", name, err)
	}
	return nil
}

// As is how a secret gets into requests, "" for one that is not held: it may
// have been taken back since [Wallet.Bound] was asked.
func (w *Wallet) As(name string) string {
	if w == nil || w.held[name] == nil {
		return ""
	}
	return w.held[name].Binding.Use.As
}

// PlaceholdersFor are the secrets that a host may have and that the sandbox knows
// by a placeholder, by name.
func (w *Wallet) PlaceholdersFor(host string) (names []string) {
	if w == nil {
		return nil
	}
	for name, h := range w.held {
		if h.StandIn != "" && h.bound.Decide(policy.Request{Op: policy.Resolve, Host: host}).Allow {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// Places are where a secret's placeholder is swapped.
func (w *Wallet) Places(name string) []string { return w.held[name].Binding.Use.Places() }
