package boundary

import (
	"net"
	"testing"
)

func TestEdgeDropsEverythingAndAnswersNothing(t *testing.T) {
	host, guest := net.Pipe()
	e := Open(host)
	for range 10 {
		if _, err := guest.Write(make([]byte, 100<<10)); err != nil {
			t.Fatal(err)
		}
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	if n := e.DroppedBytes(); n != 1000<<10 {
		t.Errorf("%d bytes were counted", n)
	}
	if n, _ := guest.Read(make([]byte, 1)); n != 0 {
		t.Error("the guest was answered")
	}
}

// closed is a connection that its machine has closed.
type closed struct{ net.Conn }

func (closed) Read([]byte) (int, error) { return 0, net.ErrClosed }
func (closed) Close() error             { return net.ErrClosed }

func TestClosingAfterTheMachineIsNoFault(t *testing.T) {
	if err := Open(closed{}).Close(); err != nil {
		t.Error(err)
	}
}
