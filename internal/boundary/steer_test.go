package boundary

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"creel/internal/secret"
)

// A request is what its line says, wherever a rule asks for methods or paths,
// or uses a secret; elsewhere it is the task's own affair.
func TestNoHeaderChoosesTheRequest(t *testing.T) {
	j := newJournal()
	address := j.web(t, "", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, r.Header["X-Http-Method-Override"], r.Header["X_original_url"])
	})
	rule := func(name, more string) string {
		return fmt.Sprintf("- {allow: %s, ports: 80, upstream: {address: %q}%s}\n", name, address, more)
	}
	r := j.open(t, rules(
		rule("methods.test", ", methods: [POST, DELETE]"), rule("paths.test", ", paths: /v1/**"), rule("denied.test", ""), "- {deny: denied.test, methods: DELETE}\n",
		rule("api.test", ", secret: key"), rule("free.test", ""),
	), withWallet(wallet(t, secret.AsBearer, address)))
	c := r.client("")
	send := func(method, url string) (int, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header["X-HTTP-Method-Override"], req.Header["X_ORIGINAL_URL"] = []string{"DELETE"}, []string{"/v2"}
		res, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return res.StatusCode, string(body)
	}
	for host, want := range map[string]string{
		"methods.test": "[] []", "paths.test": "[] []", "denied.test": "[] []", "api.test": "[] []", "free.test": "[DELETE] [/v2]",
	} {
		if status, body := send("POST", "http://"+host+"/v1/x"); status != 200 || body != want {
			t.Errorf("%s: %d %s, want %s", host, status, body, want)
		}
	}
	for _, url := range []string{
		"POST http://methods.test/?_method=DELETE", "delete http://denied.test/", "DELETE http://denied.test/", "post http://methods.test/",
		"GET http://paths.test/v1/;/../v2", "GET http://paths.test/v1/..;/v2", "get http://api.test/",
	} {
		method, url, _ := strings.Cut(url, " ")
		if status, body := send(method, url); status != 403 {
			t.Errorf("%s %s: %d %s", method, url, status, body)
		}
	}
}

// A binding that has changed since a policy was admitted holds for the next
// request.
func TestSecretsGoOnlyWhereTheyAreBoundTo(t *testing.T) {
	j := newJournal()
	plain := j.web(t, "", func(http.ResponseWriter, *http.Request) {})
	bound := wallet(t, secret.AsBearer, plain)
	r := j.open(t, rules(fmt.Sprintf("- {allow: api.test, ports: 80, secret: key, upstream: {address: %q}}\n", plain)), withWallet(bound))
	if status, body := r.get(r.client(""), "http://api.test/"); status != 200 {
		t.Fatalf("%d %s", status, body)
	}
	before := j.count("request GET /")
	if err := r.edge.SetWallet(t.Context(), wallet(t, secret.AsBearer, "127.0.0.1:1"), []string{"key"}); err != nil {
		t.Fatal(err)
	}
	if status, body := r.get(r.client(""), "http://api.test/"); status != 403 || !strings.Contains(body, "--upstream "+plain) {
		t.Errorf("%d %s", status, body)
	}
	if got := j.count("request GET /"); got != before {
		t.Errorf("%d requests arrived, want %d", got, before)
	}
}
