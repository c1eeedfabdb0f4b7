package credential

import (
	"encoding/base64"
	"encoding/hex"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"

	"creel/internal/policy"
	"creel/internal/secret"

	"github.com/google/go-cmp/cmp"
)

const (
	theValue   = "sk-live/7Qf3+xW0aB"
	theStandIn = "sk-live-standin-0000"
	theCanary  = "AKIACANARY0123456789"
)

func grant(t testing.TB, name, value string, use secret.Use) secret.Grant {
	t.Helper()
	v, err := secret.NewValue(value)
	if err != nil {
		t.Fatal(err)
	}
	g := secret.Grant{Name: name, Value: v, Binding: secret.Binding{Hosts: []string{"api.test"}, Use: use}}
	if use.As == secret.AsStandIn {
		g.Binding.Use.Env = "KEY"
		g.StandIn = theStandIn
	}
	return g
}

func wallet(t testing.TB, grants ...secret.Grant) *Wallet {
	t.Helper()
	w, err := New(grants, []Canary{{"aws", theCanary}})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// request is made of a target and of lines of a header.
func request(target string, lines ...string) *http.Request {
	r := httptest.NewRequest("GET", target, nil)
	for _, l := range lines {
		name, value, _ := strings.Cut(l, ": ")
		r.Header.Add(name, value)
	}
	return r
}

func basic(user, password string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
}

// everyCredential is all that a task may bring of its own.
var everyCredential = []string{
	"authorization: Bearer own", "Authorization: Bearer second", "Proxy-Authorization: x", "Cookie: a=b", "cookie: c=d", "X-API-KEY: own",
	"Api-Key: own", "Apikey: own", "X-Goog-Api-Key: own", "X-Auth-Token: own", "X-Access-Token: own", "Private-Token: own",
	"X-Gitlab-Token: own", "X-Vault-Token: own", "X-Amz-Security-Token: own", "Accept: kept",
}

func TestPut(t *testing.T) {
	esc := url.QueryEscape(theValue)
	for name, c := range map[string]struct {
		use       secret.Use
		target    string
		lines     []string
		want      http.Header
		wantQuery string
		swaps     bool
	}{
		"header": {secret.Use{As: secret.AsHeader, Name: "x-key", Prefix: "token "}, "/?a=%31&access_token=own&b",
			append(everyCredential, "X-Key: own", "x-key: own too"), http.Header{"Accept": {"kept"}, "X-Key": {"token " + theValue}}, "a=%31&b", true},
		"bearer": {secret.Use{As: secret.AsBearer}, "/?api_key=own", everyCredential,
			http.Header{"Accept": {"kept"}, "Authorization": {"Bearer " + theValue}}, "", true},
		"basic": {secret.Use{As: secret.AsBasic, User: "me"}, "/", everyCredential,
			http.Header{"Accept": {"kept"}, "Authorization": {basic("me", theValue)}}, "", true},
		"query": {secret.Use{As: secret.AsQuery, Name: "key"}, "/?key=own&a=1&k%65y=own&%zz=x&&", everyCredential,
			http.Header{"Accept": {"kept"}}, "a=1&%zz=x&&&key=" + esc, true},
		"query alone": {secret.Use{As: secret.AsQuery, Name: "key"}, "/?key=own", nil, http.Header{}, "key=" + esc, true},
		"stand-in": {secret.Use{As: secret.AsStandIn}, "/?x=" + theStandIn, []string{"Authorization: token " + theStandIn, "X-Api-Key: own", "X-Other: " + theStandIn},
			http.Header{"Authorization": {"token " + theValue}, "X-Other": {theStandIn}}, "x=" + theStandIn, true},
		"stand-in with something around it": {secret.Use{As: secret.AsStandIn, In: []string{"header:Authorization", "header:X-Own", "query:key"}}, "/?key=a" + theStandIn,
			[]string{"Authorization: padding " + theStandIn, "Authorization: token  " + theStandIn, "X-Own: " + theStandIn + ", " + theStandIn},
			http.Header{"X-Own": {theStandIn + ", " + theStandIn}}, "", false},
		"stand-in with Rails' scheme": {secret.Use{As: secret.AsStandIn}, "/", []string{"Authorization: Token token=\"" + theStandIn + "\""},
			http.Header{"Authorization": {"Token token=\"" + theValue + "\""}}, "", true},
		"stand-in in basic credentials, not alone": {secret.Use{As: secret.AsStandIn}, "/", []string{"Authorization: " + basic("x", "y"+theStandIn)}, http.Header{}, "", false},
		"stand-in as a cookie": {secret.Use{As: secret.AsStandIn, In: []string{"header:Cookie"}}, "/", []string{"Cookie: own=1; session=" + theStandIn + ";b=x" + theStandIn},
			http.Header{"Cookie": {"session=" + theValue}}, "", true},
		"stand-in as a cookie, where none is swapped": {secret.Use{As: secret.AsStandIn}, "/", []string{"Cookie: own=1; session=" + theStandIn}, http.Header{"Cookie": {"session=" + theStandIn}}, "", false},
		"stand-in twice": {secret.Use{As: secret.AsStandIn}, "/", []string{"Authorization: Bearer " + theStandIn, "X-Api-Key: " + theStandIn},
			http.Header{"Authorization": {"Bearer " + theValue}, "X-Api-Key": {theValue}}, "", true},
		"stand-in as password": {secret.Use{As: secret.AsStandIn}, "/", []string{"Authorization: " + basic("me", theStandIn)},
			http.Header{"Authorization": {basic("me", theValue)}}, "", true},
		"stand-in as user": {secret.Use{As: secret.AsStandIn}, "/", []string{"Authorization: " + basic(theStandIn, "")},
			http.Header{"Authorization": {basic(theValue, "")}}, "", true},
		"stand-in in a query": {secret.Use{As: secret.AsStandIn, In: []string{"query:key"}}, "/?b=%20&k%65y=" + theStandIn + ";c=" + theStandIn + "&d", nil,
			http.Header{}, "b=%20&k%65y=" + esc + ";c=" + theStandIn + "&d", true},
		"parameters behind semicolons": {secret.Use{As: secret.AsBearer}, "/?a=1;access_token=own&Private-Token=own;b=2;api%5Fkey=own", nil,
			http.Header{"Authorization": {"Bearer " + theValue}}, "a=1;b=2", true},
		"query behind a semicolon": {secret.Use{As: secret.AsQuery, Name: "my-name"}, "/?a=1;my-name=own;MY_NAME=own&b", nil, http.Header{}, "a=1;b&my-name=" + esc, true},
		"stand-in beside its own": {secret.Use{As: secret.AsStandIn}, "/", []string{"Authorization: " + theStandIn, "authorization: own"},
			http.Header{"Authorization": {theValue}}, "", true},
		"no stand-in": {secret.Use{As: secret.AsStandIn}, "/?x=" + theStandIn, []string{"Authorization: own", "Cookie: " + theStandIn},
			http.Header{"Cookie": {theStandIn}}, "x=" + theStandIn, false},
	} {
		t.Run(name, func(t *testing.T) {
			w := wallet(t, grant(t, "key", theValue, c.use))
			r := request(c.target, c.lines...)
			before := r.Clone(t.Context())
			out := r.Clone(t.Context())
			placed := w.Put("api.test", "key", out)
			swaps := slices.ContainsFunc(placed, func(p Placed) bool { return p.Fate == Swapped })
			if c.use.As == secret.AsStandIn && swaps != c.swaps {
				t.Errorf("swapped: %+v", placed)
			}
			if d := cmp.Diff(before.Header, r.Header) + cmp.Diff(before.URL.String(), r.URL.String()); d != "" {
				t.Errorf("the request that was judged has changed: %s", d)
			}
			if d := cmp.Diff(c.want, out.Header); d != "" {
				t.Error(d)
			}
			if out.URL.RawQuery != c.wantQuery {
				t.Errorf("query %q, want %q", out.URL.RawQuery, c.wantQuery)
			}
		})
	}
}

// What became of a placeholder is said by place.
func TestPutSaysWhatItDid(t *testing.T) {
	both := []secret.Grant{grant(t, "key", theValue, secret.Use{As: secret.AsStandIn}), grant(t, "plain", "another value of a secret", secret.Use{As: secret.AsBearer})}
	for name, c := range map[string]struct {
		host, use, target string
		lines             []string
		want              []Placed
	}{
		"swapped":                 {"api.test", "key", "/", []string{"Authorization: Bearer " + theStandIn}, []Placed{{"key", "header:Authorization", Swapped}}},
		"swapped in basic":        {"api.test", "key", "/", []string{"Authorization: " + basic("me", theStandIn)}, []Placed{{"key", "header:Authorization", Swapped}}},
		"unknown scheme":          {"api.test", "key", "/", []string{"Authorization: Digest " + theStandIn}, []Placed{{"key", "header:Authorization", TakenOut}}},
		"part of basic":           {"api.test", "key", "/", []string{"Authorization: " + basic("me", "x"+theStandIn)}, []Placed{{"key", "header:Authorization", TakenOut}}},
		"another header":          {"api.test", "key", "/", []string{"X-Odd: " + theStandIn}, []Placed{{"key", "header:X-Odd", Left}}},
		"query":                   {"api.test", "key", "/?token=a" + theStandIn + "&note=" + theStandIn, nil, []Placed{{"key", "query:note", Left}, {"key", "query:token", TakenOut}}},
		"path and swapped":        {"api.test", "key", "/" + theStandIn, []string{"Authorization: Bearer " + theStandIn}, []Placed{{"key", "header:Authorization", Swapped}, {"key", "path", Left}}},
		"another secret goes":     {"api.test", "plain", "/", []string{"Authorization: Bearer " + theStandIn}, []Placed{{"key", "header:Authorization", TakenOut}}},
		"none goes":               {"api.test", "", "/", []string{"Authorization: Bearer " + theStandIn}, []Placed{{"key", "header:Authorization", Left}}},
		"not where it belongs to": {"other.test", "", "/", []string{"Authorization: Bearer " + theStandIn}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			if d := cmp.Diff(c.want, wallet(t, both...).Put(c.host, c.use, request(c.target, c.lines...))); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestBound(t *testing.T) {
	g := grant(t, "key", theValue, secret.Use{As: secret.AsBearer})
	g.Binding.Methods, g.Binding.Paths = []string{"GET", "POST"}, []string{"/v1/*"}
	w := wallet(t, g)
	for _, c := range []struct {
		name, host, method, path string
		want                     bool
	}{
		{"key", "api.test", "GET", "/v1/x", true}, {"key", "api.test", "POST", "/v1/x?y", true},
		{"key", "api.test", "DELETE", "/v1/x", false}, {"key", "api.test", "GET", "/v2/x", false},
		{"key", "other.test", "GET", "/v1/x", false}, {"key", "sub.api.test", "GET", "/v1/x", false},
		{"key", "", "GET", "/v1/x", false}, {"other", "api.test", "GET", "/v1/x", false},
	} {
		err := w.Bound(c.name, policy.Request{Host: c.host, Port: 443, Protocol: policy.TLS, Method: c.method, Path: c.path})
		if (err == nil) != c.want {
			t.Errorf("%+v: %v", c, err)
		}
		if err != nil && strings.Contains(err.Error(), theValue) {
			t.Errorf("the value is in %v", err)
		}
	}
}

func TestLook(t *testing.T) {
	w := wallet(t, grant(t, "key", theValue, secret.Use{As: secret.AsStandIn}))
	h := hex.EncodeToString([]byte(theCanary))
	var escaped strings.Builder
	for _, c := range []byte(theCanary) {
		escaped.WriteString("%" + hex.EncodeToString([]byte{c}))
	}
	for name, c := range map[string]struct {
		r    *http.Request
		want *Found
	}{
		"nothing":       {request("/a?b", "Cookie: c=d"), nil},
		"header":        {request("/", "X-Key: "+theCanary), &Found{"canary aws", "header"}},
		"second header": {request("/", "X-Key: a", "X-Key: b"+theCanary), &Found{"canary aws", "header"}},
		"cookie":        {request("/", "Cookie: a=b; c="+theCanary), &Found{"canary aws", "header"}},
		"referer":       {request("/", "Referer: https://x.test/?a="+url.QueryEscape(theCanary)), &Found{"canary aws", "header"}},
		"basic":         {request("/", "Authorization: "+basic("user", theCanary)), &Found{"canary aws", "header"}},
		"basic user":    {request("/", "Authorization: "+basic(theCanary, "x")), &Found{"canary aws", "header"}},
		"hex":           {request("/", "X-Key: "+h), &Found{"canary aws", "header"}},
		"header's name": {request("/", "X-"+theCanary+": 1"), &Found{"canary aws", "header"}},
		"low name":      {request("/", strings.ToLower(theCanary)+": 1"), &Found{"canary aws", "header"}},
		"path":          {request("/a/" + theCanary), &Found{"canary aws", "path"}},
		"escaped path":  {request("/a/" + escaped.String()), &Found{"canary aws", "path"}},
		"query":         {request("/?a=" + theCanary), &Found{"canary aws", "query"}},
		"query's name":  {request("/?" + theCanary), &Found{"canary aws", "query"}},
		"base64 query":  {request("/?a=" + url.QueryEscape(base64.StdEncoding.EncodeToString([]byte("x"+theCanary)))), &Found{"canary aws", "query"}},
		"method":        {&http.Request{Method: theCanary, URL: &url.URL{Path: "/"}}, &Found{"canary aws", "path"}},
		"stand-in":      {request("/", "X-Key: "+theStandIn), &Found{"stand-in key", "header"}},
	} {
		t.Run(name, func(t *testing.T) {
			if d := cmp.Diff(c.want, w.Look("other.test", c.r)); d != "" {
				t.Error(d)
			}
			here := w.Look("api.test", c.r)
			if own := c.want != nil && c.want.Mark == "stand-in key"; own && here != nil || !own && cmp.Diff(c.want, here) != "" {
				t.Errorf("for the secret's own host: %v", here)
			}
		})
	}
}

func TestMark(t *testing.T) {
	for _, c := range [][3]string{{"canary aws", "canary", "aws"}, {"stand-in key", "stand-in", "key"}} {
		if alert, name := Mark(c[0]); alert != c[1] || name != c[2] {
			t.Errorf("%q is %q of %q", c[0], alert, name)
		}
	}
}

func TestAnEmptyWallet(t *testing.T) {
	for _, w := range []*Wallet{nil, {}} {
		if !w.Values().Empty() || w.Bound("key", policy.Request{}) == nil || w.As("key") != "" || len(w.Put("api.test", "", request("/"))) != 0 {
			t.Errorf("%v holds something", w)
		}
	}
	var none *Wallet
	if none.Look("api.test", request("/")) != nil || !none.Marks("api.test").Empty() {
		t.Error("nil finds something")
	}
}

func TestErrorsHideValues(t *testing.T) {
	g := grant(t, "key", theValue+"\nx", secret.Use{As: secret.AsBearer})
	if _, err := New([]secret.Grant{g}, nil); err == nil || strings.Contains(err.Error(), theValue) {
		t.Errorf("got %v", err)
	}
	g = grant(t, "key", theValue, secret.Use{As: secret.AsStandIn})
	g.StandIn = "short"
	if _, err := New([]secret.Grant{g}, nil); err == nil || strings.Contains(err.Error(), theValue) {
		t.Errorf("got %v", err)
	}
}

func FuzzLook(f *testing.F) {
	f.Add("GET", "/a?b=c", "X-Key", "value")
	f.Add("GET", "//%zz?;", "Authorization", basic("a", theCanary))
	f.Add("A B", "*", "\x00", "\xff\x00")
	w := wallet(f, grant(f, "key", theValue, secret.Use{As: secret.AsStandIn, In: []string{"header:Authorization", "query:key"}}))
	f.Fuzz(func(t *testing.T, method, target, name, value string) {
		u, err := url.ParseRequestURI(target)
		if err != nil {
			return
		}
		r := &http.Request{Method: method, URL: u, Header: http.Header{name: {value}}}
		found := w.Look("other.test", r)
		if strings.Contains(value, theCanary) && found == nil {
			t.Errorf("missed in %q", value)
		}
		swaps := slices.ContainsFunc(w.Put("api.test", "key", r), func(p Placed) bool { return p.Fate == Swapped })
		if swaps && !slices.Contains([]string{"Authorization"}, name) && !strings.Contains(u.RawQuery, "=") {
			t.Errorf("swapped in %q, %q", name, target)
		}
	})
}

func FuzzWithoutParameter(f *testing.F) {
	for _, q := range []string{"", "a", "a=1&b=2", "&&a=1&", "%61=1&b", "A=1", "a;b=1", "b;a=1;c", "%zz=1", "a=%zz", "b=a&a"} {
		f.Add(q, "a")
	}
	f.Fuzz(func(t *testing.T, query, name string) {
		is := func(pair string) bool {
			key, _, _ := strings.Cut(pair, "=")
			plain, err := url.QueryUnescape(key)
			return err == nil && plain == name
		}
		separator := func(r rune) bool { return r == '&' || r == ';' }
		var want []string
		for _, pair := range strings.FieldsFunc(query, separator) {
			if !is(pair) {
				want = append(want, pair)
			}
		}
		got := withoutParameter(query, func(p parameter) bool { return p.key == name && is(p.raw) })
		if name != "" && strings.Join(want, "&") != strings.Join(strings.FieldsFunc(got, separator), "&") {
			t.Errorf("%q without %q is %q", query, name, got)
		}
		if join(split(query)) != query {
			t.Errorf("%q became %q", query, join(split(query)))
		}
	})
}
