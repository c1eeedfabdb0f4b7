package boundary

import (
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"creel/internal/audit/event"
	"creel/internal/secret"
)

// publishing has the guest answer each line, or datagram, with what say gives,
// behind a published port of both kinds.
func publishing(t *testing.T, text string, say string) (r *rig, tcp, udp string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r = open(t, text, withWallet(wallet(t, secret.AsStandIn)), func(c *Config) {
		c.Ports = []Port{{Stream: l, Guest: 8080}, {Datagram: p, Guest: 8080}}
	})
	inside, packets := r.guest.Listen(t, 8080), r.guest.ListenPacket(t, 8080)
	go func() {
		for {
			c, err := inside.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				buf := make([]byte, 64<<10)
				for {
					if _, err := c.Read(buf); err != nil {
						return
					}
					io.WriteString(c, say[:len(say)/2])
					io.WriteString(c, say[len(say)/2:])
				}
			}()
		}
	}()
	go func() {
		buf := make([]byte, 64<<10)
		for {
			_, from, err := packets.ReadFrom(buf)
			if err != nil {
				return
			}
			packets.WriteTo([]byte(say), from)
		}
	}()
	return r, l.Addr().String(), p.LocalAddr().String()
}

// answer sends something, and gives what comes until it is enough or the end.
func answer(t testing.TB, c net.Conn, send string, enough int) string {
	t.Helper()
	c.SetDeadline(time.Now().Add(patience))
	io.WriteString(c, send)
	got := make([]byte, enough)
	n, _ := io.ReadFull(c, got)
	return string(got[:n])
}

func connectTo(t testing.TB, network, address string) net.Conn {
	t.Helper()
	c, err := net.Dial(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// A port that is published is no way out for what must not leave.
func TestMarksDoNotLeaveByPublishedPorts(t *testing.T) {
	for name, mark := range map[string]string{"stand-in": standIn, "canary": canary} {
		t.Run(name, func(t *testing.T) {
			r, tcp, udp := publishing(t, "", "begin "+mark+" end")
			if got := answer(t, connectTo(t, "tcp", tcp), "x", 100); strings.Contains(got, mark[:len(mark)-1]) {
				t.Errorf("by a stream came %q", got)
			}
			r.await(t, "record alert", 1)
			u := connectTo(t, "udp", udp)
			u.SetDeadline(time.Now().Add(patience))
			io.WriteString(u, "x")
			for end := time.Now().Add(patience); ; runtime.Gosched() { // the second alert is like the first, and told of alone
				r.mu.Lock()
				n := len(r.alerts)
				r.mu.Unlock()
				if n == 2 {
					break
				}
				if time.Now().After(end) {
					t.Fatalf("%d alerts", n)
				}
			}
			r.edge.Close()
			alerts := of[event.Alert](r.journal)
			if len(alerts) != 1 || alerts[0].Alert != name || alerts[0].Where != "stream" || alerts[0].Port != 8080 {
				t.Errorf("on record: %+v", alerts)
			}
			u.SetReadDeadline(time.Now())
			if n, err := u.Read(make([]byte, 100)); err == nil {
				t.Errorf("by a datagram came %d bytes", n)
			}
		})
	}
}

// Their bytes are the task's: what is used up, is used up for them too.
func TestPublishedPortsAreCharged(t *testing.T) {
	const limit = 1000
	for _, network := range []string{"tcp", "udp"} {
		for _, direction := range []string{"bytes_out", "bytes_in"} {
			t.Run(network+" "+direction, func(t *testing.T) {
				j := newJournal()
				more := rules(allow("x.test", j.echo(t)))
				say, send := "s", strings.Repeat("i", 100)
				if direction == "bytes_out" {
					say, send = strings.Repeat("o", 100), "s"
				}
				r, tcp, udp := publishing(t, fmt.Sprintf("budget: {%s: %d}\n", direction, limit)+more, say)
				open := r.dial("x.test", 7000)
				wantEcho(t, open, "hello")
				address := map[string]string{"tcp": tcp, "udp": udp}[network]
				c := connectTo(t, network, address)
				total := 0
				for range 9 {
					total += len(answer(t, c, send, len(say)))
				}
				if u, _ := r.edge.Used(); total != 9*len(say) || u.BytesOut < int64(9*len(say)) || u.BytesIn < int64(9*len(send)) {
					t.Errorf("%d bytes came, and %+v were charged", total, u)
				}
				for range 3 {
					c.SetDeadline(time.Now().Add(patience))
					io.WriteString(c, send)
				}
				r.await(t, "record budget", 1)
				wantBroken(t, open) // the task's own
				if network == "tcp" {
					io.Copy(io.Discard, c)                                // it ends
					if another, err := net.Dial("tcp", tcp); err == nil { // else it was cut off before that was known
						if got := answer(t, another, send, len(say)); got != "" {
							t.Errorf("another connection got %q", got)
						}
						another.Close()
					}
				}
				r.edge.Close()
				if u, _ := r.edge.Used(); u.BytesOut > limit && direction == "bytes_out" || u.BytesIn > limit && direction == "bytes_in" {
					t.Errorf("%+v were charged, and %d allowed", u, limit)
				}
			})
		}
	}
}

// Rules are about where a task connects to; another policy does not end who was
// let in.
func TestRulesLeavePublishedPortsOpen(t *testing.T) {
	r, tcp, _ := publishing(t, "", "answer")
	c := connectTo(t, "tcp", tcp)
	if got := answer(t, c, "x", 6); got != "answer" {
		t.Fatal(got)
	}
	r.setRules(rules("- {allow: y.test, ports: 443}\n"))
	if got := answer(t, c, "x", 6); got != "answer" {
		t.Errorf("after the change: %q", got)
	}
}
