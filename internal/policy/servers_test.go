package policy_test

import (
	"math/rand/v2"
	"net/url"
	"path"
	"regexp"
	"strings"
	"testing"
	"unicode"

	. "creel/internal/policy"

	"golang.org/x/text/unicode/norm"
)

// A model is how one server finds what a path names; not ok is a path that it
// refuses. The models share nothing with the code that they test.
type model func(raw string) (resource string, ok bool)

func unescape(s string) (string, bool) {
	out, err := url.PathUnescape(s)
	return out, err == nil
}

var (
	parameter    = regexp.MustCompile(`;[^/]*`)
	slashes      = regexp.MustCompile(`/+`)
	escapedDot   = regexp.MustCompile(`(?i)%2e`)
	escapedSlash = regexp.MustCompile(`(?i)%2f`)
	refusedByte  = regexp.MustCompile(`(?i)%2f|%00`)
	accent       = regexp.MustCompile(`\p{Mn}`)
	// What ASP.NET takes for a session, a form's ticket and the like.
	cookielessPart = regexp.MustCompile(`\(([A-Za-z]\([^)]*\))+\)/?`)
)

// parameters takes them from each segment, before anything is decoded.
func parameters(s string) string { return parameter.ReplaceAllString(s, "") }

func merged(s string) string { return slashes.ReplaceAllString(s, "/") }

// resolved removes dot segments; above the root is not ok.
func resolved(s string) (string, bool) {
	var out []string
	for _, seg := range strings.Split(strings.TrimPrefix(s, "/"), "/") {
		switch seg {
		case ".":
		case "..":
			if len(out) == 0 {
				return "", false
			}
			out = out[:len(out)-1]
		default:
			out = append(out, seg)
		}
	}
	return "/" + strings.Join(out, "/"), true
}

// escapedDots are resolved as browsers and proxies do.
func escapedDots(s string) string { return escapedDot.ReplaceAllString(s, ".") }

// each decodes segment by segment, so that an escaped slash is part of a name.
func each(s string, do func(string) string) (string, bool) {
	segs := strings.Split(s, "/")
	for i, seg := range segs {
		plain, ok := unescape(seg)
		if !ok {
			return "", false
		}
		segs[i] = do(strings.ReplaceAll(plain, "/", "%2F"))
	}
	return strings.Join(segs, "/"), true
}

var servers = map[string]model{
	"tomcat": func(s string) (string, bool) {
		s, ok := unescape(parameters(s))
		if !ok || strings.Contains(s, "\x00") {
			return "", false
		}
		return resolved(merged(strings.ReplaceAll(s, `\`, "/")))
	},
	"jetty, dots before decoding": func(s string) (string, bool) {
		s, ok := resolved(parameters(escapedDots(s)))
		if !ok {
			return "", false
		}
		return unescape(s)
	},
	"jetty, dots after decoding": func(s string) (string, bool) {
		s, ok := unescape(parameters(s))
		if !ok {
			return "", false
		}
		return resolved(s)
	},
	"spring": func(s string) (string, bool) {
		s, ok := unescape(parameters(s))
		if !ok {
			return "", false
		}
		s = strings.TrimSuffix(merged(s), "/")
		if i := strings.LastIndex(s, "."); i > strings.LastIndex(s, "/")+1 {
			s = s[:i]
		}
		return s, true
	},
	"cut at the first parameter": func(s string) (string, bool) {
		s, ok := unescape(s)
		if !ok {
			return "", false
		}
		s, _, _ = strings.Cut(s, ";")
		return resolved(s)
	},
	"parameters of the last segment": func(s string) (string, bool) {
		if i := strings.LastIndex(s, "/"); strings.Contains(s[i:], ";") {
			s = s[:i+strings.Index(s[i:], ";")]
		}
		s, ok := unescape(s)
		if !ok {
			return "", false
		}
		return resolved(s)
	},
	"nginx": func(s string) (string, bool) {
		s, ok := unescape(s)
		if !ok || strings.Contains(s, "\x00") {
			return "", false
		}
		return resolved(merged(s))
	},
	"nginx without merge_slashes": func(s string) (string, bool) {
		s, ok := unescape(s)
		if !ok || strings.Contains(s, "\x00") {
			return "", false
		}
		return resolved(s)
	},
	"apache": func(s string) (string, bool) {
		if refusedByte.MatchString(s) {
			return "", false
		}
		s, ok := unescape(s)
		if !ok {
			return "", false
		}
		return resolved(merged(s))
	},
	"apache that keeps escaped slashes": func(s string) (string, bool) {
		s, ok := resolved(merged(escapedDots(s)))
		if !ok {
			return "", false
		}
		return each(s, strings.Clone)
	},
	"a rewriting that reads the query again": func(s string) (string, bool) {
		s, ok := unescape(s)
		if !ok {
			return "", false
		}
		if i := strings.IndexAny(s, "?#"); i >= 0 {
			s = s[:i]
		}
		return resolved(merged(s))
	},
	"strings that end at a NUL": func(s string) (string, bool) {
		s, ok := unescape(s)
		if !ok {
			return "", false
		}
		s, _, _ = strings.Cut(s, "\x00")
		return resolved(s)
	},
	"iis": func(s string) (string, bool) {
		for range 2 { // W3SVC and an application decode once each
			plain, ok := unescape(s)
			if !ok {
				break
			}
			s = plain
		}
		s = norm.NFKC.String(s)
		s = strings.NewReplacer(`\`, "/", "\u2215", "/", "\u2044", "/", "\u2216", "/").Replace(s)
		s, _, _ = strings.Cut(s, ":$")
		s, _, _ = strings.Cut(s, "::")
		segs := strings.Split(merged(s), "/")
		for i, seg := range segs {
			if seg = strings.TrimRight(seg, " "); seg != "." && seg != ".." {
				seg = strings.TrimRight(seg, " .")
			}
			segs[i] = strings.ToLower(seg)
		}
		return resolved(strings.Join(segs, "/"))
	},
	"overlong UTF-8": func(s string) (string, bool) {
		s, ok := unescape(s)
		if !ok {
			return "", false
		}
		return resolved(strings.NewReplacer("\xc0\xae", ".", "\xc0\xaf", "/", "\xe0\x80\xaf", "/").Replace(s))
	},
	"express": func(s string) (string, bool) {
		return each(strings.ToLower(strings.TrimSuffix(s, "/")), strings.Clone)
	},
	"express, files": func(s string) (string, bool) {
		s, ok := unescape(s)
		if !ok || strings.Contains(s, "\x00") {
			return "", false
		}
		return path.Clean("/" + s), true
	},
	"node's URL": func(s string) (string, bool) {
		s = strings.NewReplacer(`\`, "/", "\t", "").Replace(escapedDots(s))
		if rest, ok := strings.CutPrefix(s, "//"); ok {
			_, after, _ := strings.Cut(rest, "/")
			s = "/" + after
		}
		s = path.Clean(s)
		return unescape(s)
	},
	"rails": func(s string) (string, bool) {
		s, ok := each(strings.TrimSuffix(merged(s), "/"), strings.Clone)
		i := strings.LastIndex(s, "/")
		if j := strings.LastIndex(s, "."); ok && j > i+1 {
			s = s[:j]
		}
		return s, ok
	},
	"go's files": func(s string) (string, bool) {
		s, ok := unescape(s)
		if !ok {
			return "", false
		}
		return path.Clean("/" + s), true
	},
	"asp.net": func(s string) (string, bool) {
		s, ok := unescape(s)
		if !ok {
			return "", false
		}
		return resolved(cookielessPart.ReplaceAllString(s, ""))
	},
	"one that leaves out what cannot be seen": func(s string) (string, bool) {
		s, ok := unescape(s)
		if !ok {
			return "", false
		}
		return resolved(strings.Map(func(c rune) rune {
			if unicode.Is(unicode.Cf, c) {
				return -1
			}
			return c
		}, s))
	},
	"one that trims names": func(s string) (string, bool) {
		return each(s, strings.TrimSpace)
	},
	"a database that sees no strokes": func(s string) (string, bool) {
		s, ok := unescape(s)
		if !ok {
			return "", false
		}
		return strings.NewReplacer("\u0111", "d", "\u0142", "l", "\u00f8", "o").Replace(strings.ToLower(s)), true
	},
	"a database that folds accents": func(s string) (string, bool) {
		s, ok := unescape(s)
		if !ok {
			return "", false
		}
		return strings.ToLower(accent.ReplaceAllString(norm.NFKD.String(s), "")), true
	},
}

// proxies are what may stand before a server: they send another path on.
var proxies = map[string]model{
	"none": func(s string) (string, bool) { return s, true },
	"nginx that sends on what it read": func(s string) (string, bool) {
		s, ok := servers["nginx"](s)
		return (&url.URL{Path: s}).EscapedPath(), ok
	},
	"envoy that normalises": func(s string) (string, bool) { return resolved(escapedDots(s)) },
	"envoy that merges and unescapes slashes": func(s string) (string, bool) {
		return resolved(merged(escapedSlash.ReplaceAllString(escapedDots(s), "/")))
	},
	"one that drops parameters": func(s string) (string, bool) { return parameters(s), true },
	"one that merges slashes":   func(s string) (string, bool) { return merged(s), true },
}

var pathParts = []string{
	"/", "/", "/", "/", "//", "v1", "items", "admin", "secrets", "keys", "k.txt", "x", ".", "..", "/../", "/..", "/./", "../",
	"%2e", "%2E%2e", "%2f", "%2F", "%5c", `\`, "%252e", "%252f", "%00", "%23", "%3f", "%3F", "%20", ".", ".json", ";", ";a=b", ";/", "/;/", "%3b", "%3B",
	"..;", "..;/", "ADMIN", "Admin", "adm%69n", "%61dmin", "%c0%ae", "%c0%af", "%e2%88%95", "%ef%bc%8f", "%ef%bc%8e", "%ef%bd%81dmin", "%c3%a1dmin",
	"::$DATA", "/(S(x))/", "(S(x))", "/(A(x)F(y))", "%28S%28x%29%29/", "%c2%ad", "%e2%80%8b", "%ef%bb%bf", "/.%e2%80%8b./", "/%20admin", "/%c2%a0admin",
	"a%c4%91min", "/a%c4%90min", "%09", "..%2f", "%2e%2e%2f", "/admin", "/keys", "/secrets", "/v1", "/items",
}

func randomPath(rnd *rand.Rand) string {
	s := []string{"/v1/items/", "/v1/items", "/v1/", "/", "//", "/v1/items/admin", "/v1/items/x/keys"}[rnd.IntN(7)]
	for range rnd.IntN(7) {
		s += pathParts[rnd.IntN(len(pathParts))]
	}
	if rnd.IntN(2) == 0 {
		s += []string{"/v1/items/x", "/secrets/k.txt", "/admin/x.txt", "/v1/items/admin/x", "/x"}[rnd.IntN(5)]
	}
	return s
}

const pathRules = `
  - {allow: a.test, ports: 80, protocol: http, paths: [/v1/items/**]}
  - {deny: a.test, paths: [/v1/items/admin/**, /v1/items/*/keys]}`

// narrow is what the rules mean, and wide the same without the allow's path.
func narrow(resource string) bool {
	return (resource == "/v1/items" || strings.HasPrefix(resource, "/v1/items/")) && wide(resource)
}

func wide(resource string) bool { return !deniedPath.MatchString(resource) }

var deniedPath = regexp.MustCompile(`^/v1/items/(admin(/.*)?|[^/]+/keys/?)$`)

// Whatever a server makes of a path that is allowed, it is inside the allow and
// outside the denies.
func TestNoServerReadsAnAllowedPathElsewhere(t *testing.T) {
	for _, c := range []struct {
		name, rules string
		permitted   func(resource string) bool
	}{
		{"narrow", pathRules, narrow},
		{"wide", strings.Replace(pathRules, "paths: [/v1/items/**]", "paths: /**", 1), wide},
	} {
		t.Run(c.name, func(t *testing.T) { noServerReadsElsewhere(t, must(t, c.rules), c.permitted) })
	}
}

func noServerReadsElsewhere(t *testing.T, p *Policy, permitted func(string) bool) {
	rnd := rand.New(rand.NewPCG(7, 11))
	allowed, odd := 0, 0
	elsewhere := map[string]int{} // by server: odd paths that it reads as something else
	for i := range 2_500 {
		raw := randomPath(rnd)
		d := p.Decide(Request{Op: Ask, Host: "a.test", Port: 80, Method: "GET", Path: raw})
		if d.Allow {
			allowed++
			if strings.ContainsAny(raw, "%;") {
				odd++
			}
		}
		for proxy, sends := range proxies {
			sent, ok := sends(raw)
			// Of paths that are refused a few show that the models read them.
			if !ok || !d.Allow && (proxy != "none" || i%4 > 0) {
				continue
			}
			for server, reads := range servers {
				resource, ok := reads(sent)
				if !ok || permitted(resource) {
					continue
				}
				if permitted(raw) {
					elsewhere[server]++
				}
				if d.Allow {
					t.Fatalf("%q is allowed, and %s behind %s reads %q", raw, server, proxy, resource)
				}
			}
		}
	}
	if allowed < 75 || odd < 12 {
		t.Errorf("%d paths were allowed, %d of them odd: the test shows little", allowed, odd)
	}
	for server := range servers {
		if elsewhere[server] == 0 {
			t.Errorf("%s never read a path as something else: its model shows nothing", server)
		}
	}
}

func TestOddPaths(t *testing.T) {
	p := must(t, pathRules+`
  - {allow: free.test, ports: 80, protocol: http}
  - {allow: m.test, ports: 80, protocol: http, methods: [GET, POST, DELETE]}
  - {deny: m.test, methods: [DELETE, GET]}`)
	ask := func(host, method, path string) Decision {
		return p.Decide(Request{Op: Ask, Host: host, Port: 80, Method: method, Path: path})
	}
	for path, reason := range map[string]string{
		`/v1/items/a\b`: "backslash", "/v1/items/a%5Cb": "backslash", "/v1/items/%252e": "percent sign", "/v1/items/%zz": "broken escape",
		"/v1/items/%u002e": "broken escape", "/v1/items/%00": "control", "/v1/items/%0a": "control", "/v1/items/a#b": "fragment",
		"/v1/items/%c0%ae": "UTF-8", "/v1/items/%ff": "UTF-8", "/v1/items/%ef%bc%8fx": "U+FF0F", "/v1/items/%e2%88%95": "U+2215",
		"/v1/items/%ef%bc%8e": "U+FF0E", "/v1/items/x::$DATA": "stream", "/v1/items/...": "dots", "/v1/items/..%20/x": "dots", "/v1/items/.%e2%80%8b./x": "U+200B", "/v1/items/..%c2%ad/x": "U+00AD", "/v1/items/..%cc%80": "U+0300",
		"/v1/items/%e2%80%8b/x": "U+200B", "/v1/items/(S(abc))/x": "ASP.NET", "/v1/items/adm%28f(abc))in/x": "ASP.NET",
		"/v1/items/" + strings.Repeat("%ef%b7%ba", 1500): "taken apart", "/v1/items" + strings.Repeat("/a", 5000): "too long",
		"v1/items/x": "slash", "*": "slash", "": "slash", "http://a.test/v1/items/x": "slash", "/" + strings.Repeat("x", 20000): "longer",
		"/v1/items/" + strings.Repeat("a%2f..;x/%3b/b//./%2e/", 700): "ways", "/v1/items/x" + strings.Repeat(".a", 40) + "/": "dots",
		"/v1/items.a.%2f..%2fa..;/%2e%2e//%2f/../a%2f/..;///%2e%2e;%3b//..//%3f%2f;": "ways",
	} {
		d := ask("a.test", "GET", path)
		if d.Allow || d.Why != WhyOdd || !strings.Contains(d.Reason(), reason) || d.Hint() == "" {
			t.Errorf("%.60q: %v %q, want it to be refused because of %q", path, d.Allow, d.Reason(), reason)
		}
		if !ask("free.test", "GET", path).Allow {
			t.Errorf("%.60q is refused where no rule has paths", path)
		}
	}
	for _, c := range []struct{ method, query, reason string }{
		{"delete", "", "capitals"}, {"Get", "", "capitals"}, {"GET ", "", "capitals"}, {"", "", "capitals"}, {"G\u00cbT", "", "capitals"},
		{"POST", "?_method=DELETE", "_method"}, {"POST", "?a=b&%5Fmethod=x", "_method"}, {"POST", "?a;.METHOD=x", "_method"},
		{"POST", "?+_method=DELETE", "_method"}, {"POST", "?%20%20_method=DELETE", "_method"}, {"POST", "?_method%00x=DELETE", "control"}, {"POST", "?a=b&x%0a=y", "control"},
		{"POST", "?_method[]=DELETE", "_method"}, {"POST", "?_method[%zz]=DELETE", "_method"}, {"POST", "?[_method]=DELETE", "_method"}, {"POST", "?_method]=DELETE", "_method"},
		{"POST", "?[method=DELETE", "_method"}, {"POST", "?%C2%A0_method=DELETE", "_method"},
	} {
		if d := ask("m.test", c.method, "/"+c.query); d.Why != WhyOdd || !strings.Contains(d.Reason(), c.reason) {
			t.Errorf("%s %s: %v %q", c.method, c.query, d.Allow, d.Reason())
		}
		if !ask("free.test", c.method, "/"+c.query).Allow {
			t.Errorf("%s %s is refused where no rule asks for requests", c.method, c.query)
		}
	}
	if d := ask("m.test", "HEAD", "/"); d.Allow {
		t.Error("a deny of GET lets HEAD through")
	}
	if d := ask("m.test", "POST", "/?method=x&a_method=y&filter[method]=z&a[_method]=b&c=%00&d+e=f&%zz&="); !d.Allow {
		t.Errorf("a plain query is refused: %s", d.Reason())
	}
}

// What honest clients send passes.
func TestPathsOfHonestClients(t *testing.T) {
	p := must(t, `
  - {allow: a.test, ports: 80, protocol: http, paths: ["/@*", "/@*/*", "/v1/**", "/*.tgz", "/caf\u00e9/*", "/*/*/info/refs"]}
  - {deny: a.test, paths: /v1/admin/**}`)
	for path, want := range map[string]bool{
		"/@scope%2fname": true, "/@scope%2Fname": true, "/@scope/name": true, "/v1/models/m:generateContent": true, "/v1/a%20b": true, "/v1/a+b,c": true,
		"/v1/projects/group%2Fproject/x": true, "/v1/items;v=1/x": true, "/v1/x%3By": true, "/v1/what%3F": true, "/x-1.0.tgz": true,
		"/caf%C3%A9/x": true, "/v1/%E6%97%A5%E6%9C%AC": true, "/o/r.git/info/refs?service=git-upload-pack": true, "/v1/.well-known/x": true,
		"/v1/administrators": true, "/v1/a//b": true, "/v1/a/../b": true, "/v1": true, "/v1/": true, "/V1/x": false, "/v1/%e2%80%a6-x": true,
		"/v1/admin.json": false, "/v1/ADMIN./x": false, "/v1/admin%20": false, "/v1/%C3%A1dmin": false, "/v1/admi%EF%BD%8E": false, "/v1/a\u030admin/": false,
		"/v1/%20admin": false, "/v1/%c2%a0admin/x": false, "/v1/adm%c2%adin": false, "/v1/adm%cd%8fin/x": false, "/v1/a%c4%90min": false, "/v1/a%c4%91min/x": false,
		"/v1/Products(1)/a(b)": true, "/v1/%d0%b0": true, "/v1/%e7%ac%ac%ef%bc%91%ef%bc%8e": true, "/v1/x+y": true,
		"/v1/" + strings.Repeat("%ed%95%9c", 1000): true, "/v1" + strings.Repeat("/a", 500): true,
		"/v2": false, "/v1/../v1/x": true, "//v1/x": false,
	} {
		if d := p.Decide(Request{Op: Ask, Host: "a.test", Port: 80, Method: "GET", Path: path}); d.Allow != want {
			t.Errorf("%q: allow %v (%s), want %v", path, d.Allow, d.Reason(), want)
		}
	}
}

// queryModels are how servers read the names of a query's parameters. They share
// nothing with the code that they test.
var queryModels = map[string]func(query string) (names []string){
	// main/php_variables.c of PHP 8: blanks before a name go, it ends at a NUL,
	// and blanks, dots and what opens an array that is not closed are underscores.
	"php": func(query string) (names []string) {
		for pair := range strings.SplitSeq(query, "&") {
			name, _, _ := strings.Cut(pair, "=")
			name, _, _ = strings.Cut(strings.TrimLeft(phpDecoded(name), " "), "\x00")
			base, index, array := strings.Cut(name, "[")
			base = strings.NewReplacer(" ", "_", ".", "_").Replace(base)
			if array && !strings.Contains(index, "]") {
				base += "_" + index
			}
			names = append(names, base)
		}
		return names
	},
	// Rack::QueryParser of Rack 2.
	"rack": func(query string) (names []string) {
		for _, pair := range rackSeparator.Split(query, -1) {
			name, _, _ := strings.Cut(pair, "=")
			if m := rackName.FindStringSubmatch(phpDecoded(name)); m != nil {
				names = append(names, m[1])
			}
		}
		return names
	},
	"go": func(query string) (names []string) {
		values, _ := url.ParseQuery(query)
		for name := range values {
			names = append(names, name)
		}
		return names
	},
	"one that trims": func(query string) (names []string) {
		for pair := range strings.SplitSeq(query, "&") {
			name, _, _ := strings.Cut(pair, "=")
			names = append(names, strings.TrimSpace(phpDecoded(name)))
		}
		return names
	},
}

var (
	rackSeparator = regexp.MustCompile(`[&;] *`)
	rackName      = regexp.MustCompile(`^[\[\]]*([^\[\]]+)\]*`)
	escape        = regexp.MustCompile(`%[0-9A-Fa-f]{2}`)
)

// phpDecoded leaves broken escapes as they are.
func phpDecoded(s string) string {
	return escape.ReplaceAllStringFunc(strings.ReplaceAll(s, "+", " "), func(e string) string {
		c, _ := url.PathUnescape(e)
		return c
	})
}

func TestNoServerReadsAnotherMethod(t *testing.T) {
	p := must(t, "\n  - {allow: a.test, ports: 80, protocol: http, methods: [POST]}")
	parts := []string{"_method", "_method", "%5Fmethod", "_METHOD", "method", "_", ".", "+", "%20", "%00", "%0a", "[", "]", "[]", "[x]", "%5B", "%5d", "&", ";", "=", "%zz", "%", "x", "DELETE", "%c2%a0"}
	rnd := rand.New(rand.NewPCG(5, 8))
	allowed, read := 0, map[string]int{}
	for range 10_000 {
		query := ""
		for range 1 + rnd.IntN(6) {
			query += parts[rnd.IntN(len(parts))]
		}
		d := p.Decide(Request{Op: Ask, Host: "a.test", Port: 80, Method: "POST", Path: "/?" + query})
		if d.Allow {
			allowed++
		}
		for server, names := range queryModels {
			for _, name := range names(query) {
				if !strings.EqualFold(name, "_method") {
					continue
				}
				if read[server]++; d.Allow {
					t.Fatalf("%q is allowed, and %s reads a _method", query, server)
				}
			}
		}
	}
	if allowed < 500 || len(read) < len(queryModels) {
		t.Errorf("%d queries are allowed, and %v read a _method: the test shows little", allowed, read)
	}
}
