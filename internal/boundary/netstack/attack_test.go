package netstack

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"creel/internal/boundary/netstack/netstacktest"
)

// frames are what a guest may send, and why it goes nowhere.
func frames() map[string]struct {
	frame []byte
	why   Reason
} {
	other := netip.MustParseAddr("192.168.127.3")
	broadcast := netip.MustParseAddr("255.255.255.255")
	ping := pingFrame(gatewayAddr, 1)
	datagram := udpFrameTo(1000, web, 1, 2)
	syn := tcpFrameTo(1000, web, 2, 1, 0)
	question := arpFrame(guestAddr, gatewayAddr)
	const ip, transport = ethernetSize, ethernetSize + ipSize
	return map[string]struct {
		frame []byte
		why   Reason
	}{
		"ping":                      {ping, passed},
		"ping, padded":              {append(ping[:len(ping):len(ping)], make([]byte, minFrame-len(ping))...), passed},
		"ping, from another card":   {changed(ping, 6, 2, 0, 0, 0, 0, 9), passed},
		"datagram":                  {datagram, passed},
		"syn":                       {syn, passed},
		"arp request":               {question, passed},
		"empty":                     {nil, Malformed},
		"header cut short":          {ping[:13], Malformed},
		"nothing behind it":         {ping[:14], Malformed},
		"longer than the mtu":       {append(ping[:len(ping):len(ping)], make([]byte, defaultMTU)...), Malformed},
		"from a multicast card":     {changed(ping, 6, 1), Link},
		"from no card":              {changed(ping, 6, make([]byte, 6)...), Link},
		"from the gateway's card":   {changed(ping, 6, gatewayMAC[:]...), Link},
		"to another card":           {changed(ping, 0, 2, 0, 0, 0, 0, 9), Link},
		"to all cards":              {changed(ping, 0, broadcastMAC[:]...), Link},
		"ipv6 router advertising":   {ethernetFrame(etherIPv6, 0x60, 0, 0, 0, 0, 16, 58, 255), IPv6},
		"vlan":                      {ethernetFrame(0x8100, make([]byte, 50)...), EtherType},
		"length, not a type":        {ethernetFrame(46, make([]byte, 46)...), EtherType},
		"arp for another":           {arpFrame(guestAddr, other), ARP},
		"arp for itself":            {arpFrame(guestAddr, guestAddr), ARP},
		"arp from the gateway":      {arpFrame(gatewayAddr, gatewayAddr), Source},
		"arp from another card":     {changed(question, ip+8, 2, 0, 0, 0, 0, 9), Source},
		"arp reply":                 {changed(question, ip+7, 2), ARP},
		"arp for a long address":    {changed(question, ip+5, 16), ARP},
		"arp cut short":             {question[:len(question)-1], Malformed},
		"arp to another card":       {changed(question, 0, 2, 0, 0, 0, 0, 9), Link},
		"spoofed source":            {ipFrame(other, gatewayAddr, protocolICMP, 8, 0, 0xf7, 0xff, 0, 0, 0, 0), Source},
		"source is the gateway":     {ipFrame(gatewayAddr, gatewayAddr, protocolICMP, 8, 0, 0xf7, 0xff, 0, 0, 0, 0), Source},
		"dhcp":                      {ipFrame(netip.IPv4Unspecified(), broadcast, protocolUDP, 0, 68, 0, 67, 0, 8, 0, 0), Source},
		"to everybody":              {udpFrameTo(1000, netip.AddrPortFrom(broadcast, 67)), Destination},
		"to a group":                {udpFrameTo(1000, netip.MustParseAddrPort("224.0.0.251:5353")), Destination},
		"to loopback":               {tcpFrameTo(1000, netip.MustParseAddrPort("127.0.0.1:80"), 2, 1, 0), Destination},
		"to this network":           {tcpFrameTo(1000, netip.MustParseAddrPort("0.0.0.0:80"), 2, 1, 0), Destination},
		"to itself":                 {tcpFrameTo(1000, netip.AddrPortFrom(guestAddr, 80), 2, 1, 0), Destination},
		"first fragment":            {changed(syn, ip+6, 0x20), Fragment},
		"later fragment":            {changed(syn, ip+6, 0, 1), Fragment},
		"version 6 in ipv4":         {changed(ping, ip, 0x65), Malformed},
		"header too short":          {changed(ping, ip, 0x44), Malformed},
		"source route":              {changed(ping, ip, 0x46), IPOptions},
		"total too short":           {changed(ping, ip+2, 0, 19), Malformed},
		"total too long":            {changed(ping, ip+2, 0, 99), Malformed},
		"much behind it":            {append(ping[:len(ping):len(ping)], make([]byte, minFrame)...), Malformed},
		"ping of another":           {pingFrame(elsewhere, 1), ICMP},
		"ping reply":                {changed(ping, transport, icmpEchoReply), ICMP},
		"redirect":                  {changed(ping, transport, 5), ICMP},
		"icmp cut short":            {ipFrame(guestAddr, gatewayAddr, protocolICMP, 8, 0), Malformed},
		"igmp":                      {ipFrame(guestAddr, elsewhere, 2, make([]byte, 8)...), Protocol},
		"sctp":                      {ipFrame(guestAddr, elsewhere, 132, make([]byte, 20)...), Protocol},
		"ip in ip":                  {ipFrame(guestAddr, elsewhere, 4, make([]byte, 20)...), Protocol},
		"raw":                       {ipFrame(guestAddr, elsewhere, 255), Protocol},
		"tcp cut short":             {ipFrame(guestAddr, elsewhere, protocolTCP, make([]byte, 19)...), Malformed},
		"tcp offset too short":      {changed(syn, transport+12, 4<<4), Malformed},
		"tcp offset too long":       {changed(syn, transport+12, 6<<4), Malformed},
		"tcp to port 0":             {tcpFrameTo(1000, netip.AddrPortFrom(elsewhere, 0), 2, 1, 0), Malformed},
		"udp from port 0":           {udpFrameTo(0, web), Malformed},
		"udp cut short":             {ipFrame(guestAddr, elsewhere, protocolUDP, make([]byte, 7)...), Malformed},
		"udp length does not agree": {changed(datagram, transport+4, 0, 9), Malformed},
	}
}

func testFilter() *filter {
	return &filter{guest: guestAddr.As4(), gateway: gatewayAddr.As4(), mtu: defaultMTU}
}

func TestFilter(t *testing.T) {
	f := testFilter()
	for name, test := range frames() {
		if _, _, why := f.check(test.frame); why != test.why {
			t.Errorf("%s: %v, want %v", name, why, test.why)
		}
		if n := testing.AllocsPerRun(10, func() { f.check(test.frame) }); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

func TestWhatIsDroppedIsCountedAndNotAnswered(t *testing.T) {
	attempt := func(_ context.Context, a *Attempt) {
		t.Errorf("attempt: %v", a.Destination())
	}
	s, conn := start(t, Options{TCP: attempt, UDP: attempt, MayUDP: allowUDP})
	c := newCard(t, conn)
	var want Dropped
	for name, test := range frames() {
		if test.why == passed || len(test.frame) > defaultMTU+ethernetSize+lengthSize {
			continue
		}
		t.Log(name)
		c.send(test.frame)
		c.ping()
		want[test.why]++
	}
	if d := cmp.Diff(want, s.Dropped()); d != "" {
		t.Error(d)
	}
}

func TestOnlyTheGatewayAnswersARP(t *testing.T) {
	_, conn := start(t, Options{})
	c := newCard(t, conn)
	c.send(arpFrame(guestAddr, elsewhere))
	c.send(arpFrame(guestAddr, gatewayAddr))
	want := append([]byte{0, 1, 8, 0, 6, 4, 0, 2}, gatewayMAC[:]...)
	want = append(append(append(want, gatewayAddr.AsSlice()...), cardMAC[:]...), guestAddr.AsSlice()...)
	frame := c.receive()
	if d := cmp.Diff(want, frame[ethernetSize:]); d != "" || mac(frame[:6]) != cardMAC {
		t.Errorf("to % x: %s", frame[:6], d)
	}
}

func TestAnotherMACIsAnswered(t *testing.T) {
	_, conn := start(t, Options{})
	c := newCard(t, conn)
	for _, m := range []mac{{2, 0, 0, 0, 0, 9}, cardMAC} {
		// Nobody may send UDP, so both answers come from different code.
		for _, frame := range [][]byte{pingFrame(gatewayAddr, 1), udpFrameTo(1000, web), tcpFrameTo(1000, web, 2, 1, 0)} {
			c.send(changed(frame, 6, m[:]...))
			if got := c.receive(); mac(got[:6]) != m {
				t.Errorf("sent from % x, answered to % x", m, got[:6])
			}
		}
	}
}

func TestDeniedDatagramIsUnreachable(t *testing.T) {
	_, conn := start(t, Options{})
	c := newCard(t, conn)
	sent := udpFrameTo(1000, web, 1, 2, 3)
	c.send(sent)
	p := c.receive()[ethernetSize:]
	from, body := netip.AddrFrom4([4]byte(p[12:16])), p[ipSize:]
	if p[9] != protocolICMP || from != elsewhere || body[0] != icmpUnreachable || body[1] != icmpCodePort {
		t.Errorf("% x", p)
	}
	if d := cmp.Diff(sent[ethernetSize:][:ipSize+udpSize], body[icmpSize:]); d != "" {
		t.Error(d)
	}
}

func TestBrokenStreamEndsTheStack(t *testing.T) {
	s, conn := start(t, Options{})
	for _, length := range []uint32{0, 13, defaultMTU + ethernetSize + 1, defaultMTU + ethernetSize + lengthSize} {
		conn.Write(append(binary.BigEndian.AppendUint32(nil, length), make([]byte, length)...))
	}
	newCard(t, conn).ping() // none of these was the end
	if n := s.Dropped()[Malformed]; n != 4 {
		t.Errorf("%d were counted", n)
	}
	conn.Write(binary.BigEndian.AppendUint32(nil, defaultMTU+ethernetSize+lengthSize+1))
	<-s.Done()
	if err := s.Err(); err == nil || !strings.Contains(err.Error(), "broken") {
		t.Error(err)
	}
	if _, err := s.Dial(t.Context(), "tcp", 80); !errors.Is(err, net.ErrClosed) {
		t.Errorf("dial: %v", err)
	}
}

func TestMachineEndsTheStack(t *testing.T) {
	ended := make(chan struct{})
	s, conn := start(t, Options{TCP: func(ctx context.Context, a *Attempt) {
		<-ctx.Done()
		close(ended)
	}})
	c := newCard(t, conn)
	c.send(tcpFrameTo(1000, web, 2, 1, 0))
	c.ping()
	conn.Close()
	<-s.Done()
	<-ended
	if err := s.Err(); !errors.Is(err, io.EOF) {
		t.Error(err)
	}
}

// heap is what is in use, in bytes.
func heap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC() // pools keep what they have for one
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc) + int64(m.StackInuse)
}

// within wants memory to have grown by no more than limit. What a flood leaves
// on its way through the stack goes in a moment.
func within(t *testing.T, before int64, limit int64) {
	t.Helper()
	grown := heap() - before
	for deadline := time.Now().Add(5 * time.Second); grown > limit && time.Now().Before(deadline); {
		time.Sleep(50 * time.Millisecond)
		grown = heap() - before
	}
	if grown > limit {
		t.Errorf("memory grew by %d KiB, more than %d", grown>>10, limit>>10)
	} else {
		t.Logf("memory grew by %d KiB", grown>>10)
	}
}

// drain reads what the stack sends, so that its queue never fills.
func drain(conn net.Conn) (join func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		io.Copy(io.Discard, conn)
	}()
	return func() { conn.Close(); <-done }
}

// flood sends frames as fast as it can, many in one write.
func flood(t *testing.T, conn net.Conn, n int, frame func(i int) []byte) {
	t.Helper()
	var batch []byte
	for i := range n {
		f := frame(i)
		batch = append(binary.BigEndian.AppendUint32(batch, uint32(len(f))), f...)
		if len(batch) > 64<<10 || i == n-1 {
			if _, err := conn.Write(batch); err != nil {
				t.Fatal(err)
			}
			batch = batch[:0]
		}
	}
}

// awaitDropped waits until so much was dropped.
func awaitDropped(t *testing.T, s *Stack, why Reason, least uint64) {
	t.Helper()
	for end := time.Now().Add(patience); s.Dropped()[why] < least; runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatalf("dropped %d for %v, want %d", s.Dropped()[why], why, least)
		}
	}
}

func TestFloodOfSYNs(t *testing.T) {
	tests := map[string]struct {
		n   int
		tcp func(context.Context, *Attempt)
	}{
		"never answered":    {100_000, func(ctx context.Context, a *Attempt) { <-ctx.Done() }},
		"never established": {10_000, func(_ context.Context, a *Attempt) { a.Accept() }},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			n := test.n
			s, conn := start(t, Options{TCP: test.tcp, MaxPending: 100})
			defer drain(conn)()
			before := heap()
			flood(t, conn, n, func(i int) []byte {
				return tcpFrameTo(uint16(1+i%65535), netip.AddrPortFrom(elsewhere, uint16(1+i/65535)), 2, 1, 0)
			})
			awaitDropped(t, s, Flood, uint64(n-100))
			awaitFlows(t, s, 100)
			within(t, before, 8<<20)
		})
	}
}

func TestFloodOfSYNsToAService(t *testing.T) {
	s, conn := start(t, Options{})
	defer drain(conn)()
	l, err := s.ListenTCP(53)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	before := heap()
	held := int64(0)
	flood(t, conn, 70_000, func(i int) []byte {
		held = max(held, s.held.Load())
		return tcpFrameTo(uint16(1+i%65535), netip.AddrPortFrom(gatewayAddr, 53), 2, 1, 0)
	})
	flood(t, conn, 1, func(int) []byte { return changed(pingFrame(gatewayAddr, 1), 0, 2) })
	awaitDropped(t, s, Link, 1) // all before it were looked at
	if held > maxHeld+100 {     // a few pass when the others take their time
		t.Errorf("%d segments without payload were waiting", held)
	}
	within(t, before, 6<<20)
}

func TestFloodOfUDPFlows(t *testing.T) {
	const n, flows = 10_000, 500
	s, conn := start(t, Options{MaxFlows: flows, MayUDP: allowUDP, UDP: func(_ context.Context, a *Attempt) { a.Accept() }})
	defer drain(conn)()
	before := heap()
	flood(t, conn, n, func(i int) []byte { return udpFrameTo(uint16(1+i), web, 1) })
	awaitDropped(t, s, Flood, n-flows)
	awaitFlows(t, s, flows)
	within(t, before, 8<<20)
}

func TestFloodOfDatagramsThatNobodyReads(t *testing.T) {
	s, conn := start(t, Options{MayUDP: allowUDP, UDP: func(_ context.Context, a *Attempt) { a.Accept() }})
	defer drain(conn)()
	before := heap()
	for _, size := range []int{0, 60_000} {
		unread := s.Dropped()[Unread]
		payload := make([]byte, size)
		flood(t, conn, 1000, func(i int) []byte { return udpFrameTo(uint16(1+size+i%10), web, payload...) })
		awaitDropped(t, s, Unread, unread+1000-10*maxLetters)
	}
	within(t, before, maxMail+(4<<20))
	if mail := s.mail.Load(); mail > maxMail {
		t.Errorf("%d bytes are unread", mail)
	}
	s.closeUDP()
	if mail := s.mail.Load(); mail != 0 {
		t.Errorf("%d bytes are unread and nobody is there", mail)
	}
}

func TestReceivedIsBoundedWhenTheHostDoesNotRead(t *testing.T) {
	stop := make(chan struct{})
	defer close(stop)
	_, card := start(t, Options{TCP: func(_ context.Context, a *Attempt) {
		if c, err := a.Accept(); err == nil {
			<-stop
			c.(*TCPConn).Reset()
		}
	}})
	g := startGuest(t, card)
	before := heap()
	var conns []net.Conn
	const flows = 32
	for range flows {
		c := g.MustDial(t, web)
		c.SetDeadline(time.Now().Add(200 * time.Millisecond))
		conns = append(conns, c)
	}
	sent, data := make(chan int), make([]byte, 16<<20)
	for _, c := range conns {
		go func() {
			n, _ := c.Write(data)
			sent <- n
		}()
	}
	total := 0
	for range conns {
		total += <-sent
	}
	// Of what was sent the guest holds its own send buffers of 4 MiB.
	if limit := flows * (4<<20 + 2*firstBuffer); total > limit {
		t.Errorf("%d bytes were sent and not read, more than %d", total, limit)
	}
	within(t, before, flows*(4<<20+2*firstBuffer)+(16<<20))
}

func TestGuestThatTakesNothingBlocksNobody(t *testing.T) {
	conns := make(chan net.Conn, 4)
	s, conn := start(t, Options{TCP: func(_ context.Context, a *Attempt) {
		if c, err := a.Accept(); err == nil {
			conns <- c
		}
	}, MayUDP: allowUDP, UDP: func(_ context.Context, a *Attempt) {
		if c, err := a.Accept(); err == nil {
			conns <- c
		}
	}})
	c := newCard(t, conn)
	c.send(tcpFrameTo(1000, web, 2, 1, 0))
	answer := c.receive()[ethernetSize+ipSize:]
	c.send(tcpFrameTo(1000, web, 0x10, 2, binary.BigEndian.Uint32(answer[4:])+1))
	stream := <-conns
	c.send(udpFrameTo(1000, web, 1))
	flow := <-conns
	before := heap()
	for range 2000 { // from here on the guest reads nothing
		if _, err := flow.Write(make([]byte, 60_000)); err != nil {
			t.Fatal(err)
		}
	}
	if n := s.Dropped()[Overrun]; n == 0 {
		t.Error("120 MB were queued")
	}
	stream.SetWriteDeadline(time.Now().Add(20 * time.Millisecond))
	if n, err := stream.Write(make([]byte, 8<<20)); err == nil {
		t.Errorf("wrote %d bytes to nobody", n)
	}
	within(t, before, maxQueueBytes+maxBuffer+(12<<20)) // with what was to be written
	// What the guest sends is still read.
	c.send(pingFrame(elsewhere, 1))
	awaitDropped(t, s, ICMP, 1)
	stream.Close()
}

func TestCloseLeavesNoGoroutine(t *testing.T) {
	before := runtime.NumGoroutine()
	for range 5 {
		closeBusy(t)
	}
	for end := time.Now().Add(patience); runtime.NumGoroutine() > before; runtime.Gosched() {
		if time.Now().After(end) {
			buf := make([]byte, 1<<20)
			t.Fatalf("%d goroutines, %d before:\n%s", runtime.NumGoroutine(), before, buf[:runtime.Stack(buf, true)])
		}
	}
}

// closeBusy closes a stack with connections, attempts, handshakes and services under
// way.
func closeBusy(t *testing.T) {
	host, conn := netstacktest.Cable(t)
	defer conn.Close()
	handlers := make(chan struct{}, 10)
	tcp := func(ctx context.Context, a *Attempt) {
		handlers <- struct{}{}
		defer func() { <-handlers }()
		if a.Destination().Port() == 1 {
			<-ctx.Done()
			return
		}
		if c, err := a.Accept(); err == nil {
			io.Copy(c, c)
			c.Close()
		}
	}
	s, err := New(host, Options{Guest: guestAddr, Gateway: gatewayAddr, TCP: tcp, UDP: tcp, MayUDP: allowUDP})
	if err != nil {
		t.Fatal(err)
	}
	joined := make(chan struct{}, 2)
	l, err := s.ListenTCP(53)
	if err != nil {
		t.Fatal(err)
	}
	p, err := s.ListenUDP(53)
	if err != nil {
		t.Fatal(err)
	}
	go func() { l.Accept(); joined <- struct{}{} }()
	go func() { p.ReadFrom(nil); joined <- struct{}{} }()
	c := newCard(t, conn)
	c.send(tcpFrameTo(1000, web, 2, 1, 0))
	answer := c.receive()[ethernetSize+ipSize:]
	c.send(tcpFrameTo(1000, web, 0x10, 2, binary.BigEndian.Uint32(answer[4:])+1))          // established
	c.send(tcpFrameTo(uint16(rand.Uint32()|1), netip.AddrPortFrom(elsewhere, 2), 2, 1, 0)) // a handshake, perhaps not begun
	c.send(tcpFrameTo(1000, netip.AddrPortFrom(elsewhere, 1), 2, 1, 0))                    // an attempt
	c.send(udpFrameTo(1000, web, 1))
	c.send(pingFrame(elsewhere, 1))
	awaitDropped(t, s, ICMP, 1)
	for range 2 {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	if n := len(handlers); n != 0 {
		t.Errorf("%d handlers run after Close", n)
	}
	<-joined
	<-joined
	if err := s.Err(); err != nil {
		t.Error(err)
	}
}
