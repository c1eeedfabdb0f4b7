package egress

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"creel/internal/confine"
	"creel/internal/policy"
)

// confinedArg is the mode in which the test binary locks itself in, as a
// keeper does, and then dials.
const confinedArg = "confined"

func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == confinedArg {
		if err := confined(os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

type confinedOrder struct {
	Nameserver, To, Proxy string
	Own                   netip.Addr
}

func confined(order string) error {
	var o confinedOrder
	if err := json.Unmarshal([]byte(order), &o); err != nil {
		return err
	}
	config, err := ReadSystem(os.Getenv)
	if err != nil {
		return err
	}
	to := netip.MustParseAddrPort(o.To)
	config.Nameservers = []netip.AddrPort{netip.MustParseAddrPort(o.Nameserver)}
	config.Hosts = map[string][]netip.Addr{"own.test": {o.Own}}
	config.Proxy = &Proxy{Scheme: HTTPS, Address: o.Proxy, NoProxy: ".test"}
	d, err := New(config)
	if err != nil {
		return err
	}
	if _, err := confine.Self(confine.Options{Internet: true}); err != nil {
		return err
	}
	if _, err := net.InterfaceAddrs(); err == nil {
		return fmt.Errorf("not locked in: interfaces can be listed")
	}
	if _, err := os.ReadFile("/etc/resolv.conf"); err == nil && !strings.Contains(confine.Landlock(), "unavailable") {
		return fmt.Errorf("not locked in: files can be read")
	}
	p := rules(rule("pub.test", private), rule("1.1.1.1/32"), rule("own.test"))
	for _, t := range []Target{{Host: "pub.test", Port: to.Port()}, {Addr: netip.MustParseAddr("1.1.1.1"), Port: 443}, {Host: "own.test", Port: 1}} {
		conn, err := d.Dial(context.Background(), p, t, &journal{})
		said := []byte("nothing")
		if err == nil {
			said, err = io.ReadAll(conn)
		}
		fmt.Printf("%s %s\n", said, Class(err))
	}
	return nil
}

func TestConfined(t *testing.T) {
	j := &journal{}
	serve, ca := overTLS(connectProxy(j, established))
	o := confinedOrder{To: greeter(t, j, "127.0.0.1:0").String(), Proxy: server(t, "127.0.0.1:0", serve).String(),
		Nameserver: nameserver(t, always(j, "127.0.0.1")).String(), Own: ownAddress(t)}
	order, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	roots := filepath.Join(t.TempDir(), "roots.pem")
	if err := os.WriteFile(roots, []byte(ca), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self, confinedArg, string(order))
	cmd.Env = append(os.Environ(), "SSL_CERT_FILE="+roots, "SSL_CERT_DIR="+filepath.Dir(roots))
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if diff := cmp.Diff("hello \nhello \nnothing denied\n", string(out)); diff != "" {
		t.Error(diff)
	}
}

// ownAddress is one of this machine's addresses that is not loopback.
func ownAddress(t *testing.T) netip.Addr {
	t.Helper()
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		addr := netip.MustParsePrefix(a.String()).Addr()
		if c := policy.AddressClass(addr); c == policy.Private || c == policy.Public {
			return addr
		}
	}
	t.Skip("this machine has only loopback addresses")
	return netip.Addr{}
}
