package boundary

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"runtime"
	"sync"
	"testing"
	"time"

	"creel/internal/audit/event"
)

// busy opens something of every kind, and leaves it open.
func busy(t *testing.T) *rig {
	j := newJournal()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	never := func(w http.ResponseWriter, r *http.Request) {
		w.(http.Flusher).Flush()
		j.note("held")
		<-r.Context().Done()
	}
	plain, secure := j.web(t, "", never), j.web(t, "api.test", never)
	text := rules(allow("tcp.test", j.echo(t)), udpRule("udp.test", j.echoUDP(t)),
		tlsRule("spliced.test", j.tlsEcho(t, "spliced.test"), ""), tlsRule("api.test", secure, ", methods: [GET]"),
		fmt.Sprintf("- {allow: web.test, ports: 80, upstream: {address: %q}}\n", plain))
	r := j.open(t, text, withWallet(wallet(t, "stand-in")), func(c *Config) {
		c.Ports = []Port{{Stream: l, Guest: 8080}, {Datagram: p, Guest: 8080}}
	})
	wantEcho(t, r.dial("tcp.test", 7000), "x")
	wantEcho(t, r.guest.DialUDP(t, r.to("udp.test", 7000)), "x")
	c := r.guest.MustDial(t, r.to("spliced.test", 443))
	c.Write(helloOf(trust(ca().PEM())))
	r.guest.MustDial(t, r.to("spliced.test", 443)) // silent
	r.guest.MustDial(t, mustAddrPort("192.168.127.1:53"))
	for _, url := range []string{"http://web.test/", "https://api.test/"} {
		res, err := r.client(r.edge.CA()).Get(url)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { res.Body.Close() })
	}
	r.guest.Listen(t, 8080)
	for _, network := range []string{"tcp", "udp"} {
		to := map[string]string{"tcp": l.Addr().String(), "udp": p.LocalAddr().String()}[network]
		c, err := net.Dial(network, to)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		c.Write([]byte("x"))
	}
	j.await(t, "record published", 2)
	j.await(t, "held", 2)
	return r
}

// The rig wants after each test that no goroutine of the edge's is left; here
// nothing else of it may be.
func TestCloseWithEverythingOpen(t *testing.T) {
	before := descriptors(t)
	t.Run("busy", func(t *testing.T) {
		r := busy(t)
		var closing sync.WaitGroup
		for range 3 {
			closing.Go(func() {
				if err := r.edge.Close(); err != nil {
					t.Error(err)
				}
			})
			closing.Go(func() { r.edge.SetRules(t.Context(), Rules{}) })
		}
		closing.Wait()
		if n := r.edge.outside.Load(); n != 0 {
			t.Errorf("%d connections to the outside are left", n)
		}
		awaitFlows(t, r.edge, 0)
		if open, closed := r.count("record connection"), r.count("record disconnected"); open != closed {
			t.Errorf("%d connections on record, %d ends", open, closed)
		}
		if asked, answered := r.count("record request"), r.count("record response"); asked != answered || asked != 2 {
			t.Errorf("%d requests on record, %d answers", asked, answered)
		}
	})
	for end := time.Now().Add(patience); descriptors(t) > before && time.Now().Before(end); {
		runtime.Gosched()
	}
	if after := descriptors(t); after > before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}

// The end of the VM is the end of its card.
func TestGuestThatVanishes(t *testing.T) {
	r := busy(t)
	r.guest.Close()
	<-r.edge.stack.Done()
	if err := r.edge.Close(); err != nil {
		t.Error(err)
	}
}

// While the record is slow, everything waits, and nothing is lost or stuck.
func TestSlowRecordDelaysClose(t *testing.T) {
	r := busy(t)
	release := make(chan struct{})
	r.set(func(j *journal) { j.hold[event.KindDisconnected] = release })
	closed := make(chan error, 1)
	go func() { closed <- r.edge.Close() }()
	awaitFlowsClosed(r.edge)
	select {
	case err := <-closed:
		t.Fatalf("closed before all was on record: %v", err)
	default:
	}
	close(release)
	select {
	case err := <-closed:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(patience):
		t.Fatal("the edge does not close")
	}
}

// A dial goes on when the request that asked for it has ended: the edge waits
// for it, too.
func TestCloseWaitsForDials(t *testing.T) {
	j := newJournal()
	release := make(chan struct{})
	j.hold[event.KindConnection] = release
	r := j.open(t, rules(fmt.Sprintf("- {allow: web.test, ports: 80, upstream: {address: %q}}\n", j.echo(t))))
	asked := make(chan struct{})
	go func() {
		defer close(asked)
		if res, err := r.client("").Get("http://web.test/"); err == nil {
			res.Body.Close()
		}
	}()
	j.await(t, "wait connection", 1)
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		if err := r.edge.Close(); err != nil {
			t.Error(err)
		}
	}()
	select {
	case <-closed:
		t.Error("closed while a dial was under way")
	case <-time.After(200 * time.Millisecond):
	}
	close(release)
	<-closed
	j.wantNothingOutside(t)
	r.guest.Close() // the answer never comes
	<-asked
}

func awaitFlowsClosed(e *Edge) {
	for closed := false; !closed; runtime.Gosched() {
		e.flows.mu.Lock()
		closed = e.flows.closed
		e.flows.mu.Unlock()
	}
}

// One guest connection of HTTP/2 asks for a hundred of ours: all of them
// together have a bound.
func TestConnectionsToTheOutsideAreBounded(t *testing.T) {
	j := newJournal()
	r := j.open(t, rules(allow("tcp.test", j.echo(t))))
	r.edge.outside.Add(maxOutside)
	r.wantReset("tcp.test", 7000)
	j.wantNothingOutside(t)
	r.edge.outside.Add(-maxOutside)
	wantEcho(t, r.dial("tcp.test", 7000), "x")
}

// Rules that change all the time while connections come and go: nothing gets
// stuck, and nothing that is denied stays.
func TestChangesUnderLoad(t *testing.T) {
	j := newJournal()
	address := j.echo(t)
	on, off := rules(allow("tcp.test", address)), rules(allow("other.test", address))
	r := j.open(t, on)
	to := r.to("tcp.test", 7000)
	var guests sync.WaitGroup
	stop := make(chan struct{})
	for range 8 {
		guests.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				c, err := r.guest.DialContext(t.Context(), to)
				if err != nil {
					continue
				}
				c.SetDeadline(time.Now().Add(patience))
				for err == nil {
					if _, err = c.Write([]byte("x")); err == nil {
						_, err = c.Read(make([]byte, 1))
					}
				}
				var timeout net.Error
				if errors.As(err, &timeout) && timeout.Timeout() {
					t.Error("a connection neither works nor ends")
				}
				c.Close()
			}
		})
	}
	for i := range 50 {
		r.setRules(off)
		r.setRules(on)
		j.await(t, "accept", i+1)
	}
	r.setRules(off)
	close(stop)
	guests.Wait()
	awaitFlows(t, r.edge, 0)
}
