package event_test

import (
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"strconv"
	"strings"
	"testing"

	"creel/internal/audit"
	"creel/internal/audit/event"
)

// Package audit keeps room for these kinds, and cannot name them by their
// constants.
func TestRoomIsKeptForTheseKinds(t *testing.T) {
	for _, kind := range []audit.Kind{event.KindPolicy, event.KindSecrets, event.KindAlert, event.KindStep, event.KindCopied,
		event.KindName, event.KindDenied, event.KindFailed, event.KindBudget, event.KindDropped, event.KindDiskFault} {
		if !audit.HasRoom(kind) {
			t.Errorf("no room is kept for %s", kind)
		}
	}
	for _, kind := range []audit.Kind{event.KindLookup, event.KindConnection, event.KindRequest, event.KindDisconnected} {
		if audit.HasRoom(kind) {
			t.Errorf("a guest has a say in how many records there are of %s", kind)
		}
	}
}

// A kind that nobody has given a class would be a guest's, and a commit that it
// is in with it.
func TestEveryKindHasAClass(t *testing.T) {
	kinds := append(kindsIn(t, "event.go"), kindsIn(t, "../audit.go")...)
	if len(kinds) < 30 {
		t.Fatalf("found only %v", kinds)
	}
	for _, kind := range kinds {
		if !audit.HasClass(kind) {
			t.Errorf("kind %s has no class: say in package audit who has a say in how many there are", kind)
		}
	}
}

// kindsIn are the constants of type Kind in a source file.
func kindsIn(t *testing.T, name string) (kinds []audit.Kind) {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok || !isKind(spec.Type) {
			return true
		}
		for _, v := range spec.Values {
			if text, err := strconv.Unquote(v.(*ast.BasicLit).Value); err == nil {
				kinds = append(kinds, audit.Kind(text))
			}
		}
		return true
	})
	return kinds
}

func isKind(typ ast.Expr) bool {
	if of, ok := typ.(*ast.SelectorExpr); ok {
		typ = of.Sel
	}
	name, ok := typ.(*ast.Ident)
	return ok && name.Name == "Kind"
}

// A guest that has used up its room does not silence what it is denied by what
// is tallied along with it, nor the fault of a disk.
func TestAFullLogTakesTallies(t *testing.T) {
	dir, id := t.TempDir(), strings.Repeat("a", 32)
	ledger, err := audit.OpenLedger(t.TempDir() + "/audit")
	if err != nil {
		t.Fatal(err)
	}
	defer ledger.Close()
	ledger.MaxLog = audit.MinMaxLog
	key, err := ledger.OpenSandbox(t.Context(), id, dir)
	if err != nil {
		t.Fatal(err)
	}
	log, err := audit.OpenLog(dir, key)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	of := func(kind audit.Kind, size int) audit.Event {
		return audit.Event{Kind: kind, Sandbox: id, Data: event.Request{Path: strings.Repeat("x", size)}}
	}
	for _, size := range []int{16 << 10, 1} {
		for err = nil; err == nil; {
			err = log.Append(t.Context(), of(event.KindRequest, size))
		}
		if !errors.Is(err, audit.ErrQuota) {
			t.Fatal(err)
		}
	}
	if err := log.Append(t.Context(), of(event.KindDenied, 1), of(event.KindName, 1), of(event.KindFailed, 1)); err != nil {
		t.Errorf("tallies: %v", err)
	}
	if err := log.Append(t.Context(), of(event.KindDiskFault, 1)); err != nil {
		t.Errorf("a disk's fault: %v", err)
	}
}
