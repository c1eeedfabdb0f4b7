package keeper

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"

	"creel/internal/audit"
)

// heeded is a Recorder that notices when the log has no more room: from then on
// little happens in the sandbox, and people have to be told why.
type heeded struct {
	audit.Recorder
	log   *slog.Logger
	stale chan<- struct{} // told that the status has changed

	whole, visitors atomic.Pointer[audit.QuotaError] // nil: there is room
}

// Append implements [audit.Recorder].
func (h *heeded) Append(ctx context.Context, events ...audit.Event) error {
	err := h.Recorder.Append(ctx, events...)
	h.heed(err)
	return err
}

// Note implements [audit.Recorder].
func (h *heeded) Note(failed func(error), events ...audit.Event) {
	h.Recorder.Note(func(err error) {
		h.heed(err)
		failed(err)
	}, events...)
}

func (h *heeded) heed(err error) {
	var full *audit.QuotaError
	if !errors.As(err, &full) {
		return
	}
	to := &h.whole
	if full.Visitors {
		to = &h.visitors
	}
	if !to.CompareAndSwap(nil, full) {
		return
	}
	h.log.Error(h.words())
	select {
	case h.stale <- struct{}{}:
	default: // it is about to be written anyway
	}
}

// words say that there is no more room, and what that means; "": there is.
func (h *heeded) words() string {
	const next = "start another sandbox to go on"
	if full := h.whole.Load(); full != nil {
		return fmt.Sprintf("its audit log is full (%s): the task reaches nothing more, and nobody reaches its ports; "+
			"it can still be looked into and ended; %s, with a larger `auditQuota` where there is one", mebibytes(full.Bytes), next)
	}
	if full := h.visitors.Load(); full != nil {
		return fmt.Sprintf("its audit log has no more room for visitors of its ports (%s): nobody else is let in; the task goes on; %s",
			mebibytes(full.Bytes), next)
	}
	return ""
}

func mebibytes(n int64) string { return fmt.Sprintf("%.4g MiB", float64(n)/(1<<20)) }
