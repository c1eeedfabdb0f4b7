package audit

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

type counted struct {
	Key      string
	Count    int64
	Distinct int64
}

// tellers is a coalescer of words, which gathers them by their first letter.
type tellers struct {
	*Coalescer[string]
	mu   sync.Mutex // the race detector does not know the bubble's clock
	seen []counted
	fail bool
}

func newTellers(most int) *tellers {
	x := &tellers{}
	x.Coalescer = NewCoalescer(most, func(k string) string { return k[:1] + "*" }, func(tallies []Tally[string]) error {
		x.mu.Lock()
		defer x.mu.Unlock()
		if x.fail {
			return errors.New("no room")
		}
		for _, t := range tallies {
			if t.Others {
				t.Key = "others"
			}
			x.seen = append(x.seen, counted{t.Key, t.Count, t.Distinct})
		}
		return nil
	})
	return x
}

func (x *tellers) refuse(yes bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.fail = yes
}

func (x *tellers) add(keys ...string) {
	for _, k := range keys {
		x.Add(k)
	}
}

func (x *tellers) expect(t *testing.T, want ...counted) {
	t.Helper()
	x.mu.Lock()
	defer x.mu.Unlock()
	slices.SortStableFunc(x.seen, func(a, b counted) int { return strings.Compare(a.Key, b.Key) })
	if diff := cmp.Diff(want, x.seen); diff != "" {
		t.Error(diff)
	}
	x.seen = nil
}

func wait(d time.Duration) { time.Sleep(d); synctest.Wait() } // the bubble's clock

func TestCoalescerCountsPerKeyAndSecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTellers(2)
		c.add("a", "b", "a", "x1", "x2", "a", "x1")
		c.expect(t)
		wait(1100 * time.Millisecond)
		c.expect(t, counted{"a", 3, 0}, counted{"b", 1, 0})
		wait(time.Minute)
		c.expect(t, counted{"x*", 3, 2})
		c.refuse(true)
		c.add("a", "b", "c")
		wait(1100 * time.Millisecond)
		c.refuse(false)
		c.add("a")
		wait(1100 * time.Millisecond)
		c.expect(t, counted{"a", 1, 0})
		wait(time.Minute)
		c.expect(t, counted{"a*", 1, 1}, counted{"b*", 1, 1}, counted{"c*", 1, 1})
		c.add("z")
		if _, err := c.Close(); err != nil {
			t.Fatal(err)
		}
		c.expect(t, counted{"z", 1, 0})
		c.refuse(true)
		c.add("y", "y")
		if lost, err := c.Close(); err == nil || lost != 2 {
			t.Errorf("%d lost, %v", lost, err)
		}
	})
}

// However zealous a guest is, and whatever it varies, its tallies are few.
func TestCoalescerIsBoundedByTheHour(t *testing.T) {
	for name, key := range map[string]func(int) string{
		"names of one rule": func(n int) string { return fmt.Sprintf("a%d", n) },
		"names of many":     func(n int) string { return fmt.Sprintf("%c%d", 'A'+n%50, n) },
		"one after another": func(n int) string { return fmt.Sprintf("a%d", n/10) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newTellers(64)
				const hours = 3
				for n := range hours * 3600 * 10 {
					c.add(key(n))
					time.Sleep(100 * time.Millisecond)
				}
				if _, err := c.Close(); err != nil {
					t.Fatal(err)
				}
				if most := singles + hours*singlesPerHour + (hours*60+1)*(maxGathered+1); len(c.seen) > most {
					t.Errorf("%d tallies, at most %d", len(c.seen), most)
				}
				var sum int64
				for _, s := range c.seen {
					sum += s.Count
				}
				if sum != hours*3600*10 {
					t.Errorf("they count %d", sum)
				}
			})
		})
	}
}
