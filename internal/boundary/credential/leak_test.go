package credential

import (
	"encoding/base64"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"testing"

	"creel/internal/boundary/scrub"
	"creel/internal/secret"
)

// common is the length of the longest part of value in text.
func common(value, text string) (n int) {
	for i := range value {
		for i+n < len(value) && strings.Contains(text, value[i:i+n+1]) {
			n++
		}
	}
	return n
}

var base64Runs = regexp.MustCompile(`[A-Za-z0-9+/]{4,}`)

// readable is what can be read of a text, in the encodings that a value is put
// into requests with. What is decoded of base64 may begin with a character that
// is there in part.
func readable(text string) (plain, decoded string) {
	plain = text
	if q, err := url.QueryUnescape(text); err == nil {
		plain += "\n" + q
	}
	for _, run := range base64Runs.FindAllString(text, -1) {
		for skip := range min(4, len(run)) {
			b, _ := base64.RawStdEncoding.DecodeString(run[skip : len(run)-(len(run)-skip)%4])
			decoded += "\n" + string(b)
		}
	}
	return plain, decoded
}

func random(r *rand.Rand, alphabet string, n int) string {
	b := make([]byte, n)
	for i := range b {
		b[i] = alphabet[r.IntN(len(alphabet))]
	}
	return string(b)
}

// surroundings are requests that a guest makes with a stand-in: what it should
// send, and what gives it a choice of what stands around the stand-in.
func surroundings(r *rand.Rand, standIn string) *http.Request {
	const letters = "abcdefghijklmnopqrstuvwxyz ABCDEF0123456789=:;,&%+/\"'"
	pad := func() string { return random(r, letters, r.IntN(12)) }
	word := strings.NewReplacer(":", "", " ", "")
	scheme := append([]string{"", "Unknown"}, schemes...)[r.IntN(len(schemes)+2)]
	values := []string{
		standIn, scheme + " " + standIn, pad() + standIn, standIn + pad(), pad() + standIn + pad(), scheme + " " + pad() + standIn,
		scheme + " token=" + standIn, "Basic " + base64.StdEncoding.EncodeToString([]byte(word.Replace(pad())+":"+standIn)),
		"Basic " + base64.StdEncoding.EncodeToString([]byte(standIn+":"+pad())),
		"Basic " + base64.StdEncoding.EncodeToString([]byte(pad()+standIn+pad())), "a=" + standIn + "; b=" + pad(), pad() + "=" + standIn,
	}
	q := []string{"key=" + url.QueryEscape(standIn), "key=" + url.QueryEscape(pad()+standIn), "a=" + url.QueryEscape(pad()) + ";key=" + standIn, pad()}
	req := httptest.NewRequest("GET", "/", nil)
	req.URL.RawQuery = q[r.IntN(len(q))]
	for _, name := range []string{"Authorization", "X-Api-Key", "Cookie", "X-Own"} {
		req.Header[name] = []string{values[r.IntN(len(values))]}
	}
	return req
}

// Whatever a guest puts around a stand-in, and whatever piece of the request an
// upstream repeats, no more than scrub.Loose characters of the value come back.
func TestPiecesOfWhatIsSentDoNotComeBack(t *testing.T) {
	r := rand.New(rand.NewPCG(11, 12))
	swapped := 0
	for round := range 200 {
		const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_+/"
		public := []string{"", "sk-ant-api03-", "ghp_", "eyJhbGciOiJIUzI1NiJ9."}[round%4]
		hidden := random(r, letters, 8+r.IntN(60))
		if strings.HasPrefix(public, "eyJ") {
			hidden = random(r, letters, 12) + "." + random(r, letters, 20)
		}
		value := public + hidden
		g := grant(t, "key", value, secret.Use{As: secret.AsStandIn, In: []string{"header:Authorization", "header:X-Api-Key", "header:Cookie", "header:X-Own", "query:key"}})
		w, err := New([]secret.Grant{g}, nil)
		if err != nil {
			t.Fatal(err)
		}
		req := surroundings(r, g.StandIn)
		w.Put("api.test", "key", req)
		sent := []string{req.URL.RequestURI()}
		for name, values := range req.Header {
			sent = append(sent, name+": "+strings.Join(values, ", "))
		}
		most := scrub.Loose(len(hidden))
		for _, text := range sent {
			plain, decoded := readable(text)
			if strings.Contains(plain+decoded, value) {
				swapped++
			}
			for range 60 {
				from := r.IntN(len(text))
				to := from + 1 + r.IntN(len(text)-from)
				clean, _ := w.Values().Text(text[from:to])
				plain, decoded = readable(clean)
				if n, m := common(hidden, plain), common(hidden, decoded); n > most || m > most+2 {
					t.Fatalf("of %q, in %q, %d and %d characters come back in %q", hidden, text[from:to], n, m, clean)
				}
			}
		}
	}
	if swapped < 50 {
		t.Errorf("the value was sent only %d times", swapped)
	}
}

// What stands before the value is not of the guest's choice, but for the user of
// basic credentials and a cookie's name.
func TestTheGuestDoesNotMoveTheValue(t *testing.T) {
	r := rand.New(rand.NewPCG(13, 14))
	for range 1000 {
		w := wallet(t, grant(t, "key", theValue, secret.Use{As: secret.AsStandIn, In: []string{"header:Authorization", "header:X-Own", "query:key"}}))
		req := surroundings(r, theStandIn)
		w.Put("api.test", "key", req)
		for _, name := range []string{"Authorization", "X-Own"} {
			before, after, found := strings.Cut(req.Header.Get(name), theValue)
			known := before == "" && after == ""
			for _, s := range schemes {
				known = known || strings.EqualFold(before, s+" ") && after == "" || strings.EqualFold(before, s+" token=") && after == ""
			}
			if found && !known {
				t.Fatalf("%s: %q", name, req.Header[name])
			}
		}
		if q := req.URL.Query(); strings.Contains(q.Get("key"), theValue) && q.Get("key") != theValue {
			t.Fatalf("query %q", req.URL.RawQuery)
		}
	}
}

// names are of headers and parameters in real use.
func TestWhatCarriesACredential(t *testing.T) {
	for name, want := range map[string]bool{
		"Authorization": true, "Proxy-Authorization": true, "X-Authorization": true, "Authentication": true, "Cookie": true, "Private-Token": true, "Job-Token": true,
		"Deploy-Token": true, "X-Gitlab-Token": true, "X-Amz-Security-Token": true, "Dd-Api-Key": true, "Dd-Application-Key": true, "X-Trackertoken": true,
		"Ocp-Apim-Subscription-Key": true, "X-Rapidapi-Key": true, "X-Auth-Key": true, "X_auth_token": true, "X-Figma-Token": true, "Circle-Token": true,
		"X-Client-Secret": true, "Apikey": true, "X-Apikey": true, "Key": true, "Token": true, "X-Auth": true, "X-Jwt-Assertion": true, "X-Pat": true,
		"X-Goog-Iam-Authorization-Token": true, "Fastly-Key": true, "X-Consul-Token": true, "X-Password": true, "X-Cookie": true,
		"Accept": false, "Content-Type": false, "Sec-Websocket-Key": false, "Idempotency-Key": false, "X-Csrf-Token": false, "If-Match": false,
		"X-Request-Id": false, "Mcp-Session-Id": false, "Author": false, "X-Author": false, "Lock-Token": false, "X-Max-Tokens": false, "Keep-Alive": false,
		"X-Amz-Content-Sha256": false, "X-Amz-Server-Side-Encryption-Customer-Key": false, "Cache-Control": false, "Surrogate-Key": false, "Www-Pat-Id": false,
		"Anthropic-Version": false, "Openai-Organization": false, "X-Compat": false, "X-Monkey": false,
	} {
		if got := carriesCredential(name); got != want {
			t.Errorf("header %s: %v", name, got)
		}
	}
	for name, want := range map[string]bool{
		"access_token": true, "private_token": true, "job_token": true, "key": true, "KEY": true, "token": true, "api_key": true, "api-key": true, "apiKey": true,
		"access_token[]": true, "access.token": true, "client_secret": true, "password": true, "sig": true, "X-Amz-Signature": true, "X-Amz-Security-Token": true,
		"oauth_token": true, "authToken": true, "AWSAccessKeyId": true, "x-goog-credential": true, "auth": true, "jwt": true, "refresh_token": true,
		"page_token": false, "pageToken": false, "continuation-token": false, "q": false, "sort_key": false, "startkey": false, "issueKey": false, "max_tokens": false,
		"user": false, "signatures": false, "keys": false, "keyword": false, "nextToken": false, "author": false, "state": false, "code": false,
	} {
		if got := parameterCarriesCredential(name); got != want {
			t.Errorf("parameter %s: %v", name, got)
		}
	}
}
