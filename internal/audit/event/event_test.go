package event_test

import (
	"testing"

	"creel/internal/audit"
	"creel/internal/audit/event"
)

// Package audit keeps room for these kinds, and cannot name them by their
// constants.
func TestRoomIsKeptForTheseKinds(t *testing.T) {
	for _, kind := range []audit.Kind{event.KindPolicy, event.KindSecrets, event.KindAlert, event.KindStep, event.KindCopied,
		event.KindName, event.KindDenied, event.KindBudget, event.KindDropped,
		event.KindPublished, event.KindVisits} {
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
