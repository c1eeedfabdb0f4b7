package names

import (
	"bytes"
	"fmt"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/dns/dnsmessage"

	"creel/internal/policy"
)

var pool = netip.MustParsePrefix("198.18.0.0/16")

// below allows every name below one.
func below(suffix string) func(string) bool {
	return func(host string) bool { return strings.HasSuffix(host, "."+suffix) }
}

func everything(string) bool { return true }

// question is a query as stub resolvers send it.
func question(t testing.TB, name string, kind dnsmessage.Type) []byte {
	t.Helper()
	return pack(t, dnsmessage.Message{
		Header: dnsmessage.Header{ID: 0x1234, RecursionDesired: true},
		Questions: []dnsmessage.Question{{
			Name: dnsmessage.MustNewName(name), Type: kind, Class: dnsmessage.ClassINET,
		}},
	})
}

func pack(t testing.TB, m dnsmessage.Message) []byte {
	t.Helper()
	raw, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func unpack(t testing.TB, raw []byte) dnsmessage.Message {
	t.Helper()
	var m dnsmessage.Message
	if err := m.Unpack(raw); err != nil {
		t.Fatalf("answer %x: %v", raw, err)
	}
	return m
}

// lookup is the code and the address of an answer, "" without one.
func lookup(t testing.TB, n *Names, name string, kind dnsmessage.Type) (dnsmessage.RCode, string) {
	t.Helper()
	m := unpack(t, n.Answer(question(t, name, kind)))
	if len(m.Answers) == 0 {
		return m.RCode, ""
	}
	a, ok := m.Answers[0].Body.(*dnsmessage.AResource)
	if !ok || len(m.Answers) != 1 {
		t.Fatalf("answers %v", m.Answers)
	}
	return m.RCode, netip.AddrFrom4(a.A).String()
}

func TestAnswers(t *testing.T) {
	const good, missing = dnsmessage.RCodeSuccess, dnsmessage.RCodeNameError
	const a, aaaa, txt, ptr = dnsmessage.TypeA, dnsmessage.TypeAAAA, dnsmessage.TypeTXT, dnsmessage.TypePTR
	var asked, odd []string
	n := New(Options{
		Allow: func(host string) bool {
			asked = append(asked, host)
			return strings.HasSuffix(host, "example.com") || host == "localhost" || host == "db" || strings.HasSuffix(host, "arpa")
		},
		Odd:  func(name string) { odd = append(odd, name) },
		Pool: pool, Max: 100,
	})
	tests := []struct {
		name  string
		kind  dnsmessage.Type
		code  dnsmessage.RCode
		addr  string
		asked string
		odd   string
	}{
		{"example.com.", a, good, "198.18.0.1", "example.com", ""},
		{"api.example.com.", a, good, "198.18.0.2", "api.example.com", ""},
		{"eXaMple.COM.", a, good, "198.18.0.1", "example.com", ""},
		{"new.example.com.", aaaa, good, "", "new.example.com", ""},
		{"_x.example.com.", a, good, "198.18.0.3", "_x.example.com", ""},
		{"localhost.", a, good, "198.18.0.4", "localhost", ""},
		{"db.", a, good, "198.18.0.5", "db", ""},
		{"other.test.", a, missing, "", "other.test", ""},
		{"other.test.", aaaa, missing, "", "other.test", ""},
		{"other.test.", txt, missing, "", "other.test", ""},
		{"other.test.", ptr, missing, "", "other.test", ""},
		{"secret data.example.com.", a, missing, "", "", "secret data.example.com."},
		{"\x00\xff.example.com.", txt, missing, "", "", "\x00\xff.example.com."},
		{"-x.example.com.", a, missing, "", "", "-x.example.com."},
		{"127.1.", a, missing, "", "", "127.1."},
		{".", dnsmessage.TypeNS, missing, "", "", "."},
		{"1.0.18.198.in-addr.arpa.", ptr, missing, "", "", "1.0.18.198.in-addr.arpa."},
		{"1.0.18.198.IN-addr.arpa.", a, missing, "", "", "1.0.18.198.IN-addr.arpa."},
		{"ip6.arpa.", a, missing, "", "", "ip6.arpa."},
		{"home.arpa.", ptr, good, "", "home.arpa", ""},
		{"xin-addr.arpa.", ptr, good, "", "xin-addr.arpa", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name+" "+tt.kind.String(), func(t *testing.T) {
			asked, odd = nil, nil
			code, addr := lookup(t, n, tt.name, tt.kind)
			if code != tt.code || addr != tt.addr {
				t.Errorf("got %v %q, want %v %q", code, addr, tt.code, tt.addr)
			}
			if got := strings.Join(asked, ", "); got != tt.asked {
				t.Errorf("policy was asked about %q, want %q", got, tt.asked)
			}
			if got := strings.Join(odd, ", "); got != tt.odd {
				t.Errorf("odd names %q, want %q", got, tt.odd)
			}
		})
	}
	if got := n.Used(); got != 5 {
		t.Errorf("%d names have an address, want 5", got)
	}
}

func TestOnlyTypeAHasData(t *testing.T) {
	n := New(Options{Allow: everything, Pool: pool, Max: 10})
	for kind := range dnsmessage.Type(300) {
		code, addr := lookup(t, n, "example.com.", kind)
		want := ""
		if kind == dnsmessage.TypeA {
			want = "198.18.0.1"
		}
		if code != dnsmessage.RCodeSuccess || addr != want {
			t.Errorf("type %v: got %v %q, want %q", kind, code, addr, want)
		}
	}
}

// The whole message, for an allowed name and with everything that a guest may
// add: only the question comes back.
func TestNothingElseComesBack(t *testing.T) {
	n := New(Options{Allow: everything, Pool: pool, Max: 10})
	name := dnsmessage.MustNewName("WwW.example.com.")
	query := dnsmessage.Message{
		Header: dnsmessage.Header{
			ID: 7, RecursionDesired: true, AuthenticData: true, CheckingDisabled: true, Truncated: true, Authoritative: true, RCode: 5,
		},
		Questions: []dnsmessage.Question{{Name: name, Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}},
	}
	var opt dnsmessage.ResourceHeader
	if err := opt.SetEDNS0(4096, 0, true); err != nil {
		t.Fatal(err)
	}
	query.Additionals = []dnsmessage.Resource{
		{Header: opt, Body: &dnsmessage.OPTResource{Options: []dnsmessage.Option{
			{Code: 10, Data: []byte("a cookie")}, {Code: 12, Data: make([]byte, 300)}, {Code: 8, Data: []byte("subnet")},
		}}},
		{
			Header: dnsmessage.ResourceHeader{Name: name, Type: dnsmessage.TypeTXT, Class: dnsmessage.ClassINET},
			Body:   &dnsmessage.TXTResource{TXT: []string{"smuggled"}},
		},
	}
	if err := opt.SetEDNS0(udpPayload, 0, false); err != nil {
		t.Fatal(err)
	}
	want := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: 7, Response: true, RecursionDesired: true, RecursionAvailable: true},
		Questions: query.Questions,
		Answers: []dnsmessage.Resource{{
			Header: dnsmessage.ResourceHeader{Name: name, Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET, TTL: 60, Length: 4},
			Body:   &dnsmessage.AResource{A: [4]byte{198, 18, 0, 1}},
		}},
		Additionals: []dnsmessage.Resource{{Header: opt, Body: &dnsmessage.OPTResource{}}},
	}
	got := unpack(t, n.Answer(pack(t, query)))
	if diff := cmp.Diff(want.GoString(), got.GoString()); diff != "" {
		t.Error(diff)
	}
}

func TestOddMessages(t *testing.T) {
	ok := question(t, "example.com.", dnsmessage.TypeA)
	with := func(at int, b ...byte) []byte {
		raw := bytes.Clone(ok)
		copy(raw[at:], b)
		return raw
	}
	tests := []struct {
		name   string
		query  []byte
		answer bool
		code   dnsmessage.RCode
		asks   bool // the question is in the answer
	}{
		{"empty", nil, false, 0, false},
		{"short of a header", ok[:11], false, 0, false},
		{"a response", with(2, 0x81), false, 0, false},
		{"inverse query", with(2, 1<<3), true, dnsmessage.RCodeNotImplemented, false},
		{"update", with(2, 5<<3), true, dnsmessage.RCodeNotImplemented, false},
		{"header alone", ok[:12], true, dnsmessage.RCodeFormatError, false},
		{"no question", with(5, 0), true, dnsmessage.RCodeFormatError, false},
		{"two questions", append(with(5, 2), ok[12:]...), true, dnsmessage.RCodeFormatError, false},
		{"an answer", with(7, 1), true, dnsmessage.RCodeFormatError, false},
		{"an authority", with(9, 1), true, dnsmessage.RCodeFormatError, false},
		{"a missing record", with(11, 1), true, dnsmessage.RCodeFormatError, false},
		{"many records", append(with(11, 5), bytes.Repeat([]byte{0, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0}, 5)...), true, dnsmessage.RCodeFormatError, false},
		{"name cut off", ok[:18], true, dnsmessage.RCodeFormatError, false},
		{"name points at itself", with(12, 0xc0, 12), true, dnsmessage.RCodeFormatError, false},
		{"dot inside a label", with(15, '.'), true, dnsmessage.RCodeFormatError, false},
		{"too long", append(bytes.Clone(ok), make([]byte, maxQuery)...), true, dnsmessage.RCodeFormatError, false},
		{"class CHAOS", with(len(ok)-1, 3), true, dnsmessage.RCodeRefused, true},
		{"class ANY", with(len(ok)-1, 255), true, dnsmessage.RCodeRefused, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			n := New(Options{Allow: everything, Pool: pool, Max: 10})
			raw := n.Answer(tt.query)
			if (raw != nil) != tt.answer {
				t.Fatalf("answer %x", raw)
			}
			if raw == nil {
				return
			}
			m := unpack(t, raw)
			if m.RCode != tt.code || len(m.Answers) != 0 || m.ID != 0x1234 || (len(m.Questions) == 1) != tt.asks {
				t.Errorf("got %s", m.GoString())
			}
			if n.Used() != 0 {
				t.Error("an address was given out")
			}
		})
	}
}

func TestSpentPoolRefusesNewNames(t *testing.T) {
	tests := []struct {
		name string
		pool string
		max  int
		want int
	}{
		{"fewer than the pool", "198.18.0.0/16", 3, 3},
		{"the pool", "198.18.0.8/29", 1000, 6},
		{"an unmasked pool", "198.18.0.13/29", 1000, 6},
		{"the smallest", "198.18.0.0/30", 1000, 2},
		{"too small", "198.18.0.0/31", 1000, 0},
		{"below zero", "198.18.0.0/16", -1, 0},
		{"version 6", "fd00::/64", 1000, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			prefix := netip.MustParsePrefix(tt.pool)
			n := New(Options{Allow: everything, Pool: prefix, Max: tt.max})
			seen := map[string]string{}
			for round := range 2 {
				for i := range tt.want {
					name := fmt.Sprintf("n%d.example.com", i)
					code, addr := lookup(t, n, name+".", dnsmessage.TypeA)
					if code != dnsmessage.RCodeSuccess || addr == "" {
						t.Fatalf("%s: %v", name, code)
					}
					if round == 0 && seen[addr] != "" {
						t.Errorf("%s has the address of %s", name, seen[addr])
					}
					if round == 1 && seen[addr] != name {
						t.Errorf("%s has another address the second time", name)
					}
					seen[addr] = name
					parsed := netip.MustParseAddr(addr)
					if host, ok := n.Host(parsed); !ok || host != name || !prefix.Contains(parsed) {
						t.Errorf("address %s of %s is the one of %q", addr, name, host)
					}
				}
				code, addr := lookup(t, n, "late.example.com.", dnsmessage.TypeA)
				if code != dnsmessage.RCodeServerFailure || addr != "" {
					t.Errorf("a name too many got %v %q", code, addr)
				}
			}
			if n.Used() != tt.want {
				t.Errorf("%d used, want %d", n.Used(), tt.want)
			}
		})
	}
}

func TestHostOfAddressesNotGivenOut(t *testing.T) {
	n := New(Options{Allow: everything, Pool: pool, Max: 10})
	lookup(t, n, "example.com.", dnsmessage.TypeA)
	for _, addr := range []string{"198.18.0.0", "198.18.0.2", "198.18.255.255", "198.17.0.1", "198.19.0.1", "::ffff:198.18.0.1", "fd00::1"} {
		if host, ok := n.Host(netip.MustParseAddr(addr)); ok || host != "" {
			t.Errorf("%s is the address of %q", addr, host)
		}
	}
	if _, ok := n.Host(netip.Addr{}); ok {
		t.Error("the zero address has a host")
	}
	if _, ok := New(Options{}).Host(netip.MustParseAddr("198.18.0.1")); ok {
		t.Error("the zero resolver has a host")
	}
}

func TestAddressOutlivesPermission(t *testing.T) {
	allow := true
	n := New(Options{Allow: func(string) bool { return allow }, Pool: pool, Max: 10})
	lookup(t, n, "one.test.", dnsmessage.TypeA)
	allow = false
	if code, _ := lookup(t, n, "one.test.", dnsmessage.TypeA); code != dnsmessage.RCodeNameError {
		t.Errorf("denied name got %v", code)
	}
	allow = true
	lookup(t, n, "two.test.", dnsmessage.TypeA)
	if _, addr := lookup(t, n, "one.test.", dnsmessage.TypeA); addr != "198.18.0.1" {
		t.Errorf("one.test is %s now", addr)
	}
}

func TestZeroOptionsDeny(t *testing.T) {
	if code, addr := lookup(t, New(Options{}), "example.com.", dnsmessage.TypeA); code != dnsmessage.RCodeNameError || addr != "" {
		t.Errorf("got %v %q", code, addr)
	}
	n := New(Options{Allow: everything, Max: 10})
	if code, addr := lookup(t, n, "example.com.", dnsmessage.TypeA); code != dnsmessage.RCodeServerFailure || addr != "" {
		t.Errorf("without a pool: got %v %q", code, addr)
	}
}

func TestConcurrentNamesAreDistinct(t *testing.T) {
	const workers, names = 8, 500
	n := New(Options{Allow: everything, Pool: pool, Max: names})
	found := make([]map[string]string, workers)
	var tasks sync.WaitGroup
	for w := range workers {
		found[w] = map[string]string{}
		tasks.Go(func() {
			for i := range names {
				name := fmt.Sprintf("n%d.test", (i*(2*w+1))%names)
				_, found[w][name] = lookup(t, n, name+".", dnsmessage.TypeA)
			}
		})
	}
	tasks.Wait()
	all := map[string]bool{}
	for name, addr := range found[0] {
		all[addr] = true
		if host, _ := n.Host(netip.MustParseAddr(addr)); host != name {
			t.Errorf("%s of %s is the address of %q", addr, name, host)
		}
	}
	if len(all) != names || n.Used() != names {
		t.Errorf("%d addresses, %d used, want %d", len(all), n.Used(), names)
	}
	for w, mine := range found {
		for name, addr := range mine {
			if found[0][name] != addr {
				t.Errorf("worker %d: %s is %s and %s", w, name, addr, found[0][name])
			}
		}
	}
}

// longName is the i-th name of 253 characters.
func longName(i int) string {
	label := strings.Repeat("x", 61) + "."
	return (fmt.Sprintf("n%06d.", i) + label + label + label + label)[:253]
}

// A guest under a wildcard fills the table with the longest names, and goes on.
func TestMemoryOfTheLongestNames(t *testing.T) {
	const most = 400 // bytes a name, as Options.Max says
	n := New(Options{Allow: everything, Pool: pool, Max: 1 << 16})
	before := heap()
	ask := func(from, to int) {
		for i := from; i < to; i++ {
			n.Answer(question(t, longName(i)+".", dnsmessage.TypeA))
		}
	}
	ask(0, 1<<16)
	full := heap() - before
	if n.Used() != 1<<16-2 {
		t.Fatalf("%d names", n.Used())
	}
	t.Logf("%d names take %d KiB, %d bytes each", n.Used(), full>>10, full/int64(n.Used()))
	if full > most*int64(n.Used()) {
		t.Errorf("%d bytes a name, want at most %d", full/int64(n.Used()), most)
	}
	ask(1<<16, 1<<16+20000)
	if more := heap() - before - full; more > 1<<20 {
		t.Errorf("names that were refused take %d bytes", more)
	}
	runtime.KeepAlive(n)
}

func heap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

func FuzzAnswer(f *testing.F) {
	f.Add(question(f, "api.example.com.", dnsmessage.TypeA))
	f.Add(question(f, "API.example.com.", dnsmessage.TypeHTTPS))
	f.Add(question(f, "denied.test.", dnsmessage.TypeTXT))
	f.Add(question(f, "1.0.18.198.in-addr.arpa.", dnsmessage.TypePTR))
	f.Add(question(f, longName(1)+".", dnsmessage.TypeA))
	var opt dnsmessage.ResourceHeader
	opt.SetEDNS0(4096, 0, true)
	f.Add(pack(f, dnsmessage.Message{
		Questions:   []dnsmessage.Question{{Name: dnsmessage.MustNewName("a.example.com."), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}},
		Additionals: []dnsmessage.Resource{{Header: opt, Body: &dnsmessage.OPTResource{Options: []dnsmessage.Option{{Code: 10, Data: []byte("cookie")}}}}},
	}))
	// The question's name begins inside the header.
	f.Add([]byte("\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\xc0\x02\x00\x01\x00\x01"))
	n := New(Options{Allow: below("example.com"), Pool: pool, Max: 1000})
	f.Fuzz(func(t *testing.T, query []byte) {
		sent := bytes.Clone(query)
		raw := n.Answer(query)
		if !bytes.Equal(sent, query) {
			t.Fatal("the query was changed")
		}
		if raw == nil {
			return
		}
		if len(raw) > MaxAnswer {
			t.Fatalf("%d bytes of answer", len(raw))
		}
		m := unpack(t, raw)
		if len(m.Answers) > 1 || len(m.Authorities) > 0 || len(m.Additionals) > 1 || len(m.Questions) > 1 {
			t.Fatalf("too much: %s", m.GoString())
		}
		if len(m.Questions) == 1 {
			var p dnsmessage.Parser
			p.Start(query)
			asked, err := p.Question()
			if err != nil || asked != m.Questions[0] {
				t.Fatalf("asked %v, echoed %v", asked, m.Questions[0])
			}
		}
		if len(m.Additionals) == 1 {
			opt, ok := m.Additionals[0].Body.(*dnsmessage.OPTResource)
			if !ok || len(opt.Options) != 0 {
				t.Fatalf("additional %v", m.Additionals[0])
			}
		}
		checkAddress(t, n, m)
	})
}

// checkAddress: data only in an A record, only for an allowed name, and it
// names the host that was asked for.
func checkAddress(t *testing.T, n *Names, m dnsmessage.Message) {
	t.Helper()
	if len(m.Answers) == 0 {
		return
	}
	a, ok := m.Answers[0].Body.(*dnsmessage.AResource)
	if !ok || m.RCode != dnsmessage.RCodeSuccess || len(m.Questions) != 1 || m.Questions[0].Type != dnsmessage.TypeA {
		t.Fatalf("answer %s", m.GoString())
	}
	addr := netip.AddrFrom4(a.A)
	host, _ := n.Host(addr)
	asked, err := policy.CleanHost(m.Questions[0].Name.String())
	if err != nil || host != asked || !pool.Contains(addr) || !below("example.com")(host) {
		t.Fatalf("asked for %q, got %s of %q", asked, addr, host)
	}
}

func BenchmarkAnswer(b *testing.B) {
	b.Run("known", func(b *testing.B) {
		n := New(Options{Allow: everything, Pool: pool, Max: 1 << 16})
		query := question(b, "registry.example.com.", dnsmessage.TypeA)
		b.ReportAllocs()
		for b.Loop() {
			n.Answer(query)
		}
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "names/s")
	})
	b.Run("new", func(b *testing.B) {
		queries := make([][]byte, 1<<16-2)
		for i := range queries {
			queries[i] = question(b, longName(i)+".", dnsmessage.TypeA)
		}
		b.ReportAllocs()
		var n *Names
		for i := 0; b.Loop(); i++ {
			if i%len(queries) == 0 {
				n = New(Options{Allow: everything, Pool: pool, Max: 1 << 16})
			}
			n.Answer(queries[i%len(queries)])
		}
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "names/s")
	})
}
