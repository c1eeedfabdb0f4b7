package audit

import (
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestCoalescerCountsPerKeyAndSecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		type got struct {
			Key   string
			Count int64
		}
		var mu sync.Mutex // the race detector does not know the bubble's clock
		var seen []got
		fail := false
		refuse := func(yes bool) { mu.Lock(); fail = yes; mu.Unlock() }
		c := NewCoalescer(2, func(t Tally[string]) error {
			mu.Lock()
			defer mu.Unlock()
			if fail {
				return errors.New("no room")
			}
			if t.Others {
				t.Key = "others"
			}
			seen = append(seen, got{t.Key, t.Count})
			return nil
		})
		add := func(keys ...string) {
			for _, k := range keys {
				c.Add(k)
			}
		}
		wait := func() { time.Sleep(1100 * time.Millisecond); synctest.Wait() } // the bubble's clock
		expect := func(want ...got) {
			t.Helper()
			mu.Lock()
			defer mu.Unlock()
			if diff := cmp.Diff(want, seen); diff != "" {
				t.Error(diff)
			}
			seen = nil
		}
		add("a", "b", "a", "c", "d", "a")
		expect()
		wait()
		expect(got{"a", 3}, got{"b", 1}, got{"others", 2})
		refuse(true)
		add("a", "b", "c")
		wait()
		refuse(false)
		add("a")
		wait()
		expect(got{"a", 2}, got{"b", 1}, got{"others", 1})
		add("z")
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		expect(got{"z", 1})
		refuse(true)
		add("y")
		if err := c.Close(); err == nil {
			t.Error("a tally was lost without an error")
		}
	})
}
