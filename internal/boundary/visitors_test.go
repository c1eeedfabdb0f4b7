package boundary

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"creel/internal/audit"
	"creel/internal/audit/event"

	"github.com/google/go-cmp/cmp"
)

// guestBook takes what visitors put on record.
type guestBook struct {
	mu     sync.Mutex
	full   bool
	events []any
	missed int
}

func (g *guestBook) open() *visitors {
	return &visitors{
		left: visitsApart, counted: time.Now(), let: map[visitor]int64{},
		record: func(_ context.Context, _ audit.Kind, data any) error {
			g.mu.Lock()
			defer g.mu.Unlock()
			if g.full {
				return io.ErrShortWrite
			}
			g.events = append(g.events, data)
			return nil
		},
		missed: func(n int, _ error) { g.missed += n },
	}
}

func (g *guestBook) setFull(full bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.full = full
}

func from(host string, port uint16) net.Addr {
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(host), port))
}

// A flood of visitors is let in, each on record before; but the record grows by
// a bounded number of records an hour, whatever the addresses.
func TestAFloodOfVisitorsIsABoundedRecord(t *testing.T) {
	for name, hosts := range map[string]int{"from one address": 1, "from many": 250} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var book guestBook
				v := book.open()
				const rounds, each = 120, 1000
				for range rounds {
					for i := range each {
						if err := v.enter(t.Context(), from(fmt.Sprintf("10.0.0.%d", 1+i%hosts), uint16(i+1)), 80, "tcp"); err != nil {
							t.Fatal(err)
						}
					}
					time.Sleep(30 * time.Second) // the bubble's clock
				}
				v.close()
				var apart, minutes, sums int
				var count int64
				for _, data := range book.events {
					switch data := data.(type) {
					case event.Published:
						if data.Minute {
							minutes++
						} else {
							apart++
						}
					case event.Visits:
						sums++
						count += data.Count
					}
				}
				if int64(apart)+count != rounds*each || book.missed != 0 {
					t.Errorf("%d apart and %d together are on record, %d missed, of %d", apart, count, book.missed, rounds*each)
				}
				most := 61 * min(hosts, maxVisitors+1)
				if apart > visitsApart+visitsPerHour || minutes > most || sums != minutes {
					t.Errorf("an hour took %d records of one, %d of minutes (at most %d), %d sums", apart, minutes, most, sums)
				}
			})
		})
	}
}

// Who comes in a minute is let in by the record of that minute, and of the own
// address while there are few of them.
func TestVisitorsOfAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var book guestBook
		v := book.open()
		for range visitsApart {
			v.enter(t.Context(), from("10.0.0.1", 1), 80, "tcp")
		}
		book.events = nil
		for range 3 {
			v.enter(t.Context(), from("10.0.0.1", 2), 80, "tcp")
		}
		v.enter(t.Context(), from("fd00::1", 3), 53, "udp")
		time.Sleep(visitMinute)
		synctest.Wait()
		book.setFull(true)
		for range 4 { // some would have a record of their own by now
			if v.enter(t.Context(), from("10.0.0.1", 4), 80, "tcp") == nil {
				t.Error("let in without a record")
			}
		}
		book.setFull(false)
		v.enter(t.Context(), from("10.0.0.1", 5), 80, "tcp")
		book.setFull(true)
		v.close()
		sums := map[any]bool{event.Visits{From: "10.0.0.1", Port: 80, Proto: "tcp", Count: 3}: true, event.Visits{From: "fd00::1", Port: 53, Proto: "udp", Count: 1}: true}
		if len(book.events) != 5 || !sums[book.events[2]] || !sums[book.events[3]] || book.events[2] == book.events[3] {
			t.Fatalf("on record: %+v", book.events)
		}
		if diff := cmp.Diff([]any{
			event.Published{From: "10.0.0.1", Port: 80, Proto: "tcp", Minute: true}, event.Published{From: "fd00::1", Port: 53, Proto: "udp", Minute: true},
			event.Published{From: "10.0.0.1", Port: 80, Proto: "tcp", Minute: true},
		}, []any{book.events[0], book.events[1], book.events[4]}); diff != "" {
			t.Error(diff)
		}
		if book.missed != 1 {
			t.Errorf("%d visits are known not to be on record, want 1", book.missed)
		}
	})
}

// Visitors by the thousand are all let in, and are few records.
func TestManyVisitorsAreLetIn(t *testing.T) {
	r, tcp, _ := publishing(t, "", "answer")
	const many = 3 * visitsApart
	for range many {
		c, err := net.Dial("tcp", tcp)
		if err != nil {
			t.Fatal(err)
		}
		if got := answer(t, c, "x", 6); got != "answer" {
			t.Fatalf("a visitor got %q", got)
		}
		c.Close()
	}
	r.edge.Close()
	var count int64
	for _, v := range of[event.Visits](r.journal) {
		count += v.Count
	}
	if n := int64(r.count("record published")); count+visitsApart > many || count < many-visitsApart-5 || n > visitsApart+20 {
		t.Errorf("%d records let somebody in, and %d are counted, of %d visitors", n, count, many)
	}
}

// People learn of visitors who are turned away, in a line for each port.
func TestVisitorsWhoAreTurnedAwayAreTold(t *testing.T) {
	r, tcp, _ := publishing(t, "", "answer")
	r.set(func(j *journal) { j.fail[event.KindPublished] = true })
	for range 3 {
		visit(t, tcp)
	}
	if list := r.awaitDenials(3); len(list) != 1 || list[0].Target != "published port 8080/tcp" || list[0].Count != 3 {
		t.Errorf("%+v", list)
	}
}
