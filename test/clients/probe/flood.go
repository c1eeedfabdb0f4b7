package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"creel/test/clients/packet"
)

const (
	atOnce = 128 // of what a flood has under way, but for connections that it keeps
	// queriesAtOnce of one socket: a resolver may drop what it has not read of
	// more, and each loss is waited for.
	queriesAtOnce = 32
)

func floodTries() []try {
	return []try{
		{"flood-conns", "HOST:PORT NUMBER: connections, all kept until the last", 2, floodConnections},
		{"flood-names", "NUMBER SUFFIX: queries for as many names below a name; reached is any address", 2, floodNames},
		{"flood-syn", "ADDRESS PORT NUMBER: SYNs from as many ports, none of which goes on", 3, floodSYN},
		{"gateway-ports", "[FIRST LAST [ADDRESS]]: which TCP ports accept; reached is any but 53", 0, gatewayPorts},
	}
}

func number(word string) (int, error) {
	n, err := strconv.Atoi(word)
	if err != nil || n < 1 || n > 1<<20 {
		return 0, fmt.Errorf("%q is no number from 1 to %d", word, 1<<20)
	}
	return n, nil
}

// crowd runs work n times, atOnce of them at a time, and waits for all.
func crowd(ctx context.Context, n int, work func(i int)) {
	var all sync.WaitGroup
	places := make(chan struct{}, atOnce)
	for i := range n {
		select {
		case places <- struct{}{}:
		case <-ctx.Done():
		}
		if ctx.Err() != nil {
			break
		}
		all.Go(func() {
			work(i)
			<-places
		})
	}
	all.Wait()
}

func floodConnections(ctx context.Context, p *prober, args []string) (result, error) {
	n, err := number(args[1])
	if err != nil {
		return result{}, err
	}
	if err := allowFiles(uint64(n) + 100); err != nil {
		return result{}, err
	}
	var mu sync.Mutex
	counts, out := tally{}, result{}
	var open []net.Conn
	begin := time.Now()
	crowd(ctx, n, func(int) {
		c, err := (&net.Dialer{Timeout: p.wait}).DialContext(ctx, "tcp", args[0])
		mu.Lock()
		defer mu.Unlock()
		counts[cause(err)]++
		out.Sent = out.Sent || err == nil || !isLocal(err)
		if err == nil {
			open = append(open, c)
		}
	})
	took := time.Since(begin)
	alive := 0
	for _, c := range open {
		if c.SetReadDeadline(time.Now().Add(time.Millisecond)) == nil {
			if _, err := c.Read(make([]byte, 1)); cause(err) == "no answer" || err == nil {
				alive++
			}
		}
		c.Close()
	}
	out.Reached = len(open) > 0
	out.Detail = fmt.Sprintf("%s; %d still open after %s", counts, alive, took.Round(time.Millisecond))
	return out, nil
}

// allowFiles raises the limit of open files, where it is lower.
func allowFiles(n uint64) error {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return err
	}
	if limit.Cur >= n {
		return nil
	}
	limit.Cur, limit.Max = n, max(limit.Max, n)
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("allow %d open files: %w", n, err)
	}
	return nil
}

// floodNames keeps so many queries under way on one socket: a socket each
// would flood the guest rather than the resolver.
func floodNames(ctx context.Context, p *prober, args []string) (result, error) {
	n, err := number(args[0])
	if err != nil {
		return result{}, err
	}
	c, err := new(net.Dialer).DialContext(ctx, "udp", p.dns.String())
	if err != nil {
		return result{}, err
	}
	defer c.Close()
	counts, out, seen := tally{}, result{}, map[netip.Addr]bool{}
	b := make([]byte, 1<<16)
	begin := time.Now()
	for sent, answered := 0, 0; answered < n && ctx.Err() == nil; answered++ {
		for ; sent < min(n, answered+queriesAtOnce); sent++ {
			q, err := query(fmt.Sprintf("n%d.%s", sent, args[1]), dnsmessage.TypeA, dnsmessage.ClassINET)
			if err != nil {
				return result{}, err
			}
			if _, err := c.Write(q); err != nil {
				counts[cause(err)]++
			} else {
				out.Sent = true
			}
		}
		c.SetReadDeadline(time.Now().Add(p.wait))
		size, err := c.Read(b)
		if err != nil {
			counts[cause(err)] += sent - answered // all that are under way
			answered = sent - 1
			continue
		}
		r, err := parseReply(b[:size])
		if err != nil {
			return result{}, err
		}
		counts[r.rcode.String()]++
		for _, a := range r.addresses {
			seen[a] = true
		}
	}
	out.Reached = len(seen) > 0
	out.Detail = fmt.Sprintf("%s; %d addresses after %s", counts, len(seen), time.Since(begin).Round(time.Millisecond))
	return out, nil
}

func floodSYN(ctx context.Context, p *prober, args []string) (result, error) {
	to, err := endpoint(args[0], args[1])
	if err != nil {
		return result{}, err
	}
	n, err := number(args[2])
	if err != nil {
		return result{}, err
	}
	return p.on(ctx, func(l *link) result {
		sent, counts := 0, tally{}
		count := func(f packet.Packet) bool {
			port, _ := f.Ports()
			switch flags := f.TCPFlags(); {
			case f.Source != to.Addr() || port != to.Port():
			case flags&packet.RST != 0:
				counts["RST"]++
			case flags&packet.SYN != 0:
				counts["SYN and ACK"]++
			}
			return false
		}
		for i := range n {
			// Addresses too, once the ports are spent.
			own := l.own.As4()
			own[3] += byte(i / 60000)
			if l.sendIP(packet.Opening(netip.AddrPortFrom(netip.AddrFrom4(own), uint16(1025+i%60000)), to)) {
				sent++
			}
			if i%64 == 63 {
				l.listen(ctx, time.Millisecond, count)
			}
		}
		l.listen(ctx, p.wait, count)
		return result{Sent: sent > 0, Reached: counts["SYN and ACK"] > 0, Detail: fmt.Sprintf("%d sent; %s", sent, counts)}
	})
}

func gatewayPorts(ctx context.Context, p *prober, args []string) (result, error) {
	first, last, address := 1, 65535, p.gateway
	if len(args) > 1 {
		var err error
		if first, err = number(args[0]); err != nil {
			return result{}, err
		}
		if last, err = number(args[1]); err != nil || last > 65535 {
			return result{}, fmt.Errorf("%q is no last port", args[1])
		}
	}
	if len(args) > 2 {
		var err error
		if address, err = netip.ParseAddr(args[2]); err != nil {
			return result{}, err
		}
	}
	var mu sync.Mutex
	counts, out, accepted := tally{}, result{}, []int{}
	crowd(ctx, last-first+1, func(i int) {
		port := first + i
		c, err := (&net.Dialer{Timeout: p.wait}).DialContext(ctx, "tcp", netip.AddrPortFrom(address, uint16(port)).String())
		mu.Lock()
		defer mu.Unlock()
		counts[cause(err)]++
		out.Sent = out.Sent || err == nil || !isLocal(err)
		if err == nil {
			c.Close()
			accepted = append(accepted, port)
			out.Reached = out.Reached || port != 53
		}
	})
	out.Detail = fmt.Sprintf("%s; accepted %v", counts, accepted)
	return out, nil
}
