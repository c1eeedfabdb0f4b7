package boundary

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"io"
	"net"
	"runtime"
	"sync"
	"testing"
	"time"

	"creel/internal/audit/event"
)

// refusing is an address that nobody listens on any more.
func refusing(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	return l.Addr().String()
}

func TestRefusedUpstreamIsRefusedAtOnce(t *testing.T) {
	r := open(t, rules(allow("gone.test", refusing(t))))
	began := time.Now()
	if c, err := r.guest.Dial(t, r.to("gone.test", 7000)); err == nil {
		t.Errorf("connected: %v", c.RemoteAddr())
	}
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("it took %v", took)
	}
	r.await(t, "record disconnected", 1)
	if d := of[event.Disconnected](r.journal); d[0].Error != "refused" || d[0].Host != "gone.test" || d[0].ID != 1 {
		t.Errorf("disconnected: %+v", d)
	}
}

// A server that speaks first, and ends its half first.
func TestOpaqueHalves(t *testing.T) {
	j := newJournal()
	got := make(chan []byte, 1)
	r := j.open(t, rules(allow("first.test", j.serve(t, func(c net.Conn) {
		io.WriteString(c, "220 hello")
		c.(*net.TCPConn).CloseWrite()
		b, _ := io.ReadAll(c)
		got <- b
	}))))
	c := r.dial("first.test", 7000)
	if b, err := io.ReadAll(c); err != nil || string(b) != "220 hello" {
		t.Fatalf("read %q, %v", b, err)
	}
	io.WriteString(c, "said after its end")
	c.CloseWrite()
	if b := <-got; string(b) != "said after its end" {
		t.Errorf("the server got %q", b)
	}
	r.await(t, "record disconnected", 1)
	if d := of[event.Disconnected](r.journal)[0]; d.BytesIn != 9 || d.BytesOut != 18 || d.Error != "" {
		t.Errorf("disconnected: %+v", d)
	}
}

func TestOpaqueIsExact(t *testing.T) {
	const size = 4 << 20
	j := newJournal()
	var received [32]byte
	down := make([]byte, size)
	rand.Read(down)
	r := j.open(t, rules(allow("bulk.test", j.serve(t, func(c net.Conn) {
		var both sync.WaitGroup
		both.Go(func() {
			h := sha256.New()
			io.Copy(h, c)
			copy(received[:], h.Sum(nil))
			j.note("received")
		})
		both.Go(func() { c.Write(down); c.(*net.TCPConn).CloseWrite() })
		both.Wait()
	}))))
	c := r.dial("bulk.test", 7000)
	up := make([]byte, size)
	rand.Read(up)
	var writing sync.WaitGroup
	writing.Go(func() { c.Write(up); c.CloseWrite() })
	got, err := io.ReadAll(c)
	writing.Wait()
	j.await(t, "received", 1)
	if err != nil || !bytes.Equal(got, down) {
		t.Errorf("%d bytes came down, want %d: %v", len(got), len(down), err)
	}
	j.set(func(*journal) {
		if received != sha256.Sum256(up) {
			t.Error("what came up is not what was sent")
		}
	})
	j.await(t, "record disconnected", 1)
	if d := of[event.Disconnected](j)[0]; d.BytesIn != size || d.BytesOut != size {
		t.Errorf("disconnected: %+v", d)
	}
	if u, _ := r.edge.Used(); u.BytesIn != size || u.BytesOut != size || u.Connections != 1 {
		t.Errorf("used: %+v", u)
	}
}

// A reset is no end: whoever was cut off must not take what came for the
// whole.
func TestResetsPass(t *testing.T) {
	j := newJournal()
	ended := make(chan error, 2)
	r := j.open(t, rules(
		allow("rude.test", j.serve(t, func(c net.Conn) { c.(*net.TCPConn).SetLinger(0) })),
		allow("polite.test", j.serve(t, func(c net.Conn) { _, err := io.Copy(c, c); ended <- err }))))
	r.wantReset("rude.test", 7000)
	c := r.dial("polite.test", 7000)
	wantEcho(t, c, "hello")
	r.guest.ResetAll()
	select {
	case err := <-ended:
		if err == nil {
			t.Error("the server saw a clean end of what was reset")
		}
	case <-time.After(patience):
		t.Error("the server was not told")
	}
}

// Who connects, says nothing and leaves, or is ended, was denied nothing.
func TestSilenceIsNoDenial(t *testing.T) {
	if helloTimeout > time.Minute {
		t.Errorf("a guest may be silent for %v", helloTimeout)
	}
	for name, end := range map[string]func(*rig){
		"the edge closes":  func(r *rig) { r.edge.Close() },
		"the guest resets": func(r *rig) { r.guest.ResetAll() },
		"the rules change": func(r *rig) { r.setRules("") },
	} {
		t.Run(name, func(t *testing.T) {
			r := open(t, rules("- {allow: secure.test, ports: 443, upstream: {address: \"127.0.0.1:1\"}}\n"))
			r.guest.MustDial(t, r.to("secure.test", 443))
			awaitAccepted(t, r.edge)
			end(r)
			awaitFlows(t, r.edge, 0)
			if list, total := r.edge.Denials(); total != 0 {
				t.Errorf("it was counted as denied: %+v", list)
			}
		})
	}
}

// awaitAccepted waits until the only flow has the guest's connection.
func awaitAccepted(t testing.TB, e *Edge) {
	t.Helper()
	awaitFlows(t, e, 1)
	accepted := false
	for end := time.Now().Add(patience); !accepted && time.Now().Before(end); runtime.Gosched() {
		e.flows.each(func(f *flow) {
			f.mu.Lock()
			defer f.mu.Unlock()
			accepted = f.guest != nil
		})
	}
	if !accepted {
		t.Fatal("the connection is not accepted")
	}
}
