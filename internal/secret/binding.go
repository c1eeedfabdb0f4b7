package secret

import (
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"path"
	"regexp"
	"slices"
	"strings"
)

// Ways in which a secret gets into a request.
const (
	AsHeader  = "header"   // a header is the value, with a text before it where that is given
	AsBearer  = "bearer"   // Authorization: Bearer VALUE
	AsBasic   = "basic"    // Authorization: Basic, the value is the password
	AsQuery   = "query"    // a parameter of the URL
	AsStandIn = "stand-in" // the sandbox holds a stand-in, which is swapped for the value
)

// Use is how a secret gets into a request. Fields that As has no use for are
// empty.
type Use struct {
	As     string `json:"as"`
	Name   string `json:"name,omitempty"`   // header: its name; query: the parameter's
	Prefix string `json:"prefix,omitempty"` // header: text before the value, such as "token "
	User   string `json:"user,omitempty"`   // basic; may be empty
	// Where the stand-in is in the sandbox; one of both, or both.
	Env  string `json:"env,omitempty"`  // a variable
	File string `json:"file,omitempty"` // an absolute path
	// In are the places where a stand-in is swapped, header:NAME or query:NAME;
	// none are the [DefaultPlaces]. Basic credentials inside Authorization count
	// as Authorization.
	In []string `json:"in,omitempty"`
}

// DefaultPlaces are where a stand-in is swapped if its binding says nothing.
func DefaultPlaces() []string { return []string{"header:Authorization", "header:X-Api-Key"} }

// Places are where a stand-in is swapped.
func (u Use) Places() []string {
	if len(u.In) == 0 {
		return DefaultPlaces()
	}
	return u.In
}

// Binding says where a secret may be used, and how. Empty Methods or Paths are
// all of them.
type Binding struct {
	// Hosts are patterns of package policy in their one form: a name, *.NAME
	// or **.NAME.
	Hosts   []string `json:"hosts"`
	Methods []string `json:"methods,omitempty"`
	Paths   []string `json:"paths,omitempty"` // patterns of package policy
	// Upstreams are the only places, HOST:PORT, that a policy may send requests
	// with the secret to instead of the hosts themselves, and CA is the only PEM
	// that it must have them trusted by; "": the system's. Policies come with what strangers wrote.
	Upstreams []string `json:"upstreams,omitempty"`
	CA        string   `json:"ca,omitempty"`
	Clear     bool     `json:"clear,omitempty"` // it may cross the network without TLS
	Use       Use      `json:"use"`
}

const (
	maxHosts = 64
	maxList  = 64 // of methods, paths and places
	maxText  = 512
	maxCA    = 64 << 10
)

var (
	hostPattern     = regexp.MustCompile(`^(\*\*?\.)?([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?$`)
	methodPattern   = regexp.MustCompile(`^[A-Z][A-Z-]{0,31}$`)
	headerPattern   = regexp.MustCompile("^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}$")
	paramPattern    = regexp.MustCompile(`^[A-Za-z0-9_.~\[\]-]{1,128}$`)
	variablePattern = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,127}$`)
)

// framing are headers that say where a message goes or ends: a value in one of
// them would break the message.
var framing = []string{"host", "connection", "content-length", "transfer-encoding", "te", "trailer", "upgrade", "expect",
	"keep-alive", "proxy-connection", "accept-encoding"}

// faults collects what is wrong, each beginning with the field's name.
type faults []error

func (f *faults) add(format string, args ...any) { *f = append(*f, fmt.Errorf(format, args...)) }

// Validate returns every fault at once, joined. Whether hosts and paths are
// patterns that match anything is for package policy to say.
func (b Binding) Validate() error {
	var f faults
	if len(b.Hosts) == 0 || len(b.Hosts) > maxHosts {
		f.add("hosts: %d of them, want 1 to %d; name those that the secret is for", len(b.Hosts), maxHosts)
	}
	for _, h := range b.Hosts {
		if h == "**" {
			f.add("hosts: ** would give the secret to every host; name those that it is for")
		} else if !hostPattern.MatchString(h) || len(h) > 253 {
			f.add("hosts: %.80q: want a name in lower case, *.NAME or **.NAME", h)
		}
	}
	if len(b.Methods) > maxList || len(b.Paths) > maxList {
		f.add("methods, paths: at most %d of each; use patterns", maxList)
	}
	for _, m := range b.Methods {
		if !methodPattern.MatchString(m) {
			f.add("methods: %.80q: want a method in upper case, such as GET", m)
		}
	}
	for _, p := range b.Paths {
		if !strings.HasPrefix(p, "/") || len(p) > maxText || !printable(p) {
			f.add("paths: %.80q: want a pattern that begins with /, of at most %d characters", p, maxText)
		}
	}
	if len(b.Upstreams) > maxList {
		f.add("upstreams: at most %d; leave some out", maxList)
	}
	for _, u := range b.Upstreams {
		if host, port, err := net.SplitHostPort(u); err != nil || host == "" || port == "" || len(u) > maxText || !printable(u) {
			f.add("upstreams: %.80q: want HOST:PORT", u)
		}
	}
	if block, _ := pem.Decode([]byte(b.CA)); b.CA != "" && (block == nil || block.Type != "CERTIFICATE" || len(b.CA) > maxCA) {
		f.add("ca: want certificates in PEM, at most %d bytes", maxCA)
	}
	if b.CA != "" && len(b.Upstreams) == 0 {
		f.add("ca: it is for upstreams, and there are none; name one")
	}
	b.Use.check(&f)
	return errors.Join(f...)
}

// MayGo says why a secret may not be used where a rule sends requests to an
// upstream that is trusted by a CA ("": to the host itself, by the system's),
// or without TLS; nil where it may. The error says how to bind it to that.
func (b Binding) MayGo(upstream, ca string, plain bool) error {
	bound := func(u string) bool { return strings.EqualFold(u, upstream) }
	var f faults
	switch {
	case upstream != "" && !slices.ContainsFunc(b.Upstreams, bound):
		f.add("not bound to the upstream %s: if you trust that with it, set it again as it is bound now, and with --upstream %s", upstream, upstream)
	case upstream != "" && ca == "" && b.CA != "":
		f.add("bound to a CA for the upstream %s, and the rule has none: write it as `ca:` of the upstream or, if any public authority will do, set it again as it is bound now, with --upstream %s and without a CA", upstream, upstream)
	case ca != "" && ca != b.CA:
		f.add("not bound to the CA of the upstream %s: if you trust that, set it again as it is bound now, and with --upstream %s --upstream-ca FILE", upstream, upstream)
	}
	if plain && !b.Clear {
		f.add("not bound to be sent without TLS: use tls or, if everybody on the way may read it, set it again as it is bound now, and with --clear")
	}
	return errors.Join(f...)
}

// check holds the fields against what As needs and allows.
func (u Use) check(f *faults) {
	switch u.As {
	case AsHeader:
		if !headerPattern.MatchString(u.Name) || slices.Contains(framing, strings.ToLower(u.Name)) {
			f.add("name: header %.80q cannot carry a secret; name another", u.Name)
		}
		if len(u.Prefix) > maxText || !printable(u.Prefix) {
			f.add("prefix: want at most %d printable characters", maxText)
		}
	case AsQuery:
		if !paramPattern.MatchString(u.Name) {
			f.add("name: parameter %.80q: want letters, digits and _ . ~ - [ ]", u.Name)
		}
	case AsBasic:
		if len(u.User) > maxText || strings.Contains(u.User, ":") || !printable(u.User) {
			f.add("user: want at most %d printable characters without a colon", maxText)
		}
	case AsStandIn:
		u.checkStandIn(f)
	case AsBearer:
	default:
		f.add("as: %.80q: want header, bearer, basic, query or stand-in", u.As)
		return
	}
	u.checkUnused(f)
}

func (u Use) checkStandIn(f *faults) {
	if u.Env == "" && u.File == "" {
		f.add("env: a stand-in needs a variable or a file of the sandbox to be in; name one")
	}
	if u.Env != "" && !variablePattern.MatchString(u.Env) {
		f.add("env: %.80q is not the name of a variable; want letters, digits and _", u.Env)
	}
	if u.File != "" && (!path.IsAbs(u.File) || path.Clean(u.File) != u.File || u.File == "/" || len(u.File) > maxText || !printable(u.File)) {
		f.add("file: %.80q: want an absolute path of a file in the sandbox, without . or ..", u.File)
	}
	if len(u.In) > maxList {
		f.add("in: at most %d places; leave some out", maxList)
	}
	for _, place := range u.In {
		kind, name, _ := strings.Cut(place, ":")
		header := kind == "header" && headerPattern.MatchString(name) && !slices.Contains(framing, strings.ToLower(name))
		if !header && !(kind == "query" && paramPattern.MatchString(name)) {
			f.add("in: %.80q: want header:NAME or query:NAME", place)
		}
	}
}

// checkUnused refuses what would be without effect: somebody meant something.
func (u Use) checkUnused(f *faults) {
	unused := func(field string, set bool, ways ...string) {
		if set && !slices.Contains(ways, u.As) {
			f.add("%s: has no meaning for %s, only for %s; leave it out", field, u.As, strings.Join(ways, " and "))
		}
	}
	unused("name", u.Name != "", AsHeader, AsQuery)
	unused("prefix", u.Prefix != "", AsHeader)
	unused("user", u.User != "", AsBasic)
	unused("env", u.Env != "", AsStandIn)
	unused("file", u.File != "", AsStandIn)
	unused("in", len(u.In) > 0, AsStandIn)
}

// printable is what may be in a header.
func printable(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] == 0x7f {
			return false
		}
	}
	return true
}

// Grant is one secret that is handed to one sandbox.
type Grant struct {
	Name    string
	Value   Value
	Binding Binding
	StandIn string // what the sandbox holds; "" unless Use.As is stand-in
}

// Validate returns every fault at once, joined. None holds the value.
func (g Grant) Validate() error {
	var f faults
	if err := CheckName(g.Name); err != nil {
		f = append(f, err)
	}
	if err := g.Binding.Validate(); err != nil {
		f = append(f, err)
	}
	if err := g.Binding.Use.CheckValue(g.Value); err != nil {
		f = append(f, err)
	}
	switch standIn := g.Binding.Use.As == AsStandIn; {
	case standIn != (g.StandIn != ""):
		f.add("stand-in: one is there exactly where the secret is used as one")
	case standIn && strings.Contains(g.StandIn, g.Value.Reveal()):
		f.add("stand-in: it holds the value itself; make another")
	}
	return errors.Join(f...)
}

// CheckValue says whether a value can be used so: what goes into a header is
// one line, and has no blanks at its ends, which every peer drops.
func (u Use) CheckValue(v Value) error {
	s := v.Reveal()
	if s == "" {
		return errors.New("value: there is none; set one")
	}
	inHeader := u.As == AsHeader || u.As == AsBearer || u.As == AsStandIn
	if inHeader && (!printable(s) || strings.Trim(s, " ") != s) {
		return fmt.Errorf("value: it has line breaks, control characters or blanks at an end, and cannot be used as %s; give it without them", u.As)
	}
	return nil
}
