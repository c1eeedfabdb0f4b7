package holder

import (
	"context"
	"errors"
	"sync"
	"time"

	"creel/internal/procs"

	"golang.org/x/sys/unix"
)

// usualPatience is how long a holder may do nothing at all while its answer is
// waited for. One that hashes a file that has changed uses a processor.
const usualPatience = 15 * time.Second

// errHung is of a holder that was stopped, or hangs. It was killed, which ends
// no clone: each has the memory open itself.
var errHung = errors.New("the template's holder did not answer and did nothing, stopped or hanging, and was killed; run again")

func (c *Client) patience() time.Duration {
	if c.Patience > 0 {
		return c.Patience
	}
	return usualPatience
}

// giveUp ends the returned context with errHung, and the process, when that has
// used no processor for as long as patience lasts. stop ends the watch.
func giveUp(ctx context.Context, pid int, patience time.Duration) (_ context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	process, err := procs.Open(pid)
	if err != nil { // it has gone, or cannot be seen from here
		return ctx, func() { cancel(nil) }
	}
	var watch sync.WaitGroup
	watch.Go(func() {
		tick := time.NewTicker(patience)
		defer tick.Stop()
		for last, _ := procs.ReadStat(pid); ; { // of one that cannot be looked at, zero
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			now, _ := procs.ReadStat(pid)
			if now.CPU == last.CPU {
				process.Signal(unix.SIGKILL)
				process.Ends(patience)
				cancel(errHung)
				return
			}
			last = now
		}
	})
	return ctx, func() {
		cancel(nil)
		watch.Wait()
		process.Close()
	}
}
