package audit

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"creel/internal/audit/chain"

	"golang.org/x/mod/sumdb/note"
)

// benchDir is on a real disk: $TMPDIR may be memory, where a sync costs nothing.
func benchDir(b *testing.B) string {
	dir, err := os.MkdirTemp(".", "bench-")
	if err != nil {
		b.Fatal(err)
	}
	dir, err = filepath.Abs(dir)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func benchLogs(b *testing.B, n int) []*Log {
	dir := benchDir(b)
	var logs []*Log
	for i := range n {
		key, err := newSandboxKey("bench", DefaultMaxLog)
		if err != nil {
			b.Fatal(err)
		}
		key.MaxBytes = 4 << 30
		sub := filepath.Join(dir, string(rune('a'+i)))
		if err := os.Mkdir(sub, 0o700); err != nil {
			b.Fatal(err)
		}
		if err := newLog(filepath.Join(sub, LogName), key, ""); err != nil {
			b.Fatal(err)
		}
		l, err := OpenLog(sub, key)
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { l.Close() })
		logs = append(logs, l)
	}
	return logs
}

var benchEvent = Event{Kind: "conn", Sandbox: "bench", Data: map[string]any{
	"host": "api.example.org", "port": 443, "address": "192.0.2.7", "decision": "allow", "rule": "api", "reason": "host matches",
}}

// BenchmarkAppend is durable appends: one writer; 20 writers of one log, who
// share syncs; 20 sandboxes with a writer each.
func BenchmarkAppend(b *testing.B) {
	for name, c := range map[string]struct{ logs, writers int }{
		"1-writer": {1, 1}, "20-writers": {1, 20}, "20-sandboxes": {20, 20},
	} {
		b.Run(name, func(b *testing.B) {
			logs := benchLogs(b, c.logs)
			work := make(chan struct{})
			var wg sync.WaitGroup
			b.ResetTimer()
			for i := range c.writers {
				wg.Go(func() {
					for range work {
						if err := logs[i%len(logs)].Append(b.Context(), benchEvent); err != nil {
							b.Error(err)
						}
					}
				})
			}
			for range b.N {
				work <- struct{}{}
			}
			close(work)
			wg.Wait()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "appends/s")
		})
	}
}

// BenchmarkDelay is how long an act waits for its record at 1,000 acts a
// second, of one sandbox and spread over 20.
func BenchmarkDelay(b *testing.B) {
	for name, n := range map[string]int{"1-sandbox": 1, "20-sandboxes": 20} {
		b.Run(name, func(b *testing.B) {
			logs := benchLogs(b, n)
			delays := make([]time.Duration, b.N)
			var wg sync.WaitGroup
			b.ResetTimer()
			start := time.Now()
			timer := time.NewTimer(0)
			for i := range b.N {
				due := start.Add(time.Duration(i) * time.Millisecond)
				if wait := time.Until(due); wait > 0 {
					timer.Reset(wait)
					<-timer.C
				}
				wg.Go(func() {
					begun := time.Now()
					if err := logs[i%n].Append(b.Context(), benchEvent); err != nil {
						b.Error(err)
					}
					delays[i] = time.Since(begun)
				})
			}
			wg.Wait()
			slices.Sort(delays)
			b.ReportMetric(float64(delays[len(delays)/2].Microseconds()), "p50-µs")
			b.ReportMetric(float64(delays[len(delays)*99/100].Microseconds()), "p99-µs")
		})
	}
}

// BenchmarkVerify reads logs of a million events: committed one by one, which
// is the most work, and 20 at a time.
func BenchmarkVerify(b *testing.B) {
	const events = 1_000_000
	for name, batch := range map[string]int{"commits-of-1": 1, "commits-of-20": 20} {
		b.Run(name, func(b *testing.B) {
			key, err := newSandboxKey("bench", DefaultMaxLog)
			if err != nil {
				b.Fatal(err)
			}
			f, err := os.Create(filepath.Join(benchDir(b), LogName))
			if err != nil {
				b.Fatal(err)
			}
			defer f.Close()
			fillLog(b, f, key, events, batch)
			b.ResetTimer()
			for range b.N {
				st, err := readLog(b.Context(), f, Opened{Log: key.Origin, Key: key.Public}, nil)
				if err != nil || st.fault != "" || st.records != events+1 {
					b.Fatal(st.fault, st.records, err)
				}
			}
			b.ReportMetric(float64(events*b.N)/b.Elapsed().Seconds(), "events/s")
		})
	}
}

// fillLog writes a log without syncing it. Only its last checkpoint is signed
// for real: the others cost a million signatures and are not what is measured.
func fillLog(b *testing.B, f *os.File, key SandboxKey, events, batch int) {
	real, err := key.sealer()
	if err != nil {
		b.Fatal(err)
	}
	quick := real
	quick.Signers = []note.Signer{quickSigner{real.Signers[0]}}
	opened, err := Event{Kind: KindOpened, Sandbox: key.Sandbox, Data: logOpened{key.Origin, ""}}.encode()
	if err != nil {
		b.Fatal(err)
	}
	e, err := benchEvent.encode()
	if err != nil {
		b.Fatal(err)
	}
	var out bytes.Buffer
	var tree chain.Tree
	seal := func(s chain.Sealer, entries []chain.Entry) {
		c, err := s.Seal(&tree, entries, time.Now().UTC())
		if err != nil {
			b.Fatal(err)
		}
		tree = c.Tree
		out.Write(c.Bytes)
		if out.Len() > 1<<20 {
			if _, err := out.WriteTo(f); err != nil {
				b.Fatal(err)
			}
		}
	}
	seal(quick, []chain.Entry{opened})
	for done := 0; done < events; done += batch {
		s := quick
		if done+batch >= events {
			s = real
		}
		seal(s, slices.Repeat([]chain.Entry{e}, min(batch, events-done)))
	}
	if _, err := out.WriteTo(f); err != nil {
		b.Fatal(err)
	}
}

// quickSigner signs with as many bytes as a signature has.
type quickSigner struct{ note.Signer }

func (q quickSigner) Sign([]byte) ([]byte, error) { return []byte(strings.Repeat("x", 64)), nil }

// BenchmarkLedger is durable appends to the ledger, and what a command pays to
// open it.
func BenchmarkLedger(b *testing.B) {
	b.Run("append", func(b *testing.B) {
		l, err := OpenLedger(benchDir(b))
		if err != nil {
			b.Fatal(err)
		}
		defer l.Close()
		b.ResetTimer()
		for range b.N {
			if err := l.Append(b.Context(), benchEvent); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("open", func(b *testing.B) {
		dir := benchDir(b)
		for range b.N {
			l, err := OpenLedger(dir)
			if err != nil {
				b.Fatal(err)
			}
			l.Close()
		}
	})
}
