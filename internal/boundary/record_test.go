package boundary

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"creel/internal/audit"
	"creel/internal/audit/event"
	"creel/internal/boundary/credential"
	"creel/internal/boundary/egress"
	"creel/internal/policy"
	"creel/internal/secret"
)

// standIn is what the sandbox holds instead of a secret, and value the secret.
const (
	standIn = "creel-stand-in-0Qx7pLm2Vt9wKs4Z"
	value   = "sk-live-f3a9c1e07b52d846"
	canary  = "ghp_Zt81LqWmXy0VbN37RkPdHs5CgJf9A2eU6oIi"
)

// wallet has a secret for api.test, as a bearer or as a stand-in, which may go
// to upstreams, also without TLS, and a canary.
func wallet(t testing.TB, as string, upstreams ...string) *credential.Wallet {
	t.Helper()
	v, err := secret.NewValue(value)
	if err != nil {
		t.Fatal(err)
	}
	g := secret.Grant{Name: "key", Value: v, Binding: secret.Binding{
		Hosts: []string{"api.test"}, Upstreams: upstreams, Clear: true, Use: secret.Use{As: as},
	}}
	if as == secret.AsStandIn {
		g.StandIn, g.Binding.Use.Env = standIn, "KEY"
	}
	w, err := credential.New([]secret.Grant{g}, []credential.Canary{{Name: "git", Value: canary}})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func withWallet(w *credential.Wallet) func(*Config) { return func(c *Config) { c.Wallet = w } }

// nameserver notes each question, and answers none.
func (j *journal) nameserver(t testing.TB) netip.AddrPort {
	t.Helper()
	p, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 2048)
		for {
			n, from, err := p.ReadFrom(buf)
			if err != nil {
				return
			}
			j.note("question")
			buf[2], buf[3] = 0x84, 3 // an authoritative answer: no such name
			p.WriteTo(buf[:n], from)
		}
	}()
	t.Cleanup(func() { p.Close(); <-done })
	return netip.MustParseAddrPort(p.LocalAddr().String())
}

// Invariant 3: what cannot be put on record does not happen; and what happens
// was put on record before.
func TestNothingCrossesWithoutARecord(t *testing.T) {
	tests := map[string]struct {
		kinds   []audit.Kind // each is needed
		outside string       // what is seen outside
		act     func(*rig)
	}{
		"lookup": {[]audit.Kind{event.KindLookup}, "question", func(r *rig) { r.wantReset("looked.test", 7000) }},
		"tcp": {[]audit.Kind{event.KindConnection}, "accept", func(r *rig) {
			if c, err := r.guest.Dial(r.t, r.to("tcp.test", 7000)); err == nil {
				io.WriteString(c, "x")
				c.CloseWrite()
				io.Copy(io.Discard, c)
			}
		}},
		"udp": {[]audit.Kind{event.KindConnection}, "datagram", func(r *rig) {
			c := r.guest.DialUDP(r.t, r.to("udp.test", 7000))
			c.Write([]byte("x"))
			awaitAnswer(c)
		}},
		"http": {[]audit.Kind{event.KindRequest, event.KindConnection}, "request GET /x", func(r *rig) { r.get(r.client(""), "http://web.test/x") }},
		"secret": {[]audit.Kind{event.KindRequest, event.KindConnection, event.KindSecret}, "request GET /s", func(r *rig) {
			r.get(r.client(""), "http://api.test/s")
		}},
		"published": {[]audit.Kind{event.KindPublished}, "inside", nil},
	}
	for name, test := range tests {
		for _, fail := range append(slices.Clone(test.kinds), "") {
			t.Run(name+" without "+string(fail), func(t *testing.T) {
				j := newJournal()
				j.fail[fail] = true
				r, published := recordRig(t, j)
				if act := test.act; act != nil {
					act(r)
				} else {
					visit(t, published)
				}
				if fail == "" {
					j.await(t, test.outside, 1)
					wantBefore(t, j.seen(), test.outside, test.kinds)
					return
				}
				r.edge.Close() // whatever was under way has happened
				j.wantNothingOutside(t)
			})
		}
	}
}

// awaitAnswer reads until there is a datagram, or nobody.
func awaitAnswer(c net.Conn) {
	for range 1000 { // gonet does not notice an error while it waits
		c.SetReadDeadline(time.Now().Add(patience / 1000))
		_, err := c.Read(make([]byte, 10))
		var timeout net.Error
		if !errors.As(err, &timeout) || !timeout.Timeout() {
			return
		}
	}
}

// recordRig has a destination of every kind, and a published port whose
// visitors the guest notes.
func recordRig(t *testing.T, j *journal) (*rig, string) {
	ok := func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/s" && r.Header.Get("Authorization") != "Bearer "+value {
			t.Errorf("the secret is not in the request: %v", r.Header)
		}
	}
	plain, udp := j.web(t, "", ok), j.echoUDP(t)
	text := rules("- {allow: looked.test, ports: 7000, protocol: tcp}\n", allow("tcp.test", j.echo(t)),
		fmt.Sprintf("- {allow: udp.test, ports: 7000, protocol: udp, upstream: {address: %q}}\n", udp),
		fmt.Sprintf("- {allow: web.test, ports: 80, upstream: {address: %q}}\n", plain),
		fmt.Sprintf("- {allow: api.test, ports: 80, secret: key, upstream: {address: %q}}\n", plain))
	dialer, err := egress.New(egress.Config{Nameservers: []netip.AddrPort{j.nameserver(t)}})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := j.open(t, text, withWallet(wallet(t, secret.AsBearer, plain)), func(c *Config) {
		c.Dialer, c.Ports = dialer, []Port{{Stream: l, Guest: 8080}}
	})
	inside := r.guest.Listen(t, 8080)
	go func() {
		for {
			c, err := inside.Accept()
			if err != nil {
				return
			}
			j.note("inside")
			c.Close()
		}
	}()
	return r, l.Addr().String()
}

// visit connects, and waits for the end.
func visit(t testing.TB, address string) {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		return // reset already
	}
	defer c.Close()
	io.Copy(io.Discard, c)
}

func wantBefore(t testing.TB, lines []string, act string, kinds []audit.Kind) {
	t.Helper()
	at := slices.Index(lines, act)
	for _, k := range kinds {
		if i := slices.Index(lines, "record "+string(k)); i < 0 || i > at {
			t.Errorf("%s is not on record before %q in %q", k, act, lines)
		}
	}
}

func TestTheRecordHasNoSecret(t *testing.T) {
	j := newJournal()
	r, _ := recordRig(t, j)
	r.get(r.client(""), "http://api.test/s?token=abc")
	for _, q := range of[event.Request](j) {
		if strings.Contains(q.Path, "abc") || !slices.Equal(q.Queries, []string{"token"}) {
			t.Errorf("request %+v", q)
		}
	}
	uses := of[event.Secret](j)
	if len(uses) != 1 || uses[0].Name != "key" || uses[0].As != "bearer" || uses[0].Host != "api.test" {
		t.Errorf("uses of secrets: %+v", uses)
	}
}

// A policy that cannot be put on record is not opened with, and leaves nothing
// open.
func TestOpenWithoutARecordClosesAll(t *testing.T) {
	j := newJournal()
	j.fail[event.KindPolicy] = true
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	host, guest := net.Pipe()
	if _, err := Open(context.Background(), Config{Sandbox: "x", Network: host, Audit: j, Ports: []Port{{Stream: l}}}); err == nil {
		t.Fatal("opened without a record")
	}
	if _, err := guest.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the card: %v", err)
	}
	if _, err := l.Accept(); err == nil {
		t.Error("the published port is open")
	}
}

// What has happened already goes on record once that can be, or is counted.
func TestWhatHasHappenedComesOnRecordLate(t *testing.T) {
	for _, room := range []bool{true, false} {
		r := open(t, "")
		r.set(func(j *journal) { j.fail[event.KindAlert] = true })
		r.edge.alert(policy.Decision{Request: policy.Request{Op: policy.Resolve, Host: "a.test"}}, credential.Found{Mark: "canary git", Where: "name"})
		r.set(func(j *journal) { j.fail[event.KindAlert] = !room })
		if err := r.edge.Close(); err != nil {
			t.Fatal(err)
		}
		missed := r.owed.Close()[event.KindAlert]
		alerts := of[event.Alert](r.journal)
		if room && (len(alerts) != 1 || alerts[0].When.IsZero() || missed != 0) || !room && (len(alerts) != 0 || missed != 1) {
			t.Errorf("room %v: on record %+v, missed %d", room, alerts, missed)
		}
	}
}
