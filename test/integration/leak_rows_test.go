package integration

import "strings"

// way is one way out of a sandbox, tried in it by a command: a case of probe,
// which says whether anything was reached, or another one, which says so by its
// exit code.
type way struct {
	kind, name string
	command    string // with the variables of leakProgram
	passes     bool   // it is the positive control of its kind, or has no way of its own
	says       string // pattern that the command's words must have, where that matters
	local      bool   // the guest's own kernel lets nothing leave
}

// stopped and passing make rows of NAME | COMMAND | PATTERN, the last of which
// can be left out.
func stopped(kind string, lines ...string) []way { return ways(kind, false, lines) }
func passing(kind string, lines ...string) []way { return ways(kind, true, lines) }

func ways(kind string, passes bool, lines []string) (all []way) {
	for _, line := range lines {
		cells := strings.SplitN(line, " | ", 3)
		w := way{kind: kind, name: cells[0], command: cells[1], passes: passes}
		if len(cells) > 2 {
			w.says = cells[2]
		}
		w.local = strings.HasPrefix(w.name, "(guest) ")
		all = append(all, w)
	}
	return all
}

func join(lists ...[]way) (all []way) {
	for _, l := range lists {
		all = append(all, l...)
	}
	return all
}

// nameWays are about the resolver, and ways past it.
func nameWays() []way {
	return join(
		passing("names",
			`allowed name | probe dns-name tls.example.com | 198\.18\.`,
			`the same, by TCP | probe dns-direct 192.168.127.1 tls.example.com | tcp: RCodeSuccess \[198\.18\.`,
			`rebinding: asked again, the name has the same address (what a name resolves to outside: tests of egress) | probe dns-name tls.example.com | 198\.18\.0\.`,
		),
		stopped("names",
			`name that no rule has | probe dns-name denied.example.net`,
			`name below an allowed one | probe dns-name x.tls.example.com`,
			`host name of this machine | probe dns-name $HOST_NAME`,
			`every type and class of an allowed name | probe -wait 1s dns-type tls.example.com | with 1 addresses`,
			`what is no query | probe -wait 1s dns-garbage | then a good query: ok`,
			`decimal number as a name | probe dns-name 2130706433`,
			`hexadecimal number as a name | probe dns-name 0x7f.1`,
			`octal number as a name | probe dns-name 0177.0.0.1`,
			`short number as a name | probe dns-name 127.1`,
			`localhost as a name | probe dns-name localhost`,
			`metadata server's name | probe dns-name metadata.google.internal`,
			`DNS to another server | probe dns-direct 8.8.8.8 tls.example.com`,
			`DNS to this machine's server | probe dns-direct $OWN tls.example.com`,
			`DNS to the metadata server | probe dns-direct 169.254.169.254 tls.example.com`,
			`DNS over TLS | probe dot 1.1.1.1 tls.example.com`,
			`DNS over TLS at the gateway | probe dot 192.168.127.1 tls.example.com`,
			`DNS over HTTPS | probe doh 1.1.1.1 tls.example.com`,
			`DNS over HTTPS, by an allowed name | probe doh 1.1.1.1 tls.example.com tls.example.com`,
			`DNS over QUIC | probe quic 1.1.1.1 853`,
		))
}

// packetWays are about what is not a connection by name.
func packetWays() []way {
	return join(
		passing("packets",
			`address that a rule has | probe connect 10.9.8.7:7000 send | tcp greets`,
			`echo of the gateway | probe icmp 192.168.127.1`,
			`datagram to an allowed name | probe udp $UDP 5353`,
			`QUIC to an allowed name | probe quic $UDP 443`,
			`SYN from a raw socket, allowed | probe raw-socket-tcp $DB 5432`,
		),
		stopped("packets",
			`another port of that address | probe connect 10.9.8.7:7001 send`,
			`another address | probe connect 10.9.8.8:7000 send`,
			`public address | probe connect 8.8.8.8:443 send`,
			`metadata server | probe connect 169.254.169.254:80 send`,
			`this machine's own address | probe connect $OWN:$DECOY send`,
			`address that no name has | probe connect 198.18.200.200:443 send`,
			`another port of a name's address | probe connect $DB:5433 send`,
			`IP protocol 47 | probe -wait 500ms raw-ip 8.8.8.8 47`,
			`IP protocol 4 | probe -wait 500ms raw-ip 8.8.8.8 4`,
			`IP protocol 41 | probe -wait 500ms raw-ip $DB 41`,
			`IP protocol 50 | probe -wait 500ms raw-ip 192.168.127.1 50`,
			`IP protocol 255 | probe -wait 500ms raw-ip $OWN 255`,
			`echo of a public address | probe -wait 500ms icmp 8.8.8.8`,
			`echo of an allowed name | probe -wait 500ms icmp $TLS`,
			`echo of this machine | probe -wait 500ms icmp $OWN`,
			`SCTP to an allowed name | probe -wait 500ms sctp $DB 5432`,
			`SCTP to the gateway | probe -wait 500ms sctp 192.168.127.1 53`,
			`SYN from a raw socket | probe -wait 500ms raw-socket-tcp 8.8.8.8 443`,
			`datagram to a public address | probe -wait 500ms udp 8.8.8.8 4000`,
			`datagram to this machine | probe -wait 500ms udp $OWN $DECOY`,
			`datagram to another port of an allowed name | probe -wait 500ms udp $UDP 5354`,
			`datagram to what is allowed by TCP | probe -wait 500ms udp $DB 5432`,
			`QUIC to what is allowed by TLS | probe -wait 500ms quic $TLS 443`,
			`QUIC to a public address | probe -wait 500ms quic 8.8.8.8 443`,
			`fragments of an echo | probe -wait 500ms fragments echo 192.168.127.1 0`,
			`fragments of a query | probe -wait 500ms fragments dns 192.168.127.1 53`,
			`fragments of a SYN | probe -wait 500ms fragments syn $DB 5432`,
			`fragments that overlap | probe -wait 500ms fragments overlap $DB 5432`,
			`source of a neighbour | probe -wait 500ms spoof-source 192.168.127.3 $DB 5432`,
			`source of the gateway | probe -wait 500ms spoof-source 192.168.127.1 $DB 5432`,
			`source of this machine | probe -wait 500ms spoof-source 127.0.0.1 $DB 5432`,
		))
}

// linkWays are about who else is on the link, and IPv6.
func linkWays() []way {
	return stopped("link",
		`neighbours, by ARP | probe -wait 1s arp-scan | 192\.168\.127\.1 is `,
		`DHCP | probe -wait 500ms dhcp`,
		`IPv6 neighbours | probe -wait 500ms ipv6-nd`,
		`IPv6 routers | probe -wait 500ms ipv6-ra`,
		`IPv6, public | probe -wait 500ms ipv6-tcp 2001:4860:4860::8888 443`,
		`IPv6, mapped, public | probe -wait 500ms ipv6-tcp ::ffff:8.8.8.8 443`,
		`IPv6, mapped, this machine | probe -wait 500ms ipv6-tcp ::ffff:$OWN $DECOY`,
		`(guest) IPv6, mapped, loopback | probe -wait 500ms ipv6-tcp ::ffff:127.0.0.1 $DECOY`,
		`IPv6, NAT64 | probe -wait 500ms ipv6-tcp 64:ff9b::808:808 443`,
		`IPv6, 6to4 | probe -wait 500ms ipv6-tcp 2002:7f00:1:: $DECOY`,
		`(guest) IPv6, loopback | probe -wait 500ms ipv6-tcp ::1 $DECOY`,
	)
}

// hostWays are about this machine and the gateway.
func hostWays() []way {
	return join(
		passing("host",
			`port of this machine that a rule has | probe connect host.creel.internal:$TCP_PORT send | tcp greets`,
			`(guest) its own loopback, as six kinds of number | python3 numbers.py 8099 2130706433 0x7f.1 0177.0.0.1 127.1 0.0.0.0 ::ffff:127.0.0.1 | 6 reached`,
		),
		stopped("host",
			`another port of this machine | probe connect host.creel.internal:$DECOY send`,
			`datagram to this machine by name | probe udp $ALIAS $DECOY`,
			`port 80 of this machine | probe connect host.creel.internal:80 send`,
			`the gateway's address | probe connect 192.168.127.1:$DECOY send`,
			`the gateway's address, a port that a rule has | probe connect 192.168.127.1:$TCP_PORT send`,
			`datagram to the gateway | probe -wait 500ms udp 192.168.127.1 $DECOY`,
			`services of the gateway, decoy | probe gateway-ports $DECOY $DECOY`,
			`(guest) broadcast address | probe connect 192.168.127.255:$DECOY send`,
			`QEMU's own gateway | probe connect 10.0.2.2:$DECOY send`,
			`Docker's bridge | probe connect 172.17.0.1:$DECOY send`,
			`(guest) loopback as a number, decoy | python3 numbers.py $DECOY 2130706433 0x7f.1 0177.0.0.1 127.1 0.0.0.0 ::ffff:127.0.0.1 | 0 reached`,
			`this machine as a number, decoy | python3 numbers.py $DECOY $OWN_NUMBER ::ffff:$OWN | 0 reached`,
			`metadata as a number | python3 numbers.py 80 2852039166 0xa9fea9fe 0251.0376.0251.0376 ::ffff:169.254.169.254 | 0 reached`,
		))
}

// tlsWays are about what a TLS connection says that it is.
func tlsWays() []way {
	return join(
		passing("TLS",
			`hello with the name | probe tls-sni tls.example.com:443 tls.example.com | ServerHello`,
			`hello in fragments | probe tls-sni tls.example.com:443 tls.example.com fragmented`,
			`hello byte by byte | probe tls-sni tls.example.com:443 tls.example.com slow`,
			`encrypted hello where the rule lets it | probe tls-sni ech.example.com:443 ech.example.com ech=hidden.example.net`,
			`request to the server | probe https-raw tls.example.com:443 plain tls.example.com`,
			`request that is read | curl -sS -m 20 https://api.example.com/allowed/plain | tls was here`,
			`domain fronting, not read: still the server of the name | probe https-raw tls.example.com:443 other-host tls.example.com front.example.net`,
		),
		stopped("TLS",
			`hello with a denied name | probe tls-sni tls.example.com:443 denied.example.net | access denied`,
			`hello with another allowed name | probe tls-sni tls.example.com:443 api.example.com | access denied`,
			`hello with another name, in fragments | probe tls-sni tls.example.com:443 denied.example.net fragmented | access denied`,
			`hello without a name | probe tls-sni tls.example.com:443 - | access denied`,
			`encrypted hello | probe tls-sni tls.example.com:443 tls.example.com ech=hidden.example.net | access denied`,
			`encrypted hello where requests are read | probe tls-sni api.example.com:443 api.example.com ech=hidden.example.net | access denied`,
			`HTTP where TLS is expected | probe http-raw tls.example.com:443 plain tls.example.com`,
			`SSH where TLS is expected | probe tls-garbage tls.example.com:443 5353482d322e302d4f70656e5353485f392e320d0a`,
			`a record that has no end | probe tls-garbage tls.example.com:443 160301ffff01`,
			`domain fronting, Host read | probe https-raw api.example.com:443 other-host api.example.com front.example.net`,
			`domain fronting, :authority read | curl -sS -m 20 -f --http2 -H 'Host: front.example.net' https://api.example.com/allowed/`,
			`Host of another allowed name, read | probe https-raw api.example.com:443 other-host api.example.com tls.example.com`,
			`absolute form, read | probe https-raw api.example.com:443 absolute api.example.com front.example.net`,
			`CONNECT, read | probe https-raw api.example.com:443 connect api.example.com front.example.net`,
			`method that no rule has | probe https-raw api.example.com:443 post api.example.com`,
			`path that no rule has | probe https-raw api.example.com:443 path-denied api.example.com`,
			`path with dots | probe https-raw api.example.com:443 path-dots api.example.com`,
			`path with coded dots | probe https-raw api.example.com:443 path-coded api.example.com`,
		))
}

// httpWays are about one request that is several, or for somebody else.
func httpWays() []way {
	all := join(
		passing("HTTP",
			`request | probe http-raw http.example.com:80 plain http.example.com`,
			`redirect to itself | curl -sS -m 20 -L 'http://http.example.com/?to=http://http.example.com/second' | http was here`,
			`path that a rule has | probe http-raw paths.example.com:80 path-allowed paths.example.com`,
		),
		stopped("HTTP",
			`redirect to metadata | curl -sS -m 20 -L 'http://http.example.com/?to=http://169.254.169.254/latest/meta-data/' | 169.254.169.254`,
			`redirect to a denied name | curl -sS -m 20 -L 'http://http.example.com/?to=http://denied.example.net/'`,
			`redirect to this machine | curl -sS -m 20 -L "http://http.example.com/?to=http://$OWN:$DECOY/"`,
			`as a proxy | curl -sS -m 5 -f -x http://http.example.com:80 http://denied.example.net/`,
			`as a proxy, CONNECT | curl -sS -m 5 -k -x http://http.example.com:80 https://denied.example.net/`,
			`as a proxy, CONNECT to metadata | curl -sS -m 5 -p -x http://http.example.com:80 http://169.254.169.254/`,
		))
	for _, shape := range strings.Fields(`other-host absolute absolute-own absolute-both absolute-https absolute-userinfo connect connect-own
		host-twice host-list host-none host-empty host-userinfo host-port host-nul host-space host-folded http10-other http09
		http2-preface method-odd request-line-space not-http cl-te cl-cl te-te te-odd te-space te-http10 chunk-overflow
		chunk-hex bare-cr header-cr header-space`) {
		all = append(all, stopped("HTTP", shape+" | probe -wait 3s http-raw http.example.com:80 "+shape+" http.example.com other.example.net")...)
	}
	for _, shape := range strings.Fields(`path-dots path-coded path-slash path-backslash path-double path-twice path-semicolon`) {
		all = append(all, stopped("HTTP", shape+" | probe -wait 3s http-raw paths.example.com:80 "+shape+" paths.example.com")...)
	}
	return all
}

// cardWays change the card itself: one after the other, and each undoes what it did.
func cardWays() []way {
	return join(
		stopped("card",
			`tunnel below a denied name | probe dns-tunnel evil.example.net`,
			`tunnel below an allowed name | probe dns-tunnel tls.example.com`,
			`tunnel below a wildcard | probe dns-tunnel many.example.com`,
			`services of the gateway | probe gateway-ports 1 1100 | accepted \[53\]`,
			`services of the gateway, proxies | probe gateway-ports 3100 3200`,
			`card that is the gateway's | probe -wait 500ms spoof-mac 5a:94:ef:e4:0c:01`,
			`card that is a group's | probe -wait 500ms spoof-mac 33:33:00:00:00:01`,
			`address of a neighbour, echo | ip addr add 192.168.127.3/24 dev eth0; ping -c 1 -W 1 -I 192.168.127.3 192.168.127.1`,
			`address of a neighbour, request | curl -sS -m 2 --interface 192.168.127.3 --resolve http.example.com:80:$HTTP http://http.example.com/`,
			`address of the public, request | ip addr del 192.168.127.3/24 dev eth0; ip addr add 8.8.4.4/32 dev eth0; curl -sS -m 2 --interface 8.8.4.4 --resolve http.example.com:80:$HTTP http://http.example.com/`,
			`route of its own | ip addr del 8.8.4.4/32 dev eth0; ip route add 8.8.8.8/32 dev eth0; ip neigh replace 8.8.8.8 lladdr 5a:94:ef:e4:0c:01 dev eth0; probe connect 8.8.8.8:443 send`,
			`IPv6 switched on | ip route del 8.8.8.8/32; sysctl -qw net.ipv6.conf.eth0.disable_ipv6=0; ip -6 addr add fec0::9/64 dev eth0; ip -6 route add default via fe80::5894:efff:fee4:c01 dev eth0; curl -sS -m 2 'http://[2001:4860:4860::8888]/'`,
		),
		passing("card",
			`another card's address, allowed | ip link set eth0 down; ip link set eth0 address 02:00:00:00:00:77; ip link set eth0 up; ip route add default via 192.168.127.1; probe connect db.example.com:5432 send | tcp greets`,
		),
		stopped("card",
			`another card's address, denied | probe connect 8.8.8.8:443 send`,
			`another card's address, the gateway's | ip link set eth0 down; ip link set eth0 address 5a:94:ef:e4:0c:01; ip link set eth0 up; ip route add default via 192.168.127.1; probe -wait 1s connect $DB:5432 send`,
		),
		passing("card",
			`its own again | ip link set eth0 down; ip link set eth0 address 52:54:00:12:34:56; ip link set eth0 up; ip route add default via 192.168.127.1; probe connect db.example.com:5432 send | tcp greets`,
		))
}

// floodWays are each much of one thing, one after the other.
func floodWays() []way {
	return join(
		passing("flood",
			`5,000 connections, allowed: some are refused | probe -wait 10s flood-conns $DB:5432 5000 | connection refused`,
			`20,000 names below a wildcard: the addresses are spent | probe flood-names 20000 many.example.com | RCodeRefused|RCodeNameError|RCodeServerFailure`,
			`20,000 SYNs, allowed | probe -wait 1s flood-syn $DB 5432 20000`,
		),
		stopped("flood",
			`5,000 connections, denied | probe -wait 10s flood-conns 8.8.8.8:443 5000`,
			`20,000 names, denied | probe flood-names 20000 evil.example.net`,
			`20,000 SYNs, denied | probe -wait 1s flood-syn 8.8.8.8 443 20000`,
			`65,536 packets without an end | probe -wait 1s fragments endless 192.168.127.1 53 | the gateway's echo: ICMP type 0`,
			`files' and control's port | probe -wait 1s vports | busy`,
		),
		passing("flood",
			`afterwards: name and connection | probe connect db.example.com:5432 send | tcp greets`,
			`afterwards: request | curl -sS -m 20 https://api.example.com/allowed/after | tls was here`,
			`afterwards: datagram | probe udp $UDP 5353`,
		))
}
