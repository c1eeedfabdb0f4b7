package qemu

import (
	"context"
	"errors"
	"time"
)

const (
	internalError = "internal-error" // QEMU's word for the state
	statusLimit   = 10 * time.Second // for it to say so
)

// errBroken goes before what QEMU said of it.
var errBroken = errors.New("KVM could not go on with the guest (internal error); use --accel=tcg if it happens again")

// stopped has watchStops look. A VMM that floods is asked no more often.
func (m *machine) stopped() {
	select {
	case m.stops <- struct{}{}:
	default:
	}
}

func (m *machine) watchStops() {
	for {
		select {
		case <-m.stops:
			m.endBroken()
		case <-m.qmp.closed:
			return
		}
	}
}

// endBroken ends a machine whose virtual CPUs were stopped by an internal error
// of KVM: the VMM stays for a debugger that never comes. Stops that were asked
// for, by Pause and Snapshot, leave another state.
func (m *machine) endBroken() {
	ctx, cancel := context.WithTimeout(context.Background(), statusLimit)
	defer cancel()
	var status struct {
		Status string `json:"status"`
	}
	if err := m.qmp.ask(ctx, "query-status", &status); err != nil || status.Status != internalError {
		return // an error is of a VMM that has ended, or answers nothing any more
	}
	m.mu.Lock()
	m.reason = internalError
	m.mu.Unlock()
	m.process.Kill() // fails for one that has ended
}
