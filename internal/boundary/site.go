package boundary

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"creel/internal/audit/event"
	"creel/internal/boundary/credential"
	"creel/internal/boundary/egress"
	"creel/internal/boundary/web"
	"creel/internal/policy"
	"creel/internal/policy/tier"
	"creel/internal/sandbox"
	"creel/internal/secret"
)

// site is a flow as package web serves it.
func (e *Edge) site(ctx context.Context, f *flow, tls bool) *web.Site {
	host := f.req.Host
	if host == "" {
		host = f.req.Addr.String()
	}
	return &web.Site{
		Host: host, Port: f.req.Port, TLS: tls, Roots: e.rootsFor(f.charged()),
		Refused: func(reason, hint string) {
			e.denyWords(policy.Decision{Request: f.req, Rule: f.charged(), Why: policy.WhyProtocol}, reason, hint)
		},
		Ask: func(ctx context.Context, r *http.Request) (*web.Pass, *web.Denial) { return e.ask(ctx, f, r) },
		Dial: func(asked context.Context) (net.Conn, error) {
			asked, stop := context.WithCancel(asked)
			defer stop()
			defer context.AfterFunc(ctx, stop)()
			c, err := e.dial(asked, f)
			if denied, ok := err.(*egress.Denied); ok {
				return nil, refusal{words(denied.Decision), err}
			}
			if err != nil {
				return nil, refusal{&web.Denial{Status: http.StatusBadGateway, Error: "upstream", Reason: "the destination could not be reached: " + egress.Class(err)}, err}
			}
			return c, nil
		},
	}
}

// refusal is a denial on the way to the upstream.
type refusal struct {
	denial *web.Denial
	err    error // why, for the record
}

func (r refusal) Error() string       { return r.denial.Reason }
func (r refusal) Unwrap() error       { return r.err }
func (r refusal) Denial() *web.Denial { return r.denial }

// words are a decision as the task is told.
func words(d policy.Decision) *web.Denial {
	return &web.Denial{Rule: d.RuleName(), Reason: d.Reason(), Hint: d.Hint()}
}

// rootsFor are who may sign an upstream's certificate: the rule's own CA
// alone, where it names one.
func (e *Edge) rootsFor(r *policy.Rule) *x509.CertPool {
	if r.Upstream.CA == "" {
		return e.roots
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM([]byte(r.Upstream.CA)) // it was checked when it was read
	return pool
}

// ask decides about one request, charges it and puts it on record.
func (e *Edge) ask(ctx context.Context, f *flow, r *http.Request) (*web.Pass, *web.Denial) {
	req := f.req
	req.Op, req.Method, req.Path = policy.Ask, r.Method, r.URL.RequestURI()
	rules := e.rules.Load()
	d := rules.Policy.Decide(req)
	if !d.Allow {
		e.deny(d)
		return nil, words(d)
	}
	wallet := e.wallet.Load()
	if found := wallet.Look(f.req.Host, r); found != nil {
		e.alert(d, *found)
		return nil, &web.Denial{Rule: d.RuleName(), Reason: "the " + found.Where + " holds a credential that is not for this destination"}
	}
	use, denial := e.useOf(wallet, d, r)
	if denial != nil {
		return nil, denial
	}
	f.charge(d.Rule)
	if spent := e.spend(f, d.Rule, policy.Usage{Requests: 1}); !spent.Allow {
		denial := words(spent)
		denial.Status = http.StatusTooManyRequests
		return nil, denial
	}
	id := e.ids.Add(1)
	used := event.Secret{Destination: destination(d), Name: use, Request: id}
	placed := wallet.Put(f.req.Host, use, r.Clone(ctx)) // as it will be in what is sent
	if as := wallet.As(use); as != secret.AsStandIn || slices.Contains(swappedIn(placed), use) {
		used.As = as
	}
	if err := e.recordRequest(ctx, used, r); err != nil {
		e.cfg.Log.Error("a request was refused that cannot be put on record", "err", err)
		return nil, &web.Denial{Status: http.StatusServiceUnavailable, Error: "record", Reason: "the request cannot be put on record, and nothing is sent without"}
	}
	e.tellPlaced(wallet, f, d, use, placed)
	f.asks(d.Rule)
	if e.rules.Load() != rules {
		e.recheck(f) // the other rules have not seen this request
	}
	return e.pass(f, d, wallet, use, id), nil
}

// useOf is the secret that a request is to use, "" for none.
func (e *Edge) useOf(wallet *credential.Wallet, d policy.Decision, r *http.Request) (string, *web.Denial) {
	name := d.Rule.Secret
	if name == "" {
		return "", nil
	}
	err := wallet.Bound(name, d.Request)
	if err == nil {
		err = wallet.MayGo(name, d.Rule, d.Protocol == policy.HTTP)
	}
	if err != nil {
		e.denyWords(d, err.Error(), "bind it with `creel secret set`, or leave it out of the rule")
		return "", &web.Denial{Rule: d.RuleName(), Reason: err.Error()}
	}
	return name, nil
}

// swappedIn are the secrets whose placeholder was swapped at least once.
func swappedIn(placed []credential.Placed) (names []string) {
	for _, p := range placed {
		if p.Fate == credential.Swapped {
			names = append(names, p.Secret)
		}
	}
	return names
}

// tellPlaced tells of placeholders in a request to where they belong that were
// not swapped. One that is swapped may be elsewhere in the request, too.
func (e *Edge) tellPlaced(wallet *credential.Wallet, f *flow, d policy.Decision, use string, placed []credential.Placed) {
	swapped := swappedIn(placed)
	for _, name := range swapped {
		e.troubles.noteSwap(name)
	}
	told := map[string]bool{} // one request is one of each
	for _, p := range placed {
		if slices.Contains(swapped, p.Secret) {
			continue
		}
		t := unswapped(p, d.RuleName(), use, wallet.Places(p.Secret))
		if !told[t.Reason] {
			t.Target = targetOf(f)
			e.troubles.add(trouble{Trouble: t})
		}
		told[t.Reason] = true
	}
}

// unswapped says what became of a placeholder that was not swapped, under a rule
// that uses the secret use, or none.
func unswapped(p credential.Placed, rule, use string, places []string) (t sandbox.Trouble) {
	became := fmt.Sprintf("the placeholder of %q was sent as it is", p.Secret)
	if p.Fate == credential.TakenOut {
		became = fmt.Sprintf("the placeholder of %q was left out of %s", p.Secret, placeWords(p.Place))
	}
	at := strings.Join(places, ", ")
	known := slices.ContainsFunc(places, func(place string) bool { return strings.EqualFold(place, p.Place) })
	switch {
	case use == "":
		t.Reason = fmt.Sprintf("%s: rule %q names no secret", became, rule)
		t.Hint = fmt.Sprintf("write `secret: %s` in the rule", p.Secret)
	case use != p.Secret:
		t.Reason = fmt.Sprintf("%s: rule %q uses the secret %q", became, rule, use)
		t.Hint = fmt.Sprintf("write a rule with `secret: %s` for these requests", p.Secret)
	case p.Fate == credential.TakenOut || known:
		t.Reason = became + ": it is swapped only as a whole token behind a known scheme such as Bearer"
		if strings.HasPrefix(p.Place, "query:") {
			t.Reason = became + ": it is swapped only as the whole value of a parameter"
		}
		t.Hint = "let the client send it alone, in " + at
	default:
		t.Reason = fmt.Sprintf("%s: it is swapped in %s alone", became, at)
		t.Hint = fmt.Sprintf("let the client send it there, or name its place with `creel secret set %s --in PLACE`", p.Secret)
	}
	return t
}

// placeWords are a place of a request, for people. The guest chose its name.
func placeWords(place string) string {
	kind, name, _ := strings.Cut(place, ":")
	switch kind {
	case "header":
		return "header " + tier.Hide(printable(name))
	case "query":
		return "query parameter " + tier.Hide(printable(name))
	}
	return "the " + kind
}

// recordRequest returns when the request, and the use of a secret in it, are
// on record; without As none is used.
func (e *Edge) recordRequest(ctx context.Context, use event.Secret, r *http.Request) error {
	request := event.Request{
		Destination: use.Destination, ID: use.Request, Method: r.Method, Path: tier.Hide(r.URL.EscapedPath()), Queries: parameters(r.URL.RawQuery),
	}
	if use.As == "" {
		return e.record(ctx, event.KindRequest, request)
	}
	return e.append(ctx, e.event(event.KindSecret, use), e.event(event.KindRequest, request))
}

const maxParameters = 32

// parameters are the names in a query, as they were written.
func parameters(query string) (names []string) {
	if query == "" {
		return nil
	}
	for _, pair := range strings.FieldsFunc(query, func(r rune) bool { return r == '&' || r == ';' }) {
		name, _, _ := strings.Cut(pair, "=")
		if name = printable(name); len(names) < maxParameters && !slices.Contains(names, name) {
			names = append(names, tier.Hide(name))
		}
	}
	return names
}

// pass is leave for a request that is on record.
func (e *Edge) pass(f *flow, d policy.Decision, wallet *credential.Wallet, use string, id int64) *web.Pass {
	began, marked := time.Now(), new(atomic.Bool)
	p := &web.Pass{
		Values: wallet.Values(), Marks: wallet.Marks(f.req.Host), Exact: d.Inspect, Whole: use != "", Unreadable: d.Rule.Unreadable,
		Found: func(names []string) {
			marked.Store(true)
			e.alert(d, credential.Found{Mark: names[0], Where: "body"})
		},
		Done: func(r web.Result) {
			f.answered(d.Rule)
			res := event.Response{
				ID: id, Host: destination(d).Host, Status: r.Status, BytesOut: r.BytesOut, BytesIn: r.BytesIn,
				DurationMS: time.Since(began).Milliseconds(), Scrubbed: r.Scrubbed,
			}
			if r.Err != nil {
				res.Error = egress.Class(r.Err)
				// What failed on the way there was told when it did.
				if _, dialling := errors.AsType[refusal](r.Err); !dialling && !marked.Load() {
					e.upstreamFailed(f, r.Err, true)
				}
			}
			e.note(event.KindResponse, res)
		},
	}
	if use != "" {
		p.Edit = func(out *http.Request) { wallet.Put(f.req.Host, use, out) }
	}
	return p
}
