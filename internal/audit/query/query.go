// Package query reads ledger and logs as one stream of records in the order of
// time, and can go on as they are written. [Filter] says which records,
// [Records] yields them, [Export] writes them as JSON lines. It shows what the
// files say; only [audit.Verify] says whether that is true. The package must
// not write.
package query

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"creel/internal/audit"
)

// KindUnreadable is of a record that is in no file: it stands where a file
// cannot be read further, and says why.
const KindUnreadable audit.Kind = "unreadable"

// Filter says which records are wanted; a zero field means any.
type Filter struct {
	Sandbox  string // its ID, or the first digits of it
	Kinds    []audit.Kind
	Since    time.Time // from here
	Until    time.Time // before here
	Decision string    // allow or deny, as the record's data has it; admitted and refused are decisions too
	Host     string    // the name or address that was asked for, or the address it led to; *.NAME for NAME and below

	// LedgerOnly leaves the sandboxes' own logs out.
	LedgerOnly bool

	// Follow goes on with what is written later, until the context ends.
	Follow bool
}

// Match reports whether the filter lets r through.
func (f *Filter) Match(r audit.Record) bool {
	switch {
	case !strings.HasPrefix(r.Sandbox, f.Sandbox),
		len(f.Kinds) > 0 && !slices.Contains(f.Kinds, r.Kind),
		!f.Since.IsZero() && r.Time.Before(f.Since),
		!f.Until.IsZero() && !r.Time.Before(f.Until):
		return false
	case f.Decision == "" && f.Host == "":
		return true
	}
	var d struct {
		Decision string `json:"decision"`
		Host     string `json:"host"`
		Address  string `json:"address"` // ADDRESS:PORT
	}
	if len(r.Data) == 0 || json.Unmarshal(r.Data, &d) != nil {
		return false
	}
	switch r.Kind {
	case audit.KindAdmitted:
		d.Decision = "allow"
	case audit.KindRefused:
		d.Decision = "deny"
	}
	if f.Decision != "" && f.Decision != d.Decision {
		return false
	}
	if f.Host == "" || matchHost(f.Host, d.Host) {
		return true
	}
	address, _, err := net.SplitHostPort(d.Address)
	return err == nil && matchHost(f.Host, address)
}

func matchHost(want, host string) bool {
	if parent, ok := strings.CutPrefix(want, "*."); ok {
		return strings.EqualFold(host, parent) || len(host) > len(parent) && strings.EqualFold(host[len(host)-len(parent)-1:], "."+parent)
	}
	if strings.EqualFold(want, host) {
		return true
	}
	// One address may be written in several ways.
	a, err := netip.ParseAddr(want)
	if err != nil {
		return false
	}
	b, err := netip.ParseAddr(host)
	return err == nil && a == b
}

// Records yields the records of the audit directory dir that f lets through,
// by time. A record is there once a checkpoint covers it. Only the logs that
// were open at the same time are held open at the same time. An error ends the
// sequence; the end of the context is one.
func Records(ctx context.Context, dir string, f Filter) iter.Seq2[audit.Record, error] {
	return func(yield func(audit.Record, error) bool) {
		m := &merge{dir: dir, filter: f, sources: []*source{newLedger(dir)}}
		defer m.close()
		if f.Follow {
			w, err := newWatch(ctx)
			if err != nil {
				yield(audit.Record{}, err)
				return
			}
			defer w.close()
			m.watch = w
		}
		for {
			r, err := m.next(ctx)
			if errors.Is(err, io.EOF) {
				return
			}
			if err != nil {
				yield(audit.Record{}, err)
				return
			}
			if f.Match(r) && !yield(r, nil) {
				return
			}
		}
	}
}

// merge takes the oldest record of several sources each time. A log becomes a
// source when the ledger comes to its opening, and stops to be one at its end
// once the ledger has come to its closing.
type merge struct {
	dir     string
	filter  Filter
	sources []*source // the ledger is the first
	watch   *watch    // nil: do not follow
}

func (m *merge) next(ctx context.Context) (audit.Record, error) {
	for {
		if err := ctx.Err(); err != nil {
			return audit.Record{}, err
		}
		if m.watch != nil {
			// Before looking, so that what comes after the look wakes us.
			if err := m.watch.cover(m.sources); err != nil {
				return audit.Record{}, errors.Join(ctx.Err(), err)
			}
		}
		best, err := m.oldest()
		if err != nil {
			return audit.Record{}, err
		}
		if best != nil {
			r := best.take()
			if best == m.sources[0] {
				err = m.follow(r)
			}
			return r, err
		}
		if m.watch == nil {
			return audit.Record{}, io.EOF
		}
		if err := m.watch.wait(); err != nil {
			return audit.Record{}, errors.Join(ctx.Err(), err)
		}
	}
}

// oldest returns the source with the oldest record, and drops those that have
// come to their end.
func (m *merge) oldest() (best *source, err error) {
	kept := m.sources[:0]
	for i, s := range m.sources {
		there, err := s.fill()
		if err != nil {
			return nil, err
		}
		if !there && s.closed && i > 0 {
			s.close()
			continue
		}
		kept = append(kept, s)
		if there && (best == nil || s.peek().Time.Before(best.peek().Time)) {
			best = s
		}
	}
	clear(m.sources[len(kept):])
	m.sources = kept
	return best, nil
}

// follow adds or ends a log that a record of the ledger is about.
func (m *merge) follow(r audit.Record) error {
	if m.filter.LedgerOnly || !strings.HasPrefix(r.Sandbox, m.filter.Sandbox) {
		return nil
	}
	switch r.Kind {
	case audit.KindOpened:
		var o audit.Opened
		if err := json.Unmarshal(r.Data, &o); err != nil {
			return fmt.Errorf("read ledger: record %d: %w", r.Seq, err)
		}
		m.sources = append(m.sources, newLog(m.dir, r.Sandbox, o))
	case audit.KindClosed:
		var c audit.Closed
		if err := json.Unmarshal(r.Data, &c); err != nil {
			return fmt.Errorf("read ledger: record %d: %w", r.Seq, err)
		}
		for _, s := range m.sources {
			if s.origin == c.Log {
				s.closed = true
			}
		}
	}
	return nil
}

func (m *merge) close() {
	for _, s := range m.sources {
		s.close()
	}
}

// exported is a record as [Export] writes it: as it stands on disk.
type exported struct {
	V       int             `json:"v"`
	Seq     int64           `json:"seq"`
	Time    time.Time       `json:"time"`
	Kind    audit.Kind      `json:"kind"`
	Sandbox string          `json:"sandbox,omitempty"`
	Data    json.RawMessage `json:"data,omitempty"`
}

// Export writes records as JSON lines.
func Export(w io.Writer, records iter.Seq2[audit.Record, error]) error {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	for r, err := range records {
		if err != nil {
			return err
		}
		buf.Reset()
		if err := enc.Encode(exported{audit.Version, r.Seq, r.Time, r.Kind, r.Sandbox, r.Data}); err != nil {
			return fmt.Errorf("encode record %d: %w", r.Seq, err)
		}
		if _, err := w.Write(buf.Bytes()); err != nil {
			return fmt.Errorf("write record %d: %w", r.Seq, err)
		}
	}
	return nil
}
