package egress

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"creel/internal/policy"
)

func TestResolvConf(t *testing.T) {
	lo := "%lo"
	if i, err := net.InterfaceByName("lo"); err == nil {
		lo = fmt.Sprintf("%%%d", i.Index)
	}
	for text, want := range map[string]string{
		"": "[127.0.0.1:53]",
		"# nameserver 9.9.9.9\n;nameserver 9.9.9.9\nnameserver\nnameserver x\nsearch a b\noptions ndots:5\n":  "[127.0.0.1:53]",
		"nameserver 1.1.1.1\r\nnameserver\t2606:4700::1 # one\nnameserver ::ffff:9.9.9.9\nnameserver 8.8.8.8": "[1.1.1.1:53 [2606:4700::1]:53 9.9.9.9:53]",
		"nameserver fe80::1%lo": "[[fe80::1" + lo + "]:53]",
	} {
		if got := fmt.Sprint(parseResolvConf([]byte(text))); got != want {
			t.Errorf("%q: %s, want %s", text, got, want)
		}
	}
}

func TestHosts(t *testing.T) {
	got := parseHosts([]byte("127.0.0.1\tlocalhost # 1.1.1.1 x\n::1 localhost ip6-localhost\n\n#9.9.9.9 no\nnonsense a\n" +
		"10.0.0.1 Box.LAN. box bad/name 10.0.0.2\nfe80::1%eth0 zoned\n::ffff:10.0.0.3 mapped"))
	a := netip.MustParseAddr
	want := map[string][]netip.Addr{"localhost": {a("127.0.0.1"), a("::1")}, "ip6-localhost": {a("::1")}, "box.lan": {a("10.0.0.1")},
		"box": {a("10.0.0.1")}, "mapped": {a("10.0.0.3")}}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
}

func TestReadSystem(t *testing.T) {
	for name, c := range map[string]struct {
		env  map[string]string
		want *Proxy
	}{
		"none":            {nil, nil},
		"HTTP_PROXY":      {map[string]string{"HTTP_PROXY": "http://a:1"}, nil},
		"HTTPS_PROXY":     {map[string]string{"HTTPS_PROXY": "http://a:1", "https_proxy": "b:1", "ALL_PROXY": "c:1"}, &Proxy{Scheme: HTTP, Address: "a:1"}},
		"lower case":      {map[string]string{"https_proxy": "b", "no_proxy": "x,y"}, &Proxy{Scheme: HTTP, Address: "b:80", NoProxy: "x,y"}},
		"ALL_PROXY":       {map[string]string{"ALL_PROXY": "socks5h://u:p%40@[::1]", "NO_PROXY": "*"}, &Proxy{Scheme: SOCKS5, Address: "[::1]:1080", Login: NewLogin("u", "p@"), NoProxy: "*"}},
		"https, and user": {map[string]string{"HTTPS_PROXY": "https://u@a/"}, &Proxy{Scheme: HTTPS, Address: "a:443", Login: NewLogin("u", "")}},
	} {
		got, err := ReadSystem(func(name string) string { return c.env[name] })
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if diff := cmp.Diff(c.want, got.Proxy, cmp.AllowUnexported(Login{})); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	for _, value := range []string{"ftp://u:hunter2@a:1", "http://u:hunter2@a:99999", "http://u:hunter2@", "http://u:hunter2@a:b", "http://u:hunter2@1.1:1",
		"http://u:hunter2@\x7f", "http://u:hunter2%zz@a"} {
		_, err := ReadSystem(func(string) string { return value })
		if err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%q: %v", value, err)
		}
	}
}

func TestNewRefuses(t *testing.T) {
	for name, c := range map[string]Config{
		"CA":             {CA: "nonsense"},
		"scheme":         {Proxy: &Proxy{Scheme: "ftp", Address: "a:1"}},
		"address":        {Proxy: &Proxy{Scheme: HTTP, Address: "a"}},
		"odd address":    {Proxy: &Proxy{Scheme: HTTP, Address: "127.1:1"}},
		"zone":           {Proxy: &Proxy{Scheme: HTTP, Address: "[fe80::1%1]:1"}},
		"SOCKS password": {Proxy: &Proxy{Scheme: SOCKS5, Address: "a:1", Login: NewLogin("u", strings.Repeat("p", 256))}},
	} {
		if _, err := New(c); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
}

func FuzzResolvConf(f *testing.F) {
	f.Add([]byte("nameserver 1.1.1.1\nnameserver fe80::1%lo #x\noptions use-vc"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if servers := parseResolvConf(data); len(servers) == 0 || len(servers) > maxNameservers {
			t.Errorf("%v", servers)
		}
	})
}

func FuzzHosts(f *testing.F) {
	f.Add([]byte("127.0.0.1 localhost x.Y. # c\n::1 a\nfe80::1%eth0 b"))
	f.Fuzz(func(t *testing.T, data []byte) {
		for name, addrs := range parseHosts(data) {
			if clean, err := policy.CleanHost(name); err != nil || clean != name || len(addrs) == 0 || len(addrs) > maxAddresses {
				t.Errorf("%q: %v", name, addrs)
			}
			for _, a := range addrs {
				if !a.IsValid() || a.Zone() != "" {
					t.Errorf("%q: %v", name, a)
				}
			}
		}
	})
}
