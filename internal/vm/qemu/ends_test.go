package qemu

import (
	"context"
	"strings"
	"testing"
	"time"

	"creel/internal/procs"
	"creel/internal/vm"
)

// A VMM that is stopped while it comes up is given up, in words.
func TestVMMThatDoesNotComeUp(t *testing.T) {
	conn, theirs, err := procs.Pair()
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	m := &machine{qmp: newQMP(conn), patience: 20 * time.Millisecond}
	go m.qmp.read(func(event) {})
	defer func() { conn.Close(); <-m.qmp.closed }()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := m.bringUp(ctx, vm.Config{}); err == nil || !strings.Contains(err.Error(), "the VMM does not answer") {
		t.Errorf("got %v", err)
	}
}
