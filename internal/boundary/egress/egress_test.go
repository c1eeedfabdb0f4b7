package egress

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/dns/dnsmessage"

	"creel/internal/policy"
)

// public pretends that every public address is behind the one of a server on
// loopback, and notes what is dialled.
func public(d *Dialer, j *journal, at netip.AddrPort) {
	d.connect = func(ctx context.Context, network string, addr netip.AddrPort) (net.Conn, error) {
		j.note("dial %s %s", network, addr)
		if policy.AddressClass(addr.Addr()) == policy.Public {
			addr = at
		}
		return connect(ctx, network, addr)
	}
}

func TestRecordedBeforeDone(t *testing.T) {
	j := &journal{}
	to := greeter(t, j, "127.0.0.1:0")
	d := newDialer(t, Config{Nameservers: []netip.AddrPort{nameserver(t, always(j, "1.1.1.1"))}})
	public(d, j, to)
	p := rules(rule("pub.test"))
	conn, err := d.Dial(t.Context(), p, Target{Host: "pub.test", Port: 443}, j)
	wantHello(t, conn, err)
	want := []string{"record lookup pub.test", "asked pub.test.", "asked pub.test.", "record dial 1.1.1.1:443", "dial tcp 1.1.1.1:443", "accept"}
	if diff := cmp.Diff(want, j.all()); diff != "" {
		t.Error(diff)
	}
	if c := j.last.Decision; !c.Allow || c.RuleName() != "pub.test" || c.Request.Op != policy.Dial {
		t.Errorf("decision on record: %+v", c)
	}

	for refuse, want := range map[string][]string{
		"lookup": nil,
		"dial":   {"record lookup pub.test", "asked pub.test.", "asked pub.test."},
	} {
		j.start(refuse)
		_, err := d.Dial(t.Context(), p, Target{Host: "pub.test", Port: 443}, j)
		if Class(err) != Unrecorded {
			t.Errorf("no record of the %s: %v", refuse, err)
		}
		if diff := cmp.Diff(want, j.all()); diff != "" {
			t.Errorf("no record of the %s: %s", refuse, diff)
		}
	}

	j.start("")
	_, err = d.Dial(t.Context(), p, Target{Host: "other.test", Port: 443}, j)
	if Class(err) != DeniedByPolicy || len(j.all()) != 0 {
		t.Errorf("a name that is not allowed: %v, %q", err, j.all())
	}
}

func TestAnswersAreAskedOfPolicy(t *testing.T) {
	many := func(format string) (out []string) {
		for i := range 1000 {
			out = append(out, fmt.Sprintf(format, i/250+1, i%250+1))
		}
		return out
	}
	for name, c := range map[string]struct {
		answers []string
		want    string // the addresses on record, or the class of the denial
		private bool
	}{
		"public":              {answers: []string{"1.1.1.1"}, want: "1.1.1.1:443"},
		"loopback":            {answers: []string{"127.0.0.1"}, want: "loopback"},
		"private":             {answers: []string{"10.0.0.1"}, want: "private"},
		"link-local":          {answers: []string{"169.254.7.7"}, want: "link-local"},
		"metadata":            {answers: []string{"169.254.169.254"}, want: "metadata"},
		"metadata, permitted": {answers: []string{"169.254.169.254"}, want: "metadata", private: true},
		"unspecified":         {answers: []string{"0.0.0.0"}, want: "reserved", private: true},
		"multicast":           {answers: []string{"224.0.0.1"}, want: "multicast", private: true},
		"mapped":              {answers: []string{"::ffff:10.0.0.1"}, want: "private"},
		"mapped metadata":     {answers: []string{"::ffff:169.254.169.254"}, want: "metadata", private: true},
		"mapped public":       {answers: []string{"::ffff:1.1.1.1"}, want: "1.1.1.1:443"},
		"NAT64 of loopback":   {answers: []string{"64:ff9b::7f00:1"}, want: "loopback"},
		"6to4 of private":     {answers: []string{"2002:a00:1::1"}, want: "private"},
		"link-local IPv6":     {answers: []string{"fe80::1"}, want: "link-local"},
		"unspecified IPv6":    {answers: []string{"::"}, want: "reserved", private: true},
		"mapped and plain":    {answers: []string{"::ffff:1.1.1.1", "1.1.1.1", "1.1.1.1"}, want: "1.1.1.1:443"},
		"mixed":               {answers: []string{"10.0.0.1", "1.1.1.1", "127.0.0.1", "fe80::1"}, want: "1.1.1.1:443"},
		"alias":               {answers: []string{"a.alias.", "b.alias.", "1.1.1.1"}, want: "1.1.1.1:443"},
		"alias of private":    {answers: []string{"a.alias.", "b.alias.", "10.0.0.1"}, want: "private"},
		"1000, private first": {answers: append(many("10.9.%d.%d"), "1.1.1.1"), want: "private"},
		"1000":                {answers: many("1.1.%d.%d"), want: "1.1.1.1:443 1.1.1.2:443 1.1.1.3:443 1.1.1.4:443"},
	} {
		t.Run(name, func(t *testing.T) {
			j := &journal{}
			d := newDialer(t, Config{Nameservers: []netip.AddrPort{nameserver(t, always(&journal{}, c.answers...))}})
			d.connect = func(context.Context, string, netip.AddrPort) (net.Conn, error) { return nil, syscall.ECONNREFUSED }
			r := rule("pub.test")
			r.AllowPrivate = c.private
			_, err := d.Dial(t.Context(), rules(r), Target{Host: "pub.test", Port: 443}, j)
			got := strings.ReplaceAll(strings.Join(j.all()[1:], " "), "record dial ", "")
			var denied *Denied
			if errors.As(err, &denied) && got == "" {
				got = string(denied.Decision.Class)
			} else if Class(err) != Refused {
				t.Errorf("error %v", err)
			}
			if got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
		})
	}
}

func TestNextAddressIsTried(t *testing.T) {
	j := &journal{}
	to := greeter(t, j, "127.0.0.1:0")
	d := newDialer(t, Config{Nameservers: []netip.AddrPort{nameserver(t, always(&journal{}, "1.1.1.1", "2606:4700::1", "1.1.1.2"))}})
	d.connect = func(ctx context.Context, network string, addr netip.AddrPort) (net.Conn, error) {
		j.note("dial %s", addr)
		if addr.Addr() != netip.MustParseAddr("1.1.1.2") {
			return nil, syscall.ENETUNREACH
		}
		return connect(ctx, network, to)
	}
	conn, err := d.Dial(t.Context(), rules(rule("pub.test")), Target{Host: "pub.test", Port: 22}, j)
	wantHello(t, conn, err)
	want := []string{"record lookup pub.test", "record dial 1.1.1.1:22", "dial 1.1.1.1:22", "record dial [2606:4700::1]:22",
		"dial [2606:4700::1]:22", "record dial 1.1.1.2:22", "dial 1.1.1.2:22", "accept"}
	if diff := cmp.Diff(want, j.all()); diff != "" {
		t.Error(diff)
	}
}

func TestRebinding(t *testing.T) {
	j := &journal{}
	to := greeter(t, j, "127.0.0.1:0")
	var asked atomic.Int64
	d := newDialer(t, Config{Nameservers: []netip.AddrPort{nameserver(t, func(q dnsmessage.Question) (dnsmessage.RCode, []dnsmessage.Resource) {
		if asked.Add(1) <= 2 { // A and AAAA of the first dial
			return dnsmessage.RCodeSuccess, resources(q, "1.1.1.1")
		}
		return dnsmessage.RCodeSuccess, resources(q, "127.0.0.1")
	})}})
	public(d, j, to)
	p := rules(rule("pub.test"))
	conn, err := d.Dial(t.Context(), p, Target{Host: "pub.test", Port: to.Port()}, j)
	wantHello(t, conn, err)
	j.start("")
	if _, err := d.Dial(t.Context(), p, Target{Host: "pub.test", Port: to.Port()}, j); Class(err) != DeniedByPolicy {
		t.Errorf("second dial: %v", err)
	}
	if diff := cmp.Diff([]string{"record lookup pub.test"}, j.all()); diff != "" {
		t.Error(diff)
	}
}

func TestPlaces(t *testing.T) {
	j := &journal{}
	to, to6 := greeter(t, j, "127.0.0.1:0"), greeter(t, j, "[::1]:0")
	d := newDialer(t, Config{
		Nameservers: []netip.AddrPort{nameserver(t, always(j, "127.0.0.1"))},
		Hosts:       map[string][]netip.Addr{"box.lan": {to.Addr()}},
	})
	for name, c := range map[string]struct {
		rule   policy.Rule
		target Target
		want   []string // on record; nil: denied
	}{
		"upstream":                  {rule("api.test", upstream(to.String())), Target{Host: "api.test", Port: 443}, []string{"record dial " + to.String()}},
		"upstream of an address":    {rule("8.8.8.8/32", upstream(to.String())), Target{Addr: netip.MustParseAddr("8.8.8.8"), Port: 53}, []string{"record dial " + to.String()}},
		"upstream in hosts":         {rule("api.test", upstream(fmt.Sprintf("box.lan:%d", to.Port())), private), Target{Host: "api.test", Port: 443}, []string{"record dial " + to.String()}},
		"upstream by name":          {rule("api.test", upstream(fmt.Sprintf("up.test:%d", to.Port())), private), Target{Host: "api.test", Port: 443}, []string{"record lookup up.test", "record dial " + to.String()}},
		"upstream, not permitted":   {rule("api.test", upstream(fmt.Sprintf("box.lan:%d", to.Port()))), Target{Host: "api.test", Port: 443}, nil},
		"the host itself":           {rule(policy.HostAlias), Target{Host: policy.HostAlias, Port: to.Port()}, []string{"record dial " + to.String()}},
		"the host itself, IPv6":     {rule(policy.HostAlias), Target{Host: policy.HostAlias, Port: to6.Port()}, []string{fmt.Sprintf("record dial 127.0.0.1:%d", to6.Port()), "record dial " + to6.String()}},
		"in hosts":                  {rule("box.lan", private), Target{Host: "box.lan", Port: to.Port()}, []string{"record dial " + to.String()}},
		"in hosts, not permitted":   {rule("box.lan"), Target{Host: "box.lan", Port: to.Port()}, nil},
		"an address":                {rule("127.0.0.0/8", private), Target{Addr: to.Addr(), Port: to.Port()}, []string{"record dial " + to.String()}},
		"an address, not permitted": {rule("127.0.0.0/8"), Target{Addr: to.Addr(), Port: to.Port()}, nil},
		"an address with a zone":    {rule("::/0", private), Target{Addr: netip.MustParseAddr("::1%lo"), Port: to6.Port()}, nil},
		"another port":              {rule(policy.HostAlias, func(r *policy.Rule) { r.Ports = []policy.PortRange{{First: 1, Last: 1}} }), Target{Host: policy.HostAlias, Port: to.Port()}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			j.start("")
			conn, err := d.Dial(t.Context(), rules(c.rule), c.target, j)
			if c.want != nil {
				wantHello(t, conn, err)
			} else if Class(err) != DeniedByPolicy {
				t.Errorf("%v, %v", conn, err)
			}
			var got []string
			for _, line := range j.all() {
				if strings.HasPrefix(line, "record") {
					got = append(got, line)
				}
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// An upstream does not lift a deny of its address.
func TestDenyOfUpstreamsAddress(t *testing.T) {
	j := &journal{}
	to := greeter(t, j, "127.0.0.1:0")
	deny := policy.Rule{Name: "no loopback", Deny: true, Prefix: netip.MustParsePrefix("127.0.0.0/8")}
	p := rules(rule("8.8.8.8/32", upstream(to.String())), deny)
	_, err := newDialer(t, Config{}).Dial(t.Context(), p, Target{Addr: netip.MustParseAddr("8.8.8.8"), Port: 53}, j)
	if Class(err) != DeniedByPolicy || len(j.all()) != 0 {
		t.Errorf("%v, %q", err, j.all())
	}
}

func TestOwnAddresses(t *testing.T) {
	own := ownAddress(t)
	d := newDialer(t, Config{Hosts: map[string][]netip.Addr{"own.test": {own}}})
	_, err := d.Dial(t.Context(), rules(rule("own.test")), Target{Host: "own.test", Port: 1}, &journal{})
	var denied *Denied
	if !errors.As(err, &denied) || denied.Decision.Class != policy.Loopback {
		t.Errorf("%s: %v", own, err)
	}
	for _, s := range []string{"1.1.1.1", "2606:4700::1111", "192.0.2.1"} {
		if own, err := d.own.has(t.Context(), netip.MustParseAddr(s)); own || err != nil {
			t.Errorf("%s: own %v, %v", s, own, err)
		}
	}
	listed := ownAddresses{bindsAny: true, list: []netip.Addr{netip.MustParseAddr("1.1.1.1")}}
	if own, _ := listed.has(t.Context(), netip.MustParseAddr("1.1.1.1")); !own {
		t.Error("the list is not looked at where anything can be bound")
	}
}

func TestUDP(t *testing.T) {
	j := &journal{}
	l, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	d := newDialer(t, Config{
		Nameservers: []netip.AddrPort{nameserver(t, always(&journal{}, "1.1.1.1"))},
		Proxy:       &Proxy{Scheme: HTTP, Address: "127.0.0.1:1"}, ProxyResolves: true,
	})
	public(d, j, l.LocalAddr().(*net.UDPAddr).AddrPort())
	r := rule("ntp.test")
	r.Protocol = policy.UDP
	conn, err := d.Dial(t.Context(), rules(r), Target{Host: "ntp.test", Port: 123, Protocol: policy.UDP}, j)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("ping")); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 10)
	if n, _, err := l.ReadFrom(buf); err != nil || string(buf[:n]) != "ping" {
		t.Errorf("%q, %v", buf[:n], err)
	}
	if diff := cmp.Diff([]string{"record lookup ntp.test", "record dial 1.1.1.1:123", "dial udp 1.1.1.1:123"}, j.all()); diff != "" {
		t.Error(diff)
	}
}

func TestNothingIsTriedAfterCancel(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	j := &journal{}
	d := newDialer(t, Config{Hosts: map[string][]netip.Addr{"pub.test": {netip.MustParseAddr("1.1.1.1"), netip.MustParseAddr("1.1.1.2")}}})
	d.connect = func(context.Context, string, netip.AddrPort) (net.Conn, error) {
		cancel()
		return nil, syscall.ECONNREFUSED
	}
	d.Dial(ctx, rules(rule("pub.test")), Target{Host: "pub.test", Port: 443}, j)
	if diff := cmp.Diff([]string{"record dial 1.1.1.1:443"}, j.all()); diff != "" {
		t.Error(diff)
	}
}

// refusesOnce is a witness that has no room for the first dial, but for others.
type refusesOnce struct {
	*journal
	refused bool
}

func (r *refusesOnce) Dial(ctx context.Context, a Attempt) error {
	if !r.refused {
		r.refused = true
		return io.ErrShortWrite
	}
	return r.journal.Dial(ctx, a)
}

func TestNothingIsTriedAfterRefusal(t *testing.T) {
	j := &journal{}
	d := newDialer(t, Config{Hosts: map[string][]netip.Addr{"pub.test": {netip.MustParseAddr("1.1.1.1"), netip.MustParseAddr("1.1.1.2")}}})
	public(d, j, netip.AddrPort{})
	_, err := d.Dial(t.Context(), rules(rule("pub.test")), Target{Host: "pub.test", Port: 443}, &refusesOnce{journal: j})
	if Class(err) != Unrecorded || len(j.all()) > 0 {
		t.Errorf("%v, %q", err, j.all())
	}
}

func TestCancel(t *testing.T) {
	for _, scheme := range []string{HTTP, HTTPS, SOCKS5} {
		ctx, cancel := context.WithCancel(t.Context())
		silent := server(t, "127.0.0.1:0", func(c net.Conn) {
			cancel()
			io.Copy(io.Discard, c)
		})
		d := newDialer(t, Config{Proxy: &Proxy{Scheme: scheme, Address: silent.String()}})
		_, err := d.Dial(ctx, rules(rule("1.1.1.1/32")), Target{Addr: netip.MustParseAddr("1.1.1.1"), Port: 443}, &journal{})
		if Class(err) != Canceled {
			t.Errorf("%s: %s: %v", scheme, Class(err), err)
		}
	}

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	mute, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		mute.ReadFrom(make([]byte, 1<<10))
		cancel()
	})
	defer wg.Wait()
	defer mute.Close()
	d := newDialer(t, Config{Nameservers: []netip.AddrPort{mute.LocalAddr().(*net.UDPAddr).AddrPort()}})
	if _, err := d.Dial(ctx, rules(rule("pub.test")), Target{Host: "pub.test", Port: 443}, &journal{}); Class(err) != Canceled {
		t.Errorf("lookup: %s: %v", Class(err), err)
	}
}

func TestClass(t *testing.T) {
	j := &journal{}
	to := greeter(t, j, "127.0.0.1:0")
	closed := server(t, "127.0.0.1:0", func(net.Conn) {})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	d := newDialer(t, Config{})
	_, refused := d.Dial(t.Context(), rules(rule("a.test", upstream(l.Addr().String()))), Target{Host: "a.test", Port: 1}, j)
	_, noServer := d.Dial(t.Context(), rules(rule("a.test")), Target{Host: "a.test", Port: 1}, j)
	d = newDialer(t, Config{Proxy: &Proxy{Scheme: HTTP, Address: closed.String()}})
	one := Target{Addr: netip.MustParseAddr("1.1.1.1"), Port: 1}
	_, noProxy := d.Dial(t.Context(), rules(rule("1.1.1.1/32")), one, j)
	past, cancel := context.WithTimeout(t.Context(), 0)
	defer cancel()
	_, timeout := newDialer(t, Config{}).Dial(past, rules(rule("a.test", upstream(to.String()))), Target{Host: "a.test", Port: 1}, j)
	for _, c := range []struct {
		err  error
		want string
	}{
		{nil, ""}, {refused, Refused}, {noServer, ResolverFailed}, {noProxy, ProxyFailed}, {timeout, TimedOut},
		{&Denied{}, DeniedByPolicy}, {&net.OpError{Err: syscall.EHOSTUNREACH}, Unreachable}, {errors.New("other"), Failed},
	} {
		if got := Class(c.err); got != c.want {
			t.Errorf("%v: %q, want %q", c.err, got, c.want)
		}
	}
}

func TestAddresses(t *testing.T) {
	var j journal
	one := netip.MustParseAddr("127.0.0.1")
	d, err := New(Config{Hosts: map[string][]netip.Addr{"box.lan": {one}}})
	if err != nil {
		t.Fatal(err)
	}
	for host, want := range map[string][]netip.Addr{"box.lan": {one}, "10.0.0.1": {netip.MustParseAddr("10.0.0.1")}, "::ffff:10.0.0.1": {netip.MustParseAddr("10.0.0.1")}} {
		if got, err := d.Addresses(t.Context(), host, &j); err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %v, %v", host, got, err)
		}
	}
	if len(j.all()) > 0 {
		t.Errorf("looked up: %q", j.all())
	}
	if _, err := d.Addresses(t.Context(), "unknown.test", &j); Class(err) != ResolverFailed {
		t.Errorf("without a nameserver: %v", err)
	}
	if got := j.all(); !slices.Equal(got, []string{"record lookup unknown.test"}) {
		t.Errorf("on record: %q", got)
	}
	j.start("lookup")
	if _, err := d.Addresses(t.Context(), "unknown.test", &j); Class(err) != Unrecorded {
		t.Errorf("without a record: %v", err)
	}
}
