package boundary

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"

	"creel/internal/audit/event"
	"creel/internal/boundary/egress"
	"creel/internal/policy"
)

// elsewhere is a dialer that knows names, and reaches one server whatever is
// dialled.
type elsewhere struct {
	*egress.Dialer
	server string
}

func (e elsewhere) Dial(ctx context.Context, p *policy.Policy, t egress.Target, w egress.Witness) (net.Conn, error) {
	network := "tcp"
	if t.Protocol == policy.UDP {
		network = "udp"
	}
	d := p.Decide(policy.Request{Op: policy.Connect, Host: t.Host, Addr: t.Addr, Port: t.Port, Protocol: t.Protocol})
	if !d.Allow {
		return nil, &egress.Denied{Decision: d}
	}
	if err := w.Dial(ctx, egress.Attempt{Address: netip.AddrPortFrom(t.Addr, t.Port), Decision: d}); err != nil {
		return nil, err
	}
	return new(net.Dialer).DialContext(ctx, network, e.server)
}

// ownersAddress is that of every name in these tests, and otherAddress nobody's.
const ownersAddress, otherAddress = "93.184.216.34", "93.184.216.35"

func withElsewhere(t testing.TB, server string, names ...string) func(*Config) {
	t.Helper()
	hosts := map[string][]netip.Addr{}
	for _, name := range names {
		hosts[name] = []netip.Addr{netip.MustParseAddr("2606:2800:220:1::1"), netip.MustParseAddr(ownersAddress)}
	}
	d, err := egress.New(egress.Config{Hosts: hosts})
	if err != nil {
		t.Fatal(err)
	}
	return func(c *Config) { c.Dialer = elsewhere{d, server} }
}

// An address that belongs to a name whose rule holds more is reached by that
// name alone, whatever is spoken there.
func TestAddressesOfNamesThatHoldMore(t *testing.T) {
	for name, rule := range map[string]string{
		"methods":             "- {allow: api.test, ports: PORT, protocol: PROTO, methods: GET}\n",
		"a deny":              "- {allow: api.test, ports: PORT, protocol: PROTO}\n- {deny: api.test, paths: /admin/**}\n",
		"budget":              "- {allow: api.test, ports: PORT, protocol: PROTO, budget: {requests: 5}}\n",
		"upstream":            "- {allow: elsewhere.test, ports: 1, protocol: http, methods: GET, upstream: {address: \"api.test:PORT\"}}\n",
		"upstream by address": "- {allow: api.test, ports: 1, protocol: http, methods: GET, upstream: {address: \"" + ownersAddress + ":PORT\"}}\n",
	} {
		for _, by := range []struct{ port, proto, nameProto string }{{"443", "tls", "tls"}, {"7000", "tcp", "http"}, {"80", "http", "http"}, {"7000", "udp", "http"}} {
			t.Run(name+" "+by.proto, func(t *testing.T) {
				j := newJournal()
				server := j.echo(t)
				if by.proto == "udp" {
					server = j.echoUDP(t)
				}
				text := rules(strings.NewReplacer("PORT", by.port, "PROTO", by.nameProto).Replace(rule),
					fmt.Sprintf("- {allow: 93.184.216.0/24, ports: %s, protocol: %s}\n", by.port, by.proto))
				r := j.open(t, text, withElsewhere(t, server, "api.test"))
				to := func(address string) netip.AddrPort { return mustAddrPort(address + ":" + by.port) }
				if by.proto == "udp" {
					r.guest.DialUDP(t, to(ownersAddress)).Write([]byte("hello"))
				} else {
					c, err := r.guest.DialContext(t.Context(), to(ownersAddress))
					if err == nil {
						wantBroken(t, c)
					}
				}
				list := r.awaitDenials(1)
				if !strings.Contains(list[0].Reason, "has rules of its own") || !strings.Contains(list[0].Hint, "connect to the name") {
					t.Errorf("denials: %+v", list)
				}
				j.wantNothingOutside(t)
				// Another address of the network is reached.
				switch by.proto {
				case "udp":
					c := r.guest.DialUDP(t, to(otherAddress))
					wantEcho(t, c, "hello")
				case "tcp":
					wantEcho(t, r.guest.MustDial(t, to(otherAddress)), "hello")
				case "tls":
					hello := string(helloOf(&tls.Config{InsecureSkipVerify: true}))
					wantEcho(t, r.guest.MustDial(t, to(otherAddress)), hello)
				case "http":
					c := r.guest.MustDial(t, to(otherAddress))
					fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: %s\r\n\r\n", otherAddress)
					j.await(t, "record "+string(event.KindConnection), 1)
				}
			})
		}
	}
}

// A connection by address that calls a name is held to what the rule of that
// name says.
func TestNamesCalledByAddress(t *testing.T) {
	for name, c := range map[string]struct{ rule, reason string }{
		"read":     {"- {allow: named.test, methods: GET}\n", "by address"},
		"denied":   {"- {allow: \"**.test\"}\n- {deny: named.test}\n", "denied by rule"},
		"budget":   {"- {allow: named.test, budget: {bytes_out: 1MiB}}\n", "by address"},
		"upstream": {"- {allow: named.test, upstream: {address: \"10.0.0.1:443\"}}\n", "by address"},
		"wildcard": {"- {allow: \"*.test\", paths: /v1/**}\n", "by address"},
		"no rule":  {"", "no rule names"},
		"allowed":  {"- {allow: named.test}\n", ""},
	} {
		t.Run(name, func(t *testing.T) {
			j := newJournal()
			text := rules(c.rule, "- {allow: 93.184.216.0/24, ports: 443}\n")
			r := j.open(t, text, withElsewhere(t, j.echo(t), "named.test"))
			guest := r.guest.MustDial(t, mustAddrPort(otherAddress+":443"))
			hello := string(helloOf(&tls.Config{ServerName: "named.test"}))
			if c.reason == "" {
				wantEcho(t, guest, hello)
				// It ends where the name's rule comes to hold more.
				r.setRules(rules("- {allow: named.test, methods: GET}\n", "- {allow: 93.184.216.0/24, ports: 443}\n"))
				wantBroken(t, guest)
				return
			}
			io.WriteString(guest, hello)
			if answer, _ := io.ReadAll(guest); !bytes.Equal(answer, accessDenied) {
				t.Errorf("answer % x", answer)
			}
			if list := r.awaitDenials(1); !strings.Contains(list[0].Reason, c.reason) {
				t.Errorf("denials: %+v", list)
			}
			j.wantNothingOutside(t)
		})
	}
}

// Where nobody can tell whose an address is, it is not connected to.
func TestOwnersThatCannotBeLookedUp(t *testing.T) {
	j := newJournal()
	r := j.open(t, rules("- {allow: api.test, methods: GET}\n", "- {allow: 93.184.216.0/24, ports: 443}\n"), withElsewhere(t, j.echo(t)))
	if c, err := r.guest.DialContext(t.Context(), mustAddrPort(otherAddress+":443")); err == nil {
		wantBroken(t, c)
	}
	if list := r.awaitDenials(1); !strings.Contains(list[0].Reason, "cannot be told") {
		t.Errorf("denials: %+v", list)
	}
	if lookups := of[event.Destination](j); len(lookups) != 1 || lookups[0].Host != "api.test" {
		t.Errorf("on record: %+v", lookups)
	}
}

// An open connection by address ends where a rule comes whose name may be
// there.
func TestOwnersThatComeLater(t *testing.T) {
	j := newJournal()
	network := "- {allow: 93.184.216.0/24, ports: 7000, protocol: tcp}\n"
	r := j.open(t, rules(network), withElsewhere(t, j.echo(t), "api.test"))
	c := r.guest.MustDial(t, mustAddrPort(ownersAddress+":7000"))
	wantEcho(t, c, "hello")
	r.setRules(rules(network, "- {allow: other.test, ports: 7000}\n"))
	wantEcho(t, c, "hello")
	r.setRules(rules(network, "- {allow: api.test, ports: 7000, protocol: http, methods: GET}\n"))
	wantBroken(t, c)
}
