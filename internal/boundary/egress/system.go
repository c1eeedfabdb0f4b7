package egress

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"net/url"
	"os"
	"strconv"
	"strings"

	"creel/internal/policy"
)

const maxSettings = 16 << 20 // bytes of one file

// ReadSystem reads resolv.conf, hosts and the proxy that the environment
// names: HTTPS_PROXY, else ALL_PROXY, for everything, but for NO_PROXY; lower
// case is read where upper is not set.
func ReadSystem(env func(string) string) (c Config, err error) {
	resolv, err := readSettings("/etc/resolv.conf")
	if err != nil {
		return c, err
	}
	hosts, err := readSettings("/etc/hosts")
	if err != nil {
		return c, err
	}
	c = Config{Nameservers: parseResolvConf(resolv), Hosts: parseHosts(hosts)}
	for _, name := range []string{"HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"} {
		value := strings.TrimSpace(env(name))
		if value == "" {
			continue
		}
		if c.Proxy, err = ParseProxy(value); err != nil {
			return c, fmt.Errorf("read %s: %w", name, err)
		}
		c.Proxy.NoProxy = cmp.Or(env("NO_PROXY"), env("no_proxy"))
		break
	}
	return c, nil
}

// readSettings takes a file that is not there for an empty one.
func readSettings(path string) ([]byte, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read host's settings: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxSettings+1))
	if err == nil && len(data) > maxSettings {
		err = fmt.Errorf("larger than %d bytes", maxSettings)
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return data, nil
}

// parseResolvConf reads the nameservers; without any the host asks itself, as
// resolv.conf(5) has it. Search lists and options are for other resolvers.
func parseResolvConf(data []byte) (servers []netip.AddrPort) {
	for _, fields := range settingLines(data, "#;") {
		if len(fields) < 2 || fields[0] != "nameserver" || len(servers) == maxNameservers {
			continue
		}
		if addr, err := netip.ParseAddr(fields[1]); err == nil {
			servers = append(servers, netip.AddrPortFrom(numberZone(addr.Unmap()), 53))
		}
	}
	if len(servers) == 0 {
		servers = []netip.AddrPort{netip.AddrPortFrom(loopback[0], 53)}
	}
	return servers
}

// numberZone writes an interface as its number: its name cannot be looked up
// later.
func numberZone(addr netip.Addr) netip.Addr {
	if i, err := net.InterfaceByName(addr.Zone()); err == nil && addr.Zone() != "" {
		return addr.WithZone(strconv.Itoa(i.Index))
	}
	return addr
}

// parseHosts passes over what is no name or address, as every reader of that
// file does, and over addresses with a zone.
func parseHosts(data []byte) map[string][]netip.Addr {
	hosts := map[string][]netip.Addr{}
	for _, fields := range settingLines(data, "#") {
		addr, err := netip.ParseAddr(fields[0])
		if err != nil || addr.Zone() != "" {
			continue
		}
		for _, name := range fields[1:] {
			if name, err = policy.CleanHost(name); err == nil && len(hosts[name]) < maxAddresses {
				hosts[name] = append(hosts[name], addr.Unmap())
			}
		}
	}
	return hosts
}

// settingLines are the fields of each line that has any; comment has the
// characters that begin a comment.
func settingLines(data []byte, comment string) (lines [][]string) {
	for line := range bytes.Lines(data) {
		if i := bytes.IndexAny(line, comment); i >= 0 {
			line = line[:i]
		}
		if fields := strings.Fields(string(line)); len(fields) > 0 {
			lines = append(lines, fields)
		}
	}
	return lines
}

// ParseProxy reads [SCHEME://][USER:PASSWORD@]HOST[:PORT]. The scheme is http,
// https, socks5 or socks5h; the last is read as socks5, since who resolves is
// said by [Config.ProxyResolves]. Errors do not have the text: it may hold a
// password.
func ParseProxy(text string) (*Proxy, error) {
	malformed := errors.New("not a proxy's address; write http://[USER:PASSWORD@]HOST:PORT, or https or socks5")
	if !strings.Contains(text, "://") {
		text = "http://" + text
	}
	u, err := url.Parse(text)
	if err != nil {
		return nil, malformed
	}
	p := &Proxy{Scheme: u.Scheme}
	if p.Scheme == "socks5h" {
		p.Scheme = SOCKS5
	}
	port, known := map[string]string{HTTP: "80", HTTPS: "443", SOCKS5: "1080"}[p.Scheme]
	if !known {
		return nil, malformed
	}
	p.Address = net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), port))
	if _, err := parsePlace(p.Address); err != nil {
		return nil, malformed
	}
	if u.User != nil {
		password, _ := u.User.Password()
		p.Login = NewLogin(u.User.Username(), password)
	}
	return p, nil
}
