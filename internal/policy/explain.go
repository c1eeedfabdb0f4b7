package policy

import (
	"fmt"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// MethodPattern is what an HTTP method looks like.
const MethodPattern = `^[A-Z][A-Z0-9_-]{0,19}$`

var methodPattern = regexp.MustCompile(MethodPattern)

// token is what HTTP lets a client write as a method. Whether it is one that
// may be used is for the policy to decide.
var token = regexp.MustCompile("^[!#$%&'*+.^_`|~0-9A-Za-z-]{1,200}$")

// Explanation is a Decision with how it came about.
type Explanation struct {
	Decision Decision // the first denial, or the last step
	Steps    []Decision
	Rules    []Bearing // every rule that names the destination
}

// Bearing is what one rule has to do with a request.
type Bearing struct {
	Rule *Rule
	Text string
}

// Explain asks what a client would cause to be asked for METHOD URL: name,
// connection and, where requests are read, the request. URLs are https, http,
// tcp://HOST:PORT and udp://HOST:PORT; the method means nothing to the latter.
func (p *Policy) Explain(method, rawURL string) (Explanation, error) {
	req, err := requestOf(method, rawURL)
	if err != nil {
		return Explanation{}, err
	}
	var e Explanation
	for _, op := range []Op{Resolve, Connect, Ask} {
		if op == Resolve && req.Host == "" {
			continue
		}
		if op == Ask && (!e.Decision.Inspect && e.Decision.Protocol != HTTP || req.Method == "") {
			break // a spliced or opaque connection: nobody looks inside
		}
		req.Op = op
		e.Decision = p.Decide(req)
		e.Steps = append(e.Steps, e.Decision)
		// A name that does not resolve goes no further, but the connection says
		// more exactly what is missing.
		if !e.Decision.Allow && op != Resolve {
			break
		}
	}
	if i := slices.IndexFunc(e.Steps, func(d Decision) bool { return !d.Allow }); i == 0 && e.Decision.Allow {
		e.Decision = e.Steps[0]
	}
	if p == nil {
		return e, nil
	}
	t := target{method: req.Method, path: req.Path}
	for i := range p.Rules {
		if text := p.Rules[i].bearing(&e.Decision, &t); text != "" {
			e.Rules = append(e.Rules, Bearing{&p.Rules[i], text})
		}
	}
	return e, nil
}

// bearing is found without the index, and so is a check of it.
func (r *Rule) bearing(d *Decision, t *target) string {
	req := d.Request
	udp := req.Protocol == UDP
	switch {
	case req.Host != "" && (r.Host == "" || !patternMatches(r.Host, req.Host)):
		return ""
	case req.Host == "" && !(r.Prefix.IsValid() && r.Prefix.Contains(req.Addr)):
		return ""
	case !r.coversPort(req.Port, udp):
		return "names another port or transport"
	case r.Deny && !r.Conditional():
		return "denies it"
	case r.NeedsHTTP() && req.Op == Ask && !r.coversRequest(t):
		return "names another method or path"
	case r.Deny:
		return "denies it, or some requests of it"
	case d.Rule == r:
		return "allows it"
	case d.Rule != nil && !d.Rule.Deny && d.Rule.Destination() != r.Destination():
		return fmt.Sprintf("would allow it, but rule %q names the destination more exactly", d.RuleName())
	}
	return "would allow it, but another rule decides"
}

func requestOf(method, rawURL string) (req Request, err error) {
	u, err := url.Parse(rawURL)
	if err != nil {
		return req, fmt.Errorf("url: %w", err)
	}
	ports := map[string]string{"https": "443", "http": "80", "tcp": "", "udp": ""}
	port, ok := ports[u.Scheme]
	switch {
	case !ok || u.Hostname() == "":
		return req, fmt.Errorf("url %.200q: want https://HOST/PATH, http://HOST/PATH, tcp://HOST:PORT or udp://HOST:PORT", rawURL)
	case u.User != nil:
		return req, fmt.Errorf("url of %q: leave user and password out", u.Hostname())
	case u.Port() != "":
		port = u.Port()
	}
	if req.Port, err = ParsePort(port); err != nil {
		return req, fmt.Errorf("url %.200q: %w", rawURL, err)
	}
	if req.Addr, err = netip.ParseAddr(u.Hostname()); err != nil {
		req.Host = u.Hostname()
	}
	switch u.Scheme {
	case "udp":
		req.Protocol = UDP
	case "https", "http":
		req.Protocol = map[string]Protocol{"https": TLS, "http": HTTP}[u.Scheme]
		req.Method = method // as it is written, which is what the boundary sees
		if req.Path = u.EscapedPath(); req.Path == "" {
			req.Path = "/"
		}
		if u.RawQuery != "" {
			req.Path += "?" + u.RawQuery
		}
		if !token.MatchString(req.Method) {
			return req, fmt.Errorf("method %.40q: want one such as GET", method)
		}
	}
	return req, nil
}

// Case is a test that a policy file has of itself.
type Case struct {
	Line        int
	Allow       bool
	Method, URL string
	Rule        string // that must decide; "": any
}

// Run returns "" where the policy decides as the case says, and what it does
// instead where not.
func (c Case) Run(p *Policy) string {
	e, err := p.Explain(c.Method, c.URL)
	switch {
	case err != nil:
		return err.Error()
	case e.Decision.Allow != c.Allow:
		return e.Decision.Reason()
	case c.Rule != "" && c.Rule != e.Decision.RuleName():
		return fmt.Sprintf("rule %q decides", e.Decision.RuleName())
	}
	return ""
}

// String is the case as it is written in a file.
func (c Case) String() string { return strings.TrimSpace(c.Method + " " + c.URL) }

// ParsePort reads 1 to 65535.
func ParsePort(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("port %.20q: want 1 to 65535", s)
	}
	return uint16(n), nil
}
