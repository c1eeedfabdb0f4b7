package netstack

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"
)

func BenchmarkTransfer(b *testing.B) {
	for _, direction := range []string{"out", "in"} {
		for _, flows := range []int{1, 8, 64} {
			b.Run(fmt.Sprintf("%s/flows=%d", direction, flows), func(b *testing.B) { transfer(b, direction == "in", flows) })
		}
	}
}

// transfer moves blocks of 1 MiB between a guest and the host.
func transfer(b *testing.B, in bool, flows int) {
	const block = 1 << 20
	left := make(chan struct{}, b.N)
	for range b.N {
		left <- struct{}{}
	}
	close(left)
	produce := func(w net.Conn) {
		buf := make([]byte, block)
		for range left {
			if _, err := w.Write(buf); err != nil {
				b.Error(err)
				return
			}
		}
		w.(interface{ CloseWrite() error }).CloseWrite()
	}
	consume := func(r net.Conn) {
		io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{r}, make([]byte, 256<<10))
	}
	host, inVM := consume, produce
	if in {
		host, inVM = produce, consume
	}
	s, card := start(b, Options{TCP: func(_ context.Context, a *Attempt) {
		c, err := a.Accept()
		if err != nil {
			b.Error(err)
			return
		}
		host(c)
		c.Close()
	}})
	g := startGuest(b, card)
	conns := make([]net.Conn, flows)
	for i := range conns {
		c := g.MustDial(b, netip.AddrPortFrom(elsewhere, 80))
		c.SetDeadline(time.Time{})
		conns[i] = c
	}
	b.SetBytes(block)
	b.ResetTimer()
	done := make(chan struct{})
	for _, c := range conns {
		go func() {
			inVM(c)
			if !in {
				io.Copy(io.Discard, c) // the host has read all
			}
			done <- struct{}{}
		}()
	}
	for range conns {
		<-done
	}
	b.StopTimer()
	b.ReportMetric(float64(s.Dropped()[Overrun]), "overrun")
}

func BenchmarkConnect(b *testing.B) {
	_, card := start(b, Options{TCP: func(_ context.Context, a *Attempt) {
		if c, err := a.Accept(); err == nil {
			c.Close()
		}
	}})
	g := startGuest(b, card)
	for b.Loop() {
		c, err := g.Dial(b, netip.AddrPortFrom(elsewhere, 80))
		if err != nil {
			b.Fatal(err)
		}
		if n, err := c.Read(make([]byte, 1)); err != io.EOF {
			b.Fatal(n, err)
		}
		c.Close()
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "connections/s")
}
