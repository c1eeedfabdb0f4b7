// Package summary tells from the audit record what one run was: [Named] finds
// the sandbox that a user means, also one that is gone, and [Of] makes the
// receipt of its run, unsigned. It believes the record, the ledger before the
// log: its caller verifies that first. The package must not write, sign, or ask anybody but the record.
package summary

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"creel/internal/audit"
	"creel/internal/audit/event"
	"creel/internal/audit/query"
	"creel/internal/audit/receipt"
)

// ErrUnknown is of a sandbox that the ledger does not know.
var ErrUnknown = errors.New("the audit record has no such sandbox")

// ErrPruned is of a run whose log was removed.
var ErrPruned = errors.New("its audit log was pruned, so no receipt of it can be made any more")

// ErrOpen is of a run whose log has not been closed.
var ErrOpen = errors.New("its run has not ended, and a receipt is of one that has")

// Named returns the ID of the sandbox whose name, ID or beginning of an ID ref
// is, as the ledger in dir knows them. Of several of a name it is the one that
// ran last: a name that was taken is refused only after the admission.
func Named(ctx context.Context, dir, ref string) (string, error) {
	ran := ""
	var byName, byID []string // in the order of their first admission; a new policy is another
	kinds := []audit.Kind{audit.KindAdmitted, audit.KindOpened}
	for r, err := range query.Records(ctx, dir, query.Filter{Kinds: kinds, LedgerOnly: true}) {
		if err != nil {
			return "", err
		}
		if r.Kind == audit.KindOpened {
			if slices.Contains(byName, r.Sandbox) {
				ran = r.Sandbox
			}
			continue
		}
		var a event.Admitted
		if json.Unmarshal(r.Data, &a) == nil && a.Name == ref && !slices.Contains(byName, r.Sandbox) {
			byName = append(byName, r.Sandbox)
		}
		if ref != "" && strings.HasPrefix(r.Sandbox, ref) && !slices.Contains(byID, r.Sandbox) {
			byID = append(byID, r.Sandbox)
		}
	}
	switch {
	case ran != "":
		return ran, nil
	case len(byName) > 0:
		return byName[len(byName)-1], nil
	case len(byID) == 1:
		return byID[0], nil
	case len(byID) > 1:
		return "", fmt.Errorf("%q begins the IDs of %d sandboxes; give more digits", ref, len(byID))
	}
	return "", fmt.Errorf("%w: %s; `creel audit query --kind admitted` lists those it has", ErrUnknown, ref)
}

// Of makes the receipt of a sandbox's run from the audit directory dir; id is
// its full ID. What helper clones did for its files counts as well. The
// ledger's head is its caller's to fill in.
func Of(ctx context.Context, dir, id string) (receipt.Receipt, error) {
	t := teller{out: receipt.Receipt{Sandbox: id}, admitted: map[string]event.Admitted{}, network: newNetwork()}
	// What the ledger says first: a keeper, which writes the log, may have been
	// taken over, and must not have a say in that.
	for _, pass := range []struct {
		ledger bool
		take   func(audit.Record) error
	}{{true, t.ledger}, {false, t.logs}} {
		for r, err := range query.Records(ctx, dir, query.Filter{Sandbox: id, LedgerOnly: pass.ledger}) {
			if err == nil {
				err = pass.take(r)
			}
			if err != nil {
				return receipt.Receipt{}, fmt.Errorf("read record of sandbox %s: %w", id, err)
			}
		}
		switch {
		case !t.pruned.IsZero():
			return receipt.Receipt{}, fmt.Errorf("sandbox %s: %w: that was on %s, and the ledger still has its end, line %d with root %s; a receipt that was made before still verifies",
				id, ErrPruned, t.pruned.Local().Format(time.DateOnly), t.out.Audit.Log.Size, t.out.Audit.Log.Root)
		case len(t.admitted) == 0:
			return receipt.Receipt{}, fmt.Errorf("%w: %s", ErrUnknown, id)
		case t.log == "":
			return receipt.Receipt{}, fmt.Errorf("sandbox %s: its run never began, so there is no receipt of it", id)
		case t.closed.IsZero():
			return receipt.Receipt{}, fmt.Errorf("sandbox %s: %w", id, ErrOpen)
		}
	}
	t.network.fill(&t.out, t.admitted[t.out.Policies[len(t.out.Policies)-1]].Budget)
	return t.out, nil
}

type teller struct {
	out      receipt.Receipt
	admitted map[string]event.Admitted // by the policy's digest
	log      string                    // origin of the run's own log: the first that was opened
	closed   time.Time                 // when that log was closed
	pruned   time.Time                 // when the first log of the sandbox was
	looked   bool                      // the engine has looked at what was left
	network  network
}

func (t *teller) ledger(r audit.Record) error {
	o := &t.out
	switch r.Kind {
	case audit.KindAdmitted:
		return with(r, func(a event.Admitted) {
			if len(t.admitted) == 0 {
				o.Policies = []string{a.Policy}
			} // a later one lets another policy in; the log says whether it came into force
			t.admitted[a.Policy] = a
			o.Name, o.Image, o.Tier = a.Name, a.Image, a.Tier
		})
	case audit.KindTemplate:
		return with(r, func(m event.Template) { o.Template, o.Accel = m.Template, m.Accel })
	case audit.KindOpened:
		return with(r, func(l audit.Opened) {
			if t.log == "" {
				t.log = l.Log
			}
		})
	case audit.KindClosed:
		return with(r, func(c audit.Closed) {
			if c.Log == t.log {
				t.closed = r.Time
				if c.Head != nil {
					o.Audit.Log = *c.Head
				}
			}
		})
	case audit.KindPruned:
		if t.pruned.IsZero() {
			t.pruned = r.Time
		}
		return nil
	case audit.KindCleanup:
		t.looked = true
		return with(r, t.cleanup)
	}
	return unreadable(r)
}

func (t *teller) logs(r audit.Record) error {
	o := &t.out
	own := !r.Time.After(t.closed) // what is later is of helper clones
	switch {
	case r.Kind == event.KindConfined && o.Confinement == "":
		return with(r, func(c event.Confined) { o.Confinement = c.VMM + "; keeper: " + c.Keeper })
	case r.Kind == audit.KindStarted && own:
		o.Started = r.Time
	case r.Kind == audit.KindExit && own:
		return with(r, func(e event.Exit) { o.ExitCode, o.Finished = &e.ExitCode, r.Time })
	case r.Kind == audit.KindCleanup && !t.looked:
		return with(r, t.cleanup)
	case r.Kind == event.KindPolicy && own:
		return with(r, t.policy)
	case r.Kind == event.KindCopied:
		return with(r, func(c event.Copied) {
			f := receipt.File{Path: c.Path, Digest: c.Digest, Bytes: c.Bytes}
			if c.Direction == event.In {
				o.FilesIn = append(o.FilesIn, f)
			} else {
				o.FilesOut = append(o.FilesOut, f)
			}
		})
	}
	if err := unreadable(r); err != nil {
		return err
	}
	return t.network.take(r)
}

// policy follows what came into force. The ledger says what may have.
func (t *teller) policy(p event.Policy) {
	o := &t.out
	_, admitted := t.admitted[p.Policy]
	admitted = admitted || p.Policy == event.NoPolicy
	switch first := p.Policy == o.Policies[0]; {
	case !admitted || p.Generation == 1 && !first:
		o.Contradictions = append(o.Contradictions, fmt.Sprintf("policy %.71q was in force, but not admitted", p.Policy))
	case p.Generation != 1:
		o.Policies = append(o.Policies, p.Policy)
	}
}

func (t *teller) cleanup(c event.Cleanup) {
	t.out.Cleanup = receipt.Cleanup{Complete: c.Complete, Checked: c.Checked, Left: c.Left, Kept: c.Kept}
}

func unreadable(r audit.Record) error {
	if r.Kind == query.KindUnreadable {
		return fmt.Errorf("it cannot be read to its end: %s", r.Data)
	}
	return nil
}

// with decodes a record's data for take.
func with[T any](r audit.Record, take func(T)) error {
	var v T
	if err := json.Unmarshal(r.Data, &v); err != nil {
		return fmt.Errorf("record %d of kind %s: %w", r.Seq, r.Kind, err)
	}
	take(v)
	return nil
}
