package audit

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// fullRecord is a recorder that has no room until it is told so.
type fullRecord struct {
	mu     sync.Mutex
	full   bool
	hangs  bool
	events []Event
}

func (d *fullRecord) Append(ctx context.Context, events ...Event) error {
	d.mu.Lock()
	full, hangs := d.full, d.hangs
	d.mu.Unlock()
	if hangs {
		<-ctx.Done()
		return ctx.Err()
	}
	if full {
		return errors.New("no room")
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.events = append(d.events, events...)
	return nil
}

func (d *fullRecord) Note(failed func(error), events ...Event) {
	if err := d.Append(context.Background(), events...); err != nil {
		failed(err)
	}
}

func (d *fullRecord) set(full, hangs bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.full, d.hangs = full, hangs
}

func (d *fullRecord) numbers() (out []int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, e := range d.events {
		out = append(out, e.Data.(dated).n)
	}
	return out
}

type dated struct {
	n  int
	at time.Time
}

func (d dated) At(at time.Time) any { d.at = at; return d }

func TestOwedRecordsComeInOrderOnceThereIsRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := &fullRecord{}
		var mu sync.Mutex
		waited := 0
		o := NewOwed(disk, func(Kind, error) { mu.Lock(); waited++; mu.Unlock() })
		tell := func(n int) { o.Tell(Event{Kind: KindSignal, Data: dated{n: n}}) }
		tell(0)
		disk.set(true, false)
		began := time.Now()
		tell(1)
		time.Sleep(5 * time.Second) // the bubble's clock
		tell(2)
		disk.set(false, false)
		tell(3) // what came before goes first
		if diff := cmp.Diff([]int{0, 1, 2, 3}, disk.numbers()); diff != "" {
			t.Error(diff)
		}
		first, late := disk.events[0].Data.(dated), disk.events[1].Data.(dated)
		if !first.at.IsZero() || !late.at.Equal(began) || waited != 2 {
			t.Errorf("first %v, late %v after %v, %d waited", first.at, late.at, began, waited)
		}
		disk.set(true, false)
		tell(4)
		disk.set(false, false)
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if n := disk.numbers(); len(n) != 5 {
			t.Errorf("it is not tried again by itself: %v", n)
		}
		if missed := o.Close(); len(missed) != 0 {
			t.Errorf("missed %v", missed)
		}
	})
}

func TestOwedNeitherHangsNorGrows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := &fullRecord{hangs: true}
		o := NewOwed(disk, func(Kind, error) {})
		began := time.Now()
		o.Tell(Event{Kind: KindSignal, Data: dated{}})
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("an act was held up for %s", took)
		}
		disk.set(true, false)
		for range 2 * maxOwed {
			o.Tell(Event{Kind: KindSignal, Data: dated{}})
		}
		o.mu.Lock()
		if len(o.queue) > maxOwed {
			t.Errorf("%d wait", len(o.queue))
		}
		o.mu.Unlock()
		o.Miss(KindExec, 3)
		if diff := cmp.Diff(map[Kind]int{KindSignal: 2*maxOwed + 1, KindExec: 3}, o.Close()); diff != "" {
			t.Error(diff)
		}
		time.Sleep(5 * time.Second) // nothing is left that tries again
	})
}

// However many acts there are at once, and however slow the disk is, none is
// held up for longer than the patience; and the records come in order.
func TestOwedHoldsNobodyUpForOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const many = 20
		disk := &fullRecord{hangs: true}
		o := NewOwed(disk, func(Kind, error) {})
		var acts sync.WaitGroup
		for n := range many {
			acts.Go(func() {
				time.Sleep(time.Duration(n) * 150 * time.Millisecond) // the bubble's clock
				began := time.Now()
				o.Tell(Event{Kind: KindSignal, Data: dated{n: n}})
				if took := time.Since(began); took > owedPatience {
					t.Errorf("act %d was held up for %s", n, took)
				}
			})
		}
		acts.Wait()
		disk.set(false, false)
		time.Sleep(3 * time.Second)
		if missed := o.Close(); len(missed) != 0 {
			t.Errorf("missed %v", missed)
		}
		got := disk.numbers()
		if len(got) != many || !slices.IsSorted(got) {
			t.Errorf("on record are %v", got)
		}
	})
}

// So it is where each record is written in the end, but slowly.
func TestOwedHoldsNobodyUpWhereEachIsSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := NewOwed(slowRecord{&fullRecord{}, 700 * time.Millisecond}, func(Kind, error) {})
		var acts sync.WaitGroup
		for n := range 10 {
			acts.Go(func() {
				began := time.Now()
				o.Tell(Event{Kind: KindSignal, Data: dated{n: n}})
				if took := time.Since(began); took > owedPatience {
					t.Errorf("an act was held up for %s", took)
				}
			})
		}
		acts.Wait()
		time.Sleep(10 * time.Second)
		if missed := o.Close(); len(missed) != 0 {
			t.Errorf("missed %v", missed)
		}
	})
}

type slowRecord struct {
	*fullRecord
	takes time.Duration
}

func (s slowRecord) Append(ctx context.Context, events ...Event) error {
	time.Sleep(s.takes)
	return s.fullRecord.Append(ctx, events...)
}

// A record for whose class a guest has used up the room holds up none that has
// room.
func TestNoRoomForOneClassHoldsUpNoOther(t *testing.T) {
	h := newHome(t)
	h.ledger.MaxLog = 1 << 20
	dir := filepath.Join(t.TempDir(), "log")
	key, err := h.ledger.OpenSandbox(t.Context(), "aa", dir)
	if err != nil {
		t.Fatal(err)
	}
	l, err := OpenLog(dir, key)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	pad := map[string]string{"p": strings.Repeat("x", 900)}
	for _, kind := range []Kind{"request", "denied"} {
		for err = nil; err == nil; {
			err = l.Append(t.Context(), Event{Kind: kind, Sandbox: "aa", Data: pad})
		}
		if !errors.Is(err, ErrQuota) {
			t.Fatal(err)
		}
	}
	var mu sync.Mutex
	waits := map[Kind]int{}
	o := NewOwed(l, func(k Kind, _ error) { mu.Lock(); defer mu.Unlock(); waits[k]++ })
	for range maxOwed + 16 { // as many as wait, and more
		o.Tell(Event{Kind: "denied", Sandbox: "aa", Data: pad})
	}
	o.Tell(Event{Kind: "alert", Sandbox: "aa"})
	o.Tell(Event{Kind: KindSignal, Sandbox: "aa"})
	missed := o.Close()
	if diff := cmp.Diff(map[Kind]int{"denied": maxOwed + 16}, missed); diff != "" {
		t.Errorf("not on record: %s", diff)
	}
	mu.Lock()
	defer mu.Unlock()
	if waits["alert"] > 0 || waits[KindSignal] > 0 {
		t.Errorf("there waited %v", waits)
	}
}
