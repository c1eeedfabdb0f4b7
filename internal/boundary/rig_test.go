package boundary

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"creel/internal/audit"
	"creel/internal/audit/event"
	"creel/internal/boundary/egress"
	"creel/internal/boundary/intercept"
	"creel/internal/boundary/netstack/netstacktest"
	"creel/internal/policy"
	"creel/internal/policy/syntax"
	"creel/internal/sandbox"

	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
)

const patience = netstacktest.Patience

// journal is the record, and what the servers outside saw, in one order.
type journal struct {
	mu     sync.Mutex
	events []audit.Event
	lines  []string
	fail   map[audit.Kind]bool
	hold   map[audit.Kind]chan struct{} // kinds that wait until theirs is closed
	ended  bool
	late   []audit.Kind // came when the edge was closed
	change chan struct{}
}

func (j *journal) Append(ctx context.Context, events ...audit.Event) error {
	for _, e := range events {
		j.mu.Lock()
		held := j.hold[e.Kind]
		j.mu.Unlock()
		if held != nil {
			j.note("wait " + string(e.Kind))
			<-held
		}
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, e := range events {
		if j.ended {
			j.late = append(j.late, e.Kind)
		}
		if j.fail[e.Kind] {
			return io.ErrShortWrite
		}
	}
	for _, e := range events {
		j.events = append(j.events, e)
		j.add("record " + string(e.Kind))
	}
	return nil
}

func (j *journal) Note(failed func(error), events ...audit.Event) {
	if err := j.Append(context.Background(), events...); err != nil {
		failed(err)
	}
}

// note is of what happens outside.
func (j *journal) note(line string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.add(line)
}

func (j *journal) add(line string) {
	j.lines = append(j.lines, line)
	close(j.change)
	j.change = make(chan struct{})
}

func (j *journal) set(change func(*journal)) {
	j.mu.Lock()
	defer j.mu.Unlock()
	change(j)
}

// seen are the lines so far.
func (j *journal) seen() []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Clone(j.lines)
}

func (j *journal) count(line string) (n int) {
	for _, l := range j.seen() {
		if l == line {
			n++
		}
	}
	return n
}

// await waits until a line was written n times.
func (j *journal) await(t testing.TB, line string, n int) {
	t.Helper()
	deadline := time.After(patience)
	for {
		j.mu.Lock()
		change := j.change
		j.mu.Unlock()
		if j.count(line) >= n {
			return
		}
		select {
		case <-change:
		case <-deadline:
			t.Fatalf("%q was not seen %d times in %q", line, n, j.seen())
		}
	}
}

// of are the data of one kind.
func of[T any](j *journal) (out []T) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, e := range j.events {
		if d, ok := e.Data.(T); ok {
			out = append(out, d)
		}
	}
	return out
}

// wantNothingOutside fails when anything outside was touched.
func (j *journal) wantNothingOutside(t testing.TB) {
	t.Helper()
	for _, l := range j.seen() {
		if !strings.HasPrefix(l, "record ") && !strings.HasPrefix(l, "wait ") {
			t.Errorf("outside was seen: %s", l)
		}
	}
}

// rig is an edge with a guest before it.
type rig struct {
	*journal
	t      testing.TB
	edge   *Edge
	owed   *audit.Owed
	guest  *netstacktest.Guest
	mu     sync.Mutex
	told   []sandbox.Denial
	alerts []event.Alert
}

// ca is whom the servers' certificates are from.
var ca = sync.OnceValue(func() *intercept.Authority {
	a, err := intercept.New("upstreams", time.Now())
	if err != nil {
		panic(err)
	}
	return a
})

func parse(t testing.TB, text string) Rules {
	t.Helper()
	if text == "" {
		return Rules{Digest: "none"}
	}
	p, _, err := syntax.Parse([]byte("version: 1\n"+text), syntax.Inputs{
		File: func(string) ([]byte, error) { return []byte(ca().PEM()), nil },
	})
	if err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	return Rules{Policy: p, Digest: text}
}

func newJournal() *journal {
	return &journal{change: make(chan struct{}), fail: map[audit.Kind]bool{}, hold: map[audit.Kind]chan struct{}{}}
}

// open gives an edge with a policy in force; change is for the rest of the
// configuration.
func (j *journal) open(t testing.TB, text string, change ...func(*Config)) *rig {
	t.Helper()
	dialer, err := egress.New(egress.Config{})
	if err != nil {
		t.Fatal(err)
	}
	host, card := netstacktest.Cable(t)
	r := &rig{journal: j, t: t, owed: audit.NewOwed(j, func(audit.Kind, error) {})}
	cfg := Config{
		Sandbox: "0123456789abcdef", Network: host, Rules: parse(t, text), Dialer: dialer, Audit: j, Owed: r.owed,
		Log: slog.New(slog.DiscardHandler),
		Denied: func(d sandbox.Denial) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.told = append(r.told, d)
		},
		Alerted: func(a event.Alert) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.alerts = append(r.alerts, a)
		},
	}
	for _, f := range change {
		f(&cfg)
	}
	if r.edge, err = Open(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.close)
	r.guest = netstacktest.Start(t, card)
	return r
}

func open(t testing.TB, text string, change ...func(*Config)) *rig {
	t.Helper()
	return newJournal().open(t, text, change...)
}

// close ends the edge and wants that nothing of it is left.
func (r *rig) close() {
	r.t.Helper()
	if err := r.edge.Close(); err != nil {
		r.t.Error(err)
	}
	r.owed.Close()
	r.set(func(j *journal) { j.ended = true })
	var left []string
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end); runtime.Gosched() {
		if left = ourGoroutines(); len(left) == 0 {
			break
		}
	}
	if len(left) > 0 {
		r.t.Errorf("goroutines are left:\n%s", strings.Join(left, "\n\n"))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.journal.mu.Lock()
	defer r.journal.mu.Unlock()
	if len(r.late) > 0 {
		r.t.Errorf("put on record after the edge was closed: %v", r.late)
	}
}

// ourGoroutines are those of an edge, and what they started.
func ourGoroutines() (left []string) {
	buf := make([]byte, 8<<20)
	for _, g := range strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		for _, ours := range []string{"boundary.(*Edge)", "boundary/web.", "boundary/names.(", "boundary/netstack.", "boundary/egress."} {
			if strings.Contains(g, "creel/internal/"+ours) && !strings.Contains(g, "boundary.(*rig).close") {
				left = append(left, g)
				break
			}
		}
	}
	return left
}

func (r *rig) setRules(text string) {
	r.t.Helper()
	if err := r.edge.SetRules(r.t.Context(), parse(r.t, text)); err != nil {
		r.t.Fatal(err)
	}
}

// to is where the guest finds a port of a name.
func (r *rig) to(host string, port uint16) netip.AddrPort {
	r.t.Helper()
	return netip.AddrPortFrom(r.guest.MustResolve(r.t, host), port)
}

// dial connects to a name and must succeed.
func (r *rig) dial(host string, port uint16) *gonet.TCPConn {
	r.t.Helper()
	return r.guest.MustDial(r.t, r.to(host, port))
}

// wantReset wants that a connection is refused or reset.
func (r *rig) wantReset(host string, port uint16) {
	r.t.Helper()
	c, err := r.guest.Dial(r.t, r.to(host, port))
	if err == nil {
		wantBroken(r.t, c)
	}
}

// wantBroken reads until a connection ends with an error that is no timeout.
func wantBroken(t testing.TB, c net.Conn) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(patience))
	_, err := io.Copy(io.Discard, c)
	var timeout net.Error
	if err == nil || errors.As(err, &timeout) && timeout.Timeout() {
		t.Errorf("the connection was not reset: %v", err)
	}
}

// wantEcho wants that what is said comes back.
func wantEcho(t testing.TB, c net.Conn, say string) {
	t.Helper()
	got := make([]byte, len(say))
	if _, err := io.WriteString(c, say); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, got); err != nil || string(got) != say {
		t.Fatalf("said %q, got %q, %v", say, got, err)
	}
}

// serve is a TCP server outside; its address is returned. Each connection is
// noted as "accept".
func (j *journal) serve(t testing.TB, handle func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var tasks sync.WaitGroup
	var mu sync.Mutex
	var open []net.Conn
	tasks.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			j.note("accept")
			mu.Lock()
			open = append(open, c)
			mu.Unlock()
			tasks.Go(func() {
				defer c.Close()
				handle(c)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		for _, c := range open {
			c.Close()
		}
		mu.Unlock()
		tasks.Wait()
	})
	return l.Addr().String()
}

// echo is a server that gives back what it gets, and notes its end.
func (j *journal) echo(t testing.TB) string {
	return j.serve(t, func(c net.Conn) {
		if _, err := io.Copy(c, c); err != nil {
			j.note("broken")
		} else {
			j.note("end")
		}
	})
}

// echoUDP notes each datagram as "datagram", and gives it back.
func (j *journal) echoUDP(t testing.TB) string {
	t.Helper()
	p, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var tasks sync.WaitGroup
	tasks.Go(func() {
		buf := make([]byte, 65536)
		for {
			n, from, err := p.ReadFrom(buf)
			if err != nil {
				return
			}
			j.note("datagram")
			p.WriteTo(buf[:n], from)
		}
	})
	t.Cleanup(func() { p.Close(); tasks.Wait() })
	return p.LocalAddr().String()
}

// web is an HTTP server outside, over TLS where it is given a name. Each
// request is noted.
func (j *journal) web(t testing.TB, host string, h http.HandlerFunc) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	server := &http.Server{Protocols: protocols, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		j.note("request " + r.Method + " " + r.URL.RequestURI())
		h(w, r)
	}), ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0), ConnState: func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			j.note("accept")
		}
	}}
	if host != "" {
		server.TLSConfig = ca().Config(host)
	}
	var tasks sync.WaitGroup
	tasks.Go(func() {
		if host != "" {
			server.ServeTLS(l, "", "")
		} else {
			server.Serve(l)
		}
	})
	t.Cleanup(func() { server.Close(); tasks.Wait() })
	return address
}

// client is an HTTP client in the guest that trusts who signs as root.
func (r *rig) client(root string) *http.Client {
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM([]byte(root))
	t := &http.Transport{
		ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{RootCAs: pool},
		DialContext: func(ctx context.Context, _, address string) (net.Conn, error) {
			host, port, _ := net.SplitHostPort(address)
			n, err := policy.ParsePort(port)
			if err != nil {
				return nil, err
			}
			addr, err := netip.ParseAddr(host)
			if err != nil {
				if addr, err = r.guest.Resolve(r.t, host); err != nil {
					return nil, err
				}
			}
			return r.guest.DialContext(ctx, netip.AddrPortFrom(addr, n))
		},
	}
	r.t.Cleanup(t.CloseIdleConnections)
	return &http.Client{Transport: t, Timeout: patience}
}

// get is the status and body of one request.
func (r *rig) get(c *http.Client, url string) (int, string) {
	r.t.Helper()
	res, err := c.Get(url)
	if err != nil {
		r.t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return res.StatusCode, string(body)
}

// allow is a rule for an opaque port of name that leads to a server.
func allow(name, address string, more ...string) string {
	return fmt.Sprintf("- {allow: %s, ports: 7000, protocol: tcp, upstream: {address: \"%s\"}%s}\n", name, address, strings.Join(append([]string{""}, more...), ", "))
}

func rules(list ...string) string { return "rules:\n" + strings.Join(list, "") }

// targets are those of denials.
func targets(list []sandbox.Denial) (out []string) {
	for _, d := range list {
		out = append(out, d.Target)
	}
	return out
}

// descriptors counts what the process has open.
func descriptors(t testing.TB) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// withHosts gives an edge a dialer that knows names by itself.
func withHosts(t testing.TB, hosts map[string][]netip.Addr) func(*Config) {
	t.Helper()
	d, err := egress.New(egress.Config{Hosts: hosts})
	if err != nil {
		t.Fatal(err)
	}
	return func(c *Config) { c.Dialer = d }
}

// awaitDenials waits for n of them: a guest may hear no before it is counted.
func (r *rig) awaitDenials(n int64) []sandbox.Denial {
	r.t.Helper()
	for end := time.Now().Add(patience); ; runtime.Gosched() {
		list, total := r.edge.Denials()
		if total >= n {
			return list
		}
		if time.Now().After(end) {
			r.t.Fatalf("%d denials, want %d: %+v", total, n, list)
		}
	}
}

func mustAddrPort(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }
