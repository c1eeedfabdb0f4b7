package boundary

import (
	"testing"

	"creel/internal/audit/event"
	"creel/internal/boundary/netstack/netstacktest"
)

// What no policy is asked about is counted, and on record once.
func TestDroppedFramesAreOnRecord(t *testing.T) {
	r := open(t, "")
	ipv6 := netstacktest.SYN(1000, mustAddrPort("198.51.100.1:80"))
	ipv6[12], ipv6[13] = 0x86, 0xdd
	for range 3 {
		if err := r.guest.Inject(ipv6); err != nil {
			t.Fatal(err)
		}
	}
	if c, err := r.guest.Dial(t, mustAddrPort("198.51.100.1:80")); err == nil { // what was sent before it has been read
		c.Close()
		t.Error("a connection was answered")
	}
	r.close()
	dropped := of[event.Dropped](r.journal)
	if len(dropped) != 1 || dropped[0].Frames["ipv6"] != 3 {
		t.Errorf("on record: %+v", dropped)
	}
}
