package query

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"creel/internal/audit"
	"creel/internal/audit/chain"

	"github.com/google/go-cmp/cmp"
)

type conn struct {
	Host     string `json:"host"`
	Decision string `json:"decision"`
	Address  string `json:"address,omitempty"`
}

type home struct {
	t      *testing.T
	dir    string
	ledger *audit.Ledger
}

func newHome(t *testing.T) *home {
	t.Helper()
	h := &home{t: t, dir: filepath.Join(t.TempDir(), "audit")}
	var err error
	if h.ledger, err = audit.OpenLedger(h.dir); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.ledger.Close() })
	return h
}

func (h *home) add(r audit.Recorder, e audit.Event) {
	h.t.Helper()
	if err := r.Append(h.t.Context(), e); err != nil {
		h.t.Fatal(err)
	}
}

func (h *home) open(id string) (*audit.Log, string) {
	h.t.Helper()
	dir := filepath.Join(h.t.TempDir(), "log")
	key, err := h.ledger.OpenSandbox(h.t.Context(), id, dir)
	if err != nil {
		h.t.Fatal(err)
	}
	l, err := audit.OpenLog(dir, key)
	if err != nil {
		h.t.Fatal(err)
	}
	return l, dir
}

func (h *home) close(l *audit.Log, id, dir string) {
	h.t.Helper()
	if err := errors.Join(l.Close(), h.ledger.CloseSandbox(h.t.Context(), id, dir)); err != nil {
		h.t.Fatal(err)
	}
}

// fill makes two runs at once: one is closed, one goes on.
func (h *home) fill() {
	h.t.Helper()
	h.add(h.ledger, audit.Event{Kind: audit.KindAdmitted, Sandbox: "aa", Data: map[string]any{"name": "web"}})
	a, dirA := h.open("aa")
	b, _ := h.open("bb")
	h.add(a, audit.Event{Kind: audit.KindExec, Sandbox: "aa"})
	h.add(b, audit.Event{Kind: "conn", Sandbox: "bb", Data: conn{Host: "api.example.org", Decision: "deny"}})
	h.add(a, audit.Event{Kind: "conn", Sandbox: "aa", Data: conn{"example.org", "allow", "[2001:db8::7]:443"}})
	h.add(b, audit.Event{Kind: audit.KindExec, Sandbox: "bb"})
	h.close(a, "aa", dirA)
	h.add(b, audit.Event{Kind: audit.KindExit, Sandbox: "bb"})
	h.add(h.ledger, audit.Event{Kind: audit.KindRefused, Data: map[string]any{"name": "web"}})
	h.t.Cleanup(func() { b.Close() })
}

func (h *home) all(f Filter) (got []string) {
	h.t.Helper()
	for r, err := range Records(h.t.Context(), h.dir, f) {
		if err != nil {
			h.t.Fatal(err)
		}
		got = append(got, fmt.Sprintf("%s %s", r.Kind, r.Sandbox))
	}
	return got
}

func TestRecordsComeInOrderOfTimeAndFiltered(t *testing.T) {
	h := newHome(t)
	start := time.Now()
	h.fill()
	for name, c := range map[string]struct {
		f    Filter
		want []string
	}{
		"all": {Filter{}, []string{
			"key ", "admitted aa", "opened aa", "opened aa", "opened bb", "opened bb", "exec aa", "conn bb", "conn aa", "exec bb",
			"closed ", "closed aa", "exit bb", "refused "}},
		"sandbox":    {Filter{Sandbox: "b"}, []string{"opened bb", "opened bb", "conn bb", "exec bb", "exit bb"}},
		"kinds":      {Filter{Kinds: []audit.Kind{audit.KindExec, audit.KindExit}}, []string{"exec aa", "exec bb", "exit bb"}},
		"denied":     {Filter{Decision: "deny"}, []string{"conn bb", "refused "}},
		"allowed":    {Filter{Decision: "allow"}, []string{"admitted aa", "conn aa"}},
		"address":    {Filter{Host: "2001:DB8:0::7"}, []string{"conn aa"}},
		"both":       {Filter{Host: "2001:db8::7", Decision: "deny"}, nil},
		"host":       {Filter{Host: "example.org"}, []string{"conn aa"}},
		"host below": {Filter{Host: "*.Example.org"}, []string{"conn bb", "conn aa"}},
		"other host": {Filter{Host: "*.ple.org"}, nil},
		"since":      {Filter{Since: time.Now()}, nil},
		"until":      {Filter{Until: start, Kinds: []audit.Kind{audit.KindExec}}, nil},
	} {
		if diff := cmp.Diff(c.want, h.all(c.f)); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

func TestExportIsTheFormat(t *testing.T) {
	h := newHome(t)
	h.fill()
	var out bytes.Buffer
	if err := Export(&out, Records(t.Context(), h.dir, Filter{})); err != nil {
		t.Fatal(err)
	}
	n := 0
	for raw := range bytes.Lines(out.Bytes()) {
		if _, err := chain.Parse(raw[:len(raw)-1]); err != nil {
			t.Errorf("line %s: %v", raw, err)
		}
		n++
	}
	if n != 14 {
		t.Errorf("%d lines", n)
	}
}

func TestFollowSeesWhatComesLater(t *testing.T) {
	h := newHome(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var l *audit.Log
	var dir string
	filler := bytes.Repeat([]byte("x"), 900<<10)
	var big int
	// Each record that comes brings about the next one.
	steps := []func(){
		func() { l, dir = h.open("aa") },
		func() {},
		func() { h.add(l, audit.Event{Kind: audit.KindExec, Sandbox: "aa"}) },
		func() { h.close(l, "aa", dir) },
		func() {},
		func() { // over the end of a segment
			for range 6 {
				h.add(h.ledger, audit.Event{Kind: audit.KindRefused, Data: map[string]string{"x": string(filler)}})
				big++
			}
		},
	}
	want := []string{"key ", "opened aa", "opened aa", "exec aa", "closed ", "closed aa",
		"refused ", "refused ", "refused ", "refused ", "refused ", "refused "}
	var got []string
	for r, err := range Records(ctx, h.dir, Filter{Follow: true}) {
		if errors.Is(err, context.Canceled) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, fmt.Sprintf("%s %s", r.Kind, r.Sandbox))
		if len(steps) > 0 {
			steps[0]()
			steps = steps[1:]
		}
		if len(got) == len(want) {
			time.AfterFunc(0, cancel)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if paths, err := audit.Segments(h.dir); err != nil || len(paths) < 2 {
		t.Errorf("segments %v %v: want more than one", paths, err)
	}
}

// TestZerosOfAnOpenLogAreNoRecords to who follows it; a hole in it is none of
// them.
func TestZerosOfAnOpenLogAreNoRecords(t *testing.T) {
	h := newHome(t)
	l, dir := h.open("aa")
	path := filepath.Join(dir, audit.LogName)
	filler := strings.Repeat("x", 40<<10)
	grow := func() {
		h.add(l, audit.Event{Kind: audit.KindExec, Sandbox: "aa", Data: map[string]string{"x": filler}})
	}
	for range 10 {
		grow()
	}
	if data, err := os.ReadFile(path); err != nil || data[len(data)-1] != 0 {
		t.Fatalf("no zeros at the end of %d bytes: %v", len(data), err)
	}
	if n := len(h.all(Filter{Kinds: []audit.Kind{audit.KindExec}})); n != 10 {
		t.Errorf("%d records", n)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	got := 0
	for r, err := range Records(ctx, h.dir, Filter{Kinds: []audit.Kind{audit.KindExec, audit.KindClosed, KindUnreadable}, Follow: true}) {
		if err != nil {
			t.Fatalf("after %d records: %v", got, err)
		}
		if r.Kind == audit.KindClosed {
			break
		}
		switch got++; {
		case r.Kind == KindUnreadable:
			t.Fatalf("%s", r.Data)
		case got >= 10 && got < 50:
			grow()
		case got == 50:
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if got != 50 {
		t.Errorf("%d records came", got)
	}

	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	data[bytes.Index(data, []byte(`{"v":1,"seq":4,`))] = 0
	if err := os.WriteFile(path, append(data, make([]byte, 5000)...), 0o600); err != nil {
		t.Fatal(err)
	}
	if n := len(h.all(Filter{Kinds: []audit.Kind{KindUnreadable}})); n != 1 {
		t.Errorf("%d records of what cannot be read", n)
	}
}

func TestABrokenLogDoesNotHideTheOthers(t *testing.T) {
	h := newHome(t)
	h.fill()
	logs, err := filepath.Glob(filepath.Join(h.dir, "logs", "*"))
	if err != nil || len(logs) != 1 {
		t.Fatal(logs, err)
	}
	data, err := os.ReadFile(logs[0])
	if err != nil {
		t.Fatal(err)
	}
	i := bytes.Index(data, []byte(`{"v":1,"seq":2`))
	data[i] = 'x'
	if err := os.WriteFile(logs[0], data, 0o600); err != nil {
		t.Fatal(err)
	}
	want := []string{"key ", "admitted aa", "opened aa", "opened aa", "unreadable aa", "opened bb", "opened bb", "conn bb", "exec bb",
		"closed aa", "exit bb", "refused "}
	if diff := cmp.Diff(want, h.all(Filter{})); diff != "" {
		t.Error(diff)
	}
}
