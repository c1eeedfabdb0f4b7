package netstack

import (
	"context"
	"encoding/binary"
	"io"
	"testing"

	"creel/internal/boundary/netstack/netstacktest"
)

func FuzzFilter(f *testing.F) {
	for _, test := range frames() {
		f.Add(test.frame)
	}
	filter := testFilter()
	f.Fuzz(func(t *testing.T, frame []byte) {
		kind, end, why := filter.check(frame)
		if (kind == kindNone) == (why == passed) {
			t.Fatalf("kind %d for reason %v", kind, why)
		}
		if why != passed {
			return
		}
		if end < ethernetSize || end > len(frame) {
			t.Fatalf("ends at %d of %d", end, len(frame))
		}
		if kind != kindARP && [4]byte(frame[ethernetSize+12:]) != filter.guest {
			t.Fatal("a spoofed source passed")
		}
	})
}

// FuzzFrames feeds a stack whatever stream of frames: it must neither panic nor
// stop reading, and must end.
func FuzzFrames(f *testing.F) {
	for _, test := range frames() {
		f.Add(append(binary.BigEndian.AppendUint32(nil, uint32(len(test.frame))), test.frame...))
	}
	syn := tcpFrameTo(1000, web, 2, 1, 0)
	fin := tcpFrameTo(1000, web, 0x11, 2, 1)
	stream := append(binary.BigEndian.AppendUint32(nil, uint32(len(syn))), syn...)
	f.Add(append(binary.BigEndian.AppendUint32(stream, uint32(len(fin))), fin...))
	echo := func(_ context.Context, a *Attempt) {
		if c, err := a.Accept(); err == nil {
			io.Copy(c, c)
			c.Close()
		}
	}
	f.Fuzz(func(t *testing.T, stream []byte) {
		host, card := netstacktest.Cable(t)
		s, err := New(host, Options{Guest: guestAddr, Gateway: gatewayAddr, TCP: echo, UDP: echo, MayUDP: allowUDP})
		if err != nil {
			t.Fatal(err)
		}
		join := drain(card)
		card.Write(stream)
		card.(interface{ CloseWrite() error }).CloseWrite()
		<-s.Done()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		join()
	})
}
