package boundary

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"creel/internal/boundary/netstack/netstacktest"

	"golang.org/x/net/dns/dnsmessage"
)

// held is what the heap holds after a collection, and stacks.
func held() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}

// wantHeld wants that no more than most is held beyond before.
func wantHeld(t *testing.T, what string, before, most int64) {
	t.Helper()
	grown := held() - before
	t.Logf("%s: %d KiB", what, grown>>10)
	if grown > most {
		t.Errorf("%s: %d KiB are held, want at most %d", what, grown>>10, most>>10)
	}
}

func TestFloodOfSYNs(t *testing.T) {
	j := newJournal()
	release := make(chan struct{})
	j.hold["connection"] = release // nothing is answered
	r := j.open(t, rules(allow("tcp.test", j.echo(t))))
	to := r.to("tcp.test", 7000)
	before := held()
	for i := range 10000 / slower {
		if err := r.guest.Inject(netstacktest.SYN(uint16(1024+i%60000), to)); err != nil {
			t.Fatal(err)
		}
	}
	r.guest.MustResolve(t, "tcp.test") // all before was taken
	awaitFlows(t, r.edge, maxPending)
	wantHeld(t, "10,000 SYNs", before, 16<<20)
	j.wantNothingOutside(t)
	close(release)
}

// Five thousand connections at once: as many as there may be are served, the
// rest is refused, and none is left waiting.
func TestFloodOfConnections(t *testing.T) {
	const many = 5000 / slower
	j := newJournal()
	r := j.open(t, rules(allow("tcp.test", j.echo(t))))
	to := r.to("tcp.test", 7000)
	before := held()
	var mu sync.Mutex
	var served []net.Conn
	refused := 0
	var guests sync.WaitGroup
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for range many {
		guests.Go(func() {
			c, err := r.guest.DialContext(ctx, to)
			if err == nil {
				c.SetDeadline(time.Now().Add(patience))
				if _, err = io.WriteString(c, "x"); err == nil {
					_, err = c.Read(make([]byte, 1))
				}
			}
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				served = append(served, c)
				return
			}
			refused++
			if c != nil {
				c.Close()
			}
		})
	}
	guests.Wait()
	if ctx.Err() != nil {
		t.Error("some were left waiting")
	}
	t.Logf("%d served, %d refused", len(served), refused)
	if len(served) == 0 || len(served) > maxFlows {
		t.Errorf("%d are served", len(served))
	}
	// With the guest's own stack and the server, which are here too.
	wantHeld(t, fmt.Sprintf("%d idle connections", len(served)), before, 400<<20)
	for _, c := range served {
		c.Close()
	}
	awaitFlows(t, r.edge, 0)
	wantEcho(t, r.dial("tcp.test", 7000), "still there")
}

func TestFloodOfNames(t *testing.T) {
	r := open(t, rules("- {allow: \"**.wild.test\"}\n"))
	before := held()
	last := 0
	for i := range 17000 {
		q := query(t, fmt.Sprintf("%0200d.wild.test", i))
		answer := r.edge.names.Answer(q)
		var m dnsmessage.Message
		if err := m.Unpack(answer); err != nil {
			t.Fatal(err)
		}
		if m.RCode == dnsmessage.RCodeSuccess {
			last = i
		}
	}
	if last >= maxNames {
		t.Errorf("name %d got an address", last)
	}
	wantHeld(t, "17,000 names", before, 16<<20)
}

func query(t *testing.T, name string) []byte {
	t.Helper()
	// Labels have at most 63 characters.
	n := ""
	for len(name) > 60 {
		n += name[:50] + "."
		name = name[50:]
	}
	q, err := (&dnsmessage.Message{Questions: []dnsmessage.Question{{
		Name: dnsmessage.MustNewName(n + name + "."), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET,
	}}}).Pack()
	if err != nil {
		t.Fatal(err)
	}
	return q
}

// Datagrams to as many ports as there are flows.
func TestFloodOfDatagramFlows(t *testing.T) {
	j := newJournal()
	text := fmt.Sprintf("- {allow: udp.test, ports: 1-65535, protocol: udp, upstream: {address: %q}}\n", j.echoUDP(t))
	r := j.open(t, rules(text))
	addr := r.guest.MustResolve(t, "udp.test")
	before := held()
	for i := range 1500 {
		c := r.guest.DialUDP(t, netip.AddrPortFrom(addr, uint16(i+1)))
		c.Write([]byte("x"))
	}
	r.guest.MustResolve(t, "udp.test")
	for end := time.Now().Add(patience); r.edge.outside.Load() < 900 && time.Now().Before(end); runtime.Gosched() {
	}
	t.Logf("%d flows", r.edge.outside.Load())
	wantHeld(t, "1,500 datagram flows", before, 200<<20)
}

// Requests of HTTP/2 that wait for their answer, each with a large header.
func TestFloodOfRequests(t *testing.T) {
	if slower > 1 {
		t.Skip("what it takes to be too many is too much here")
	}
	j := newJournal()
	release := make(chan struct{})
	address := j.web(t, "api.test", func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/quick" {
			return
		}
		select {
		case <-release:
		case <-r.Context().Done():
		}
	})
	r := j.open(t, rules(tlsRule("api.test", address, ", methods: [GET]")))
	before := held()
	var guests sync.WaitGroup
	var busy, failed atomic.Int64
	for range 11 { // connections
		c := r.client(r.edge.CA())
		r.get(c, "https://api.test/quick") // there is one connection from here on
		for range 99 {
			guests.Go(func() {
				req, err := http.NewRequestWithContext(t.Context(), "GET", "https://api.test/", nil)
				if err != nil {
					t.Error(err)
					return
				}
				req.Header.Set("X-Large", strings.Repeat("x", 1<<10))
				res, err := c.Do(req)
				if err != nil {
					failed.Add(1)
					return
				}
				if res.StatusCode == http.StatusServiceUnavailable {
					busy.Add(1)
				}
				res.Body.Close()
			})
		}
	}
	for end := time.Now().Add(patience); busy.Load() < 11*99-1024 && time.Now().Before(end); runtime.Gosched() {
	}
	wantHeld(t, "11 × 99 requests", before, 400<<20)
	close(release)
	guests.Wait()
	if n := busy.Load(); n < 11*99-1024 || failed.Load() > 0 {
		t.Errorf("%d were turned away, %d failed", n, failed.Load())
	}
}
