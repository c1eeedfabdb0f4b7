// Package servers holds path rules against web servers as they are: what a
// policy allows must not reach what it does not, whatever a server makes of the
// path. scripts/servers brings them; one that is not there is left out. The
// package must not reach anything but the loopback.
package servers

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"creel/internal/boundary/web"
	"creel/internal/policy"
	"creel/internal/policy/syntax"
)

// patience is for servers on a busy machine.
const patience = 2 * time.Minute

const (
	forbidden = "FORBIDDEN"
	allowed   = "allowed"
)

// rules are of servers whose resources have a prefix, "" for most.
func rules(prefix string) string {
	return fmt.Sprintf(`version: 1
rules:
  - {allow: a.test, ports: 80, protocol: http, methods: [GET, POST], paths: %s/v1/items/**}
  - {deny: a.test, paths: %s/v1/items/admin/**}
`, prefix, prefix)
}

// server is one that runs, and what of it is looked at.
type server struct {
	name, address, prefix string
	// fooled is how many paths of the corpus, at the least, that begin as an
	// allowed one does reach something forbidden where nobody decides. Fewer
	// would mean that the corpus, or the server, shows nothing.
	fooled int
}

// corpus are paths of an attacker, always the same. Half of them spell a
// forbidden resource in a particular way, half are made of parts.
func corpus(prefix string) (paths []string) {
	up := []string{"..", "%2e%2e", ".%2e", "..;", "..;a=b", ";/..", ";/../..", "/..", "//..", "x/..%2f..", "x/../..", ".;/..", "%2e;/..", "..%3b",
		"x;/..;/..", "..%252f..", "..%5c..", `..\..`, "%c0%ae%c0%ae", "%e0%80%ae%e0%80%ae", "%u002e%u002e", "..%20", "..%00", "...", "%ef%bc%8e%ef%bc%8e", "%2e%2e%2f.."}
	for _, dots := range up {
		for _, rest := range []string{"/secrets/k.txt", "/../v1/secrets/k.txt", "/items/admin/x.txt", "/admin/x.txt", "%2fsecrets%2fk.txt", ";/secrets/k.txt", "//secrets/k.txt"} {
			paths = append(paths, "/v1/items/"+dots+rest)
		}
	}
	for _, admin := range []string{"admin", "ADMIN", "Admin", "%61dmin", "adm%69n", "admin;", "admin;a=b", "admin%3b", ";admin", ";/admin", "admin.", "admin%20",
		"admin%00", "admin.json", "admin.", "/admin", "//admin", "./admin", "%2e/admin", "x/../admin", "x/..;/admin", "x/%2e%2e/admin", "x%2f..%2fadmin", "%2fadmin",
		"admin%2f", "admin%3fx", "admin%23x", "admin::$INDEX_ALLOCATION", "%ef%bd%81dmin", "%c3%a1dmin", "admin%09", "%c1%a1dmin", "%2561dmin", `\admin`, "%5cadmin"} {
		for _, rest := range []string{"/x.txt", "", "/", "%2fx.txt", ";a/x.txt", "//x.txt", "/./x.txt"} {
			paths = append(paths, "/v1/items/"+admin+rest)
		}
	}
	for i, p := range paths {
		paths[i] = prefix + p
	}
	paths = append(paths, "//a"+prefix+"/v1/secrets/k.txt", "//v1/items"+prefix+"/v1/secrets/k.txt", "//v1/items/"+prefix+"/v1/items/admin/x.txt",
		"http://a.test"+prefix+"/v1/secrets/k.txt", prefix+"/v1/secrets/k.txt")
	parts := []string{"/", "/", "/", "//", "v1", "items", "admin", "secrets", "k.txt", "x.txt", ".", "..", "/../", "/./", "%2e", "%2f", "%2F", "%5c", "%252e", "%20",
		".json", ";", ";a=b", "/;/", "%3b", "..;/", "ADMIN", "%61dmin", "%3f", "%23", "/admin/x.txt", "/secrets/k.txt", "/../secrets/k.txt"}
	rnd := rand.New(rand.NewPCG(3, 5))
	for range 500 {
		p := prefix + "/v1/items/"
		for range 1 + rnd.IntN(6) {
			p += parts[rnd.IntN(len(parts))]
		}
		paths = append(paths, p)
	}
	return paths
}

// edge is the part of a boundary that reads requests, with a server behind it.
type edge struct {
	server *web.Server
	policy *policy.Policy
	to     string
}

func newEdge(t *testing.T, s server) *edge {
	t.Helper()
	p, _, err := syntax.Parse([]byte(rules(s.prefix)), syntax.Inputs{})
	if err != nil {
		t.Fatal(err)
	}
	e := &edge{web.NewServer(), p, s.address}
	t.Cleanup(func() { e.server.Close() })
	return e
}

func (e *edge) ask(_ context.Context, r *http.Request) (*web.Pass, *web.Denial) {
	d := e.policy.Decide(policy.Request{Op: policy.Ask, Host: "a.test", Port: 80, Method: r.Method, Path: r.URL.RequestURI()})
	if !d.Allow {
		return nil, &web.Denial{Rule: d.RuleName(), Reason: d.Reason()}
	}
	return &web.Pass{Exact: d.Inspect, Done: func(web.Result) {}}, nil
}

// send is the answer to one request as it is written, through the edge.
func (e *edge) send(ctx context.Context, request string) (string, error) {
	guest, ours := net.Pipe()
	var serving sync.WaitGroup
	serving.Go(func() {
		e.server.Serve(ctx, ours, &web.Site{Host: "a.test", Port: 80, Ask: e.ask, Dial: func(ctx context.Context) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", e.to)
		}}, nil)
	})
	defer serving.Wait()
	defer guest.Close()
	return exchange(guest, request)
}

// direct is the answer where nobody decides.
func direct(ctx context.Context, address, request string) (string, error) {
	c, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err != nil {
		return "", err
	}
	defer c.Close()
	return exchange(c, request)
}

func exchange(c net.Conn, request string) (string, error) {
	c.SetDeadline(time.Now().Add(patience))
	// A server may answer and close before it has read everything.
	_, werr := io.WriteString(c, request)
	r := bufio.NewReader(c)
	res, err := http.ReadResponse(r, nil)
	if err != nil {
		if werr == nil && (errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)) {
			return "", nil // it hung up
		}
		return "", errors.Join(werr, err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, 64<<10))
	if err != nil && len(body) == 0 {
		return "", err
	}
	return fmt.Sprintf("%d %s", res.StatusCode, body), nil
}

func get(path string) string {
	return "GET " + path + " HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n"
}

// No path that a policy allows reaches what it does not allow, and there are
// paths that would.
func TestServers(t *testing.T) {
	for name, start := range starts {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, s := range start(t) {
				t.Run(s.name, func(t *testing.T) { hold(t, s) })
			}
		})
	}
}

// hold tries the corpus on one server.
func hold(t *testing.T, s server) {
	e := newEdge(t, s)
	must := func(answer string, err error) string {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return answer
	}
	ctx := t.Context()
	if got := must(e.send(ctx, get(s.prefix+"/v1/items/x.txt"))); !strings.Contains(got, allowed) {
		t.Fatalf("what is allowed is not reached: %s", got)
	}
	fooled, passed := 0, 0
	for _, path := range corpus(s.prefix) {
		reached := strings.Contains(must(direct(ctx, s.address, get(path))), forbidden)
		if reached && strings.HasPrefix(path, s.prefix+"/v1/items/") && !strings.HasPrefix(path, s.prefix+"/v1/items/admin/") {
			fooled++
		}
		answer := must(e.send(ctx, get(path)))
		if strings.Contains(answer, forbidden) {
			t.Errorf("%q reaches what is forbidden", path)
		}
		if strings.Contains(answer, allowed) {
			passed++
		}
	}
	t.Logf("%d paths that begin as an allowed one reach what is forbidden where nobody decides; %d reach what is allowed", fooled, passed)
	if fooled < s.fooled {
		t.Errorf("only %d paths fool the server, want %d: the test shows nothing", fooled, s.fooled)
	}
}
