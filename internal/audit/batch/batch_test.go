package batch

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"creel/internal/audit/chain"

	"github.com/google/go-cmp/cmp"
)

// disk is what a Writer writes to: the kinds of each commit.
type disk struct {
	mu      sync.Mutex
	commits []string
	times   []time.Time
	fail    error
	written chan struct{} // one for each commit
}

func newDisk() (*disk, *Writer) {
	d := &disk{written: make(chan struct{}, 10_000)}
	return d, New(d.write)
}

func (d *disk) write(entries []chain.Entry) (string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var kinds []string
	for _, e := range entries {
		kinds = append(kinds, string(e.Kind))
	}
	d.commits, d.times = append(d.commits, strings.Join(kinds, " ")), append(d.times, time.Now())
	d.written <- struct{}{}
	return "", d.fail
}

func (d *disk) want(t *testing.T, commits ...string) {
	t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	if !cmp.Equal(d.commits, commits) {
		t.Errorf("commits %q, want %q", d.commits, commits)
	}
}

func TestNotesWaitForAnAppend(t *testing.T) {
	d, b := newDisk()
	defer b.Close()
	unexpected := func(err error) { t.Error(err) }
	for n := 0; ; n++ { // unless the test is held up for as long as notes wait
		began := time.Now()
		b.Note(unexpected, chain.Entry{Kind: "n1"})
		b.Note(unexpected, chain.Entry{Kind: "n2"}, chain.Entry{Kind: "n3"})
		if _, err := b.Append(t.Context(), chain.Entry{Kind: "a"}, chain.Entry{Kind: "b"}); err != nil {
			t.Fatal(err)
		}
		if time.Since(began) < lateness {
			break
		}
		if n == 100 {
			t.Skip("this machine is too slow to see it")
		}
		d.commits = nil
	}
	d.want(t, "n1 n2 n3 a b")
}

func TestNotesWaitNoLonger(t *testing.T) {
	d, b := newDisk()
	defer b.Close()
	began := time.Now()
	b.Note(func(err error) { t.Error(err) }, chain.Entry{Kind: "n"})
	<-d.written
	if took := d.times[0].Sub(began); took < lateness {
		t.Errorf("a note was written after %v", took)
	}
	d.want(t, "n")
	b.Note(func(err error) { t.Error(err) }, chain.Entry{Kind: "again"})
	<-d.written
	d.want(t, "n", "again")
}

func TestNotesAreWrittenAtTheEnd(t *testing.T) {
	d, b := newDisk()
	b.Note(func(err error) { t.Error(err) }, chain.Entry{Kind: "n"})
	b.Close()
	d.want(t, "n")
}

func TestNoteThatFails(t *testing.T) {
	d, b := newDisk()
	d.fail = errors.New("disk full")
	failures := make(chan error, 10)
	failed := func(err error) { failures <- err }
	b.Note(failed, chain.Entry{Kind: "n"})
	if err := <-failures; !errors.Is(err, d.fail) {
		t.Errorf("got %v", err)
	}
	large := chain.Entry{Kind: "l", Data: make([]byte, chain.MaxBatch)}
	b.Note(failed, large, large)
	if err := <-failures; err == nil {
		t.Error("no error")
	}
	b.Close()
	b.Note(failed, chain.Entry{Kind: "n"})
	if err := <-failures; !errors.Is(err, errClosed) {
		t.Errorf("got %v", err)
	}
	if _, err := b.Append(t.Context(), chain.Entry{Kind: "a"}); !errors.Is(err, errClosed) {
		t.Errorf("got %v", err)
	}
}

// An append that was given up leaves the notes beside it.
func TestNotesOutliveAnAppend(t *testing.T) {
	d, b := newDisk()
	d.mu.Lock() // the disk is busy
	b.Note(func(err error) { t.Error(err) }, chain.Entry{Kind: "n"})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := b.Append(ctx, chain.Entry{Kind: "a"}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	d.mu.Unlock()
	b.Close()
	if all := strings.Join(d.commits, " "); all != "n" && all != "n a" {
		t.Errorf("commits %q", d.commits)
	}
}

func TestEventsOfOneAppendStayTogether(t *testing.T) {
	d, b := newDisk()
	defer b.Close()
	half := make([]byte, chain.MaxBatch/2)
	if _, err := b.Append(t.Context(), chain.Entry{Kind: "a", Data: half}, chain.Entry{Kind: "b", Data: half}); err == nil {
		t.Error("more was taken than fits into one commit")
	}
	d.want(t)
}

// While many wait, commits keep their distance; a few never wait for more.
func TestCrowdsShareCommits(t *testing.T) {
	for writers, want := range map[int]bool{2: false, 4 * crowd: true} {
		d, b := newDisk()
		var all sync.WaitGroup
		began := time.Now()
		const each = 50
		for range writers {
			all.Go(func() {
				for range each {
					if _, err := b.Append(t.Context(), chain.Entry{Kind: "a"}); err != nil {
						t.Error(err)
					}
				}
			})
		}
		all.Wait()
		b.Close()
		took, events := time.Since(began), 0
		for _, c := range d.commits {
			events += len(strings.Fields(c))
		}
		if events != writers*each {
			t.Errorf("%d events of %d writers, want %d", events, writers, writers*each)
		}
		if crowded := len(d.commits) <= writers*each/crowd; crowded != want {
			t.Errorf("%d writers: %d commits in %v", writers, len(d.commits), took)
		}
	}
}

// What there is no room for together is written alone.
func TestOneDoesNotFailForAnother(t *testing.T) {
	d, b := newDisk()
	full := errors.New("no room")
	b.write = func(entries []chain.Entry) (string, error) {
		if d.write(entries); len(entries) > 1 || entries[0].Kind == "large" {
			return "", full
		}
		return "", nil
	}
	failures := make(chan error, 2)
	b.Note(func(err error) { failures <- err }, chain.Entry{Kind: "large"})
	if _, err := b.Append(t.Context(), chain.Entry{Kind: "a"}); err != nil {
		t.Errorf("failed for another: %v", err)
	}
	if err := <-failures; !errors.Is(err, full) {
		t.Errorf("got %v", err)
	}
	b.Close()
}
