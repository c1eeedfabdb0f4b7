package credential

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"creel/internal/secret"
)

// Fate is what became of a placeholder in one place of a request.
type Fate string

const (
	Swapped  Fate = "swapped"   // the secret is in its place
	TakenOut Fate = "taken out" // with the credential of the task's own that it was a part of
	Left     Fate = "left"      // it goes as it is
)

// Placed is a placeholder that a request brought.
type Placed struct {
	Secret string
	Place  string // header:NAME, query:NAME or path
	Fate   Fate
}

// Put puts a secret that is held into a request to host, which it changes, and
// takes out what the task brought. A stand-in stays that is not where it is
// swapped. It returns what became of the placeholders of all secrets that host
// may have. With name "" the request stays as it is.
func (w *Wallet) Put(host, name string, r *http.Request) (all []Placed) {
	for _, known := range w.PlaceholdersFor(host) {
		for _, place := range w.held[known].places(r) {
			all = append(all, Placed{known, place, TakenOut})
		}
	}
	var swapped []string
	if name != "" {
		swapped = w.held[name].putIn(r)
	}
	for i, p := range all {
		switch {
		case slices.Contains(w.held[p.Secret].places(r), p.Place):
			all[i].Fate = Left
		case p.Secret == name && slices.Contains(swapped, p.Place):
			all[i].Fate = Swapped
		}
	}
	return all
}

// putIn returns the places in which the value is now instead of a stand-in.
func (h *held) putIn(r *http.Request) (swapped []string) {
	use, value := h.Binding.Use, h.Value.Reveal()
	h.takeOut(r)
	switch use.As {
	case secret.AsHeader:
		r.Header.Set(use.Name, use.Prefix+value)
	case secret.AsBearer:
		r.Header.Set("Authorization", "Bearer "+value)
	case secret.AsBasic:
		r.SetBasicAuth(use.User, value)
	case secret.AsQuery:
		q := withoutParameter(r.URL.RawQuery, func(p parameter) bool { return normal(p.key) == normal(use.Name) })
		if q != "" {
			q += "&"
		}
		r.URL.RawQuery = q + url.QueryEscape(use.Name) + "=" + url.QueryEscape(value)
	case secret.AsStandIn:
		return h.swap(r)
	}
	return nil
}

// places are where a request's head holds the stand-in.
func (h *held) places(r *http.Request) (all []string) {
	for name, values := range r.Header {
		if slices.ContainsFunc(values, h.isIn) {
			all = append(all, "header:"+http.CanonicalHeaderKey(name))
		}
	}
	for _, p := range split(r.URL.RawQuery) {
		if place := "query:" + p.key; strings.Contains(p.raw+"\n"+p.key+"\n"+p.value, h.StandIn) && !slices.Contains(all, place) {
			all = append(all, place)
		}
	}
	if strings.Contains(r.Method+"\n"+r.URL.EscapedPath(), h.StandIn) {
		all = append(all, "path")
	}
	slices.Sort(all)
	return all
}

// isIn tells whether a header's value holds the stand-in.
func (h *held) isIn(v string) bool {
	r := http.Request{Header: http.Header{"Authorization": {v}}}
	user, password, _ := r.BasicAuth()
	return strings.Contains(v+"\n"+user+"\n"+password, h.StandIn)
}

// takeOut takes out the credentials that the task brought. A stand-in alone
// stays: it is swapped, or harmless.
func (h *held) takeOut(r *http.Request) {
	standIn := h.Binding.Use.As == secret.AsStandIn
	for name, values := range r.Header {
		if !carriesCredential(name) {
			continue
		}
		var left []string
		for _, v := range values {
			if _, ok := h.put(h.StandIn, name, v); standIn && ok {
				if name == "Cookie" {
					v, _ = h.put(h.StandIn, name, v) // without the task's own
				}
				left = append(left, v)
			}
		}
		if r.Header[name] = left; left == nil {
			delete(r.Header, name)
		}
	}
	r.URL.RawQuery = withoutParameter(r.URL.RawQuery, func(p parameter) bool {
		return parameterCarriesCredential(p.key) && !(standIn && p.value == h.StandIn)
	})
}

// swap puts the value in the place of the stand-in, and returns where it did.
func (h *held) swap(r *http.Request) (places []string) {
	for _, place := range h.Binding.Use.Places() {
		kind, name, _ := strings.Cut(place, ":")
		swapped := false
		if kind == "header" {
			place = "header:" + http.CanonicalHeaderKey(name)
			for i, v := range r.Header.Values(name) {
				if s, ok := h.put(h.Value.Reveal(), name, v); ok {
					r.Header.Values(name)[i], swapped = s, true
				}
			}
		} else {
			parameters := split(r.URL.RawQuery)
			for i, p := range parameters {
				if p.key == name && p.value == h.StandIn {
					raw, _, _ := strings.Cut(p.raw, "=")
					parameters[i].raw, swapped = raw+"="+url.QueryEscape(h.Value.Reveal()), true
				}
			}
			r.URL.RawQuery = join(parameters)
		}
		if swapped {
			places = append(places, place)
		}
	}
	return places
}

// schemes are those of Authorization, and of headers like it, behind which a
// credential is a word of its own.
var schemes = []string{
	"apikey", "api-key", "api_key", "app", "basic", "bearer", "bot", "deepl-auth-key", "geniekey", "jwt", "key", "klaviyo-api-key", "oauth",
	"splunk", "ssws", "token", "x-api-key", "zoho-oauthtoken",
}

// tokens are the forms that a stand-in has behind a scheme.
var tokens = []string{"%s", "token=%s", `token="%s"`}

// put is a header's value with a text in the place of the stand-in, which must
// be a whole token of it: all of it, what follows a scheme, the user or the
// password of basic credentials, or a cookie. Somebody who chooses what stands
// before it would otherwise choose which part of the secret is in what an
// upstream repeats of the header.
func (h *held) put(text, name, v string) (string, bool) {
	if v == h.StandIn {
		return text, true
	}
	if http.CanonicalHeaderKey(name) == "Cookie" {
		return h.putInCookie(text, v)
	}
	scheme, token, _ := strings.Cut(v, " ")
	if !slices.Contains(schemes, strings.ToLower(scheme)) {
		return v, false
	}
	for _, form := range tokens {
		if token == fmt.Sprintf(form, h.StandIn) {
			return scheme + " " + fmt.Sprintf(form, text), true
		}
	}
	r := http.Request{Header: http.Header{"Authorization": {v}}}
	user, password, ok := r.BasicAuth()
	if !ok || user != h.StandIn && password != h.StandIn {
		return v, false
	}
	for _, part := range []*string{&user, &password} {
		if *part == h.StandIn {
			*part = text
		}
	}
	r.SetBasicAuth(user, password)
	return r.Header.Get("Authorization"), true
}

// putInCookie keeps the cookies that are the stand-in, and no others: they are
// the task's own.
func (h *held) putInCookie(text, v string) (string, bool) {
	var kept []string
	for pair := range strings.SplitSeq(v, ";") {
		name, value, _ := strings.Cut(strings.TrimSpace(pair), "=")
		if value == h.StandIn {
			kept = append(kept, name+"="+text)
		}
	}
	return strings.Join(kept, "; "), len(kept) > 0
}

// parameter is one of a query's.
type parameter struct {
	raw        string // as it was written
	after      string // the separator behind it, "" at the end
	key, value string // decoded, where they can be
}

// split reads a query as the more generous servers do: a semicolon separates
// parameters, too.
func split(query string) (all []parameter) {
	for query != "" {
		end := strings.IndexAny(query, "&;")
		p := parameter{raw: query}
		if end >= 0 {
			p.raw, p.after = query[:end], query[end:end+1]
		}
		query = query[len(p.raw)+len(p.after):]
		p.key, p.value, _ = strings.Cut(p.raw, "=")
		for _, text := range []*string{&p.key, &p.value} {
			if plain, err := url.QueryUnescape(*text); err == nil {
				*text = plain
			}
		}
		all = append(all, p)
	}
	return all
}

func join(parameters []parameter) string {
	var b strings.Builder
	for _, p := range parameters {
		b.WriteString(p.raw + p.after)
	}
	return b.String()
}

// withoutParameter leaves the rest of a query as it was written.
func withoutParameter(query string, out func(parameter) bool) string {
	all := split(query)
	kept := slices.DeleteFunc(slices.Clone(all), out)
	if len(kept) == len(all) {
		return query
	}
	if n := len(kept); n > 0 && all[len(all)-1].after == "" && kept[n-1].after != "" {
		kept[n-1].after = "" // the last was taken out
	}
	return join(kept)
}
