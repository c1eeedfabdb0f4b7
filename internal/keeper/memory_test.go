package keeper

import (
	"creel/internal/keeper/launch"
	"math"
	"runtime"
	"testing"
)

// TestTooMuchMemoryEndsTheRun grows the process as an upstream would.
func TestTooMuchMemoryEndsTheRun(t *testing.T) {
	const most, ballast = 64 << 20, 96 << 20
	runtime.GC()
	limited := options{with: func(_ *rig, _ *launch.Config, d *Deps) {
		d.Memory = Memory{Goal: math.MaxInt64, Most: heldMemory() + most}
	}}
	r, c := started(t, limited)
	for range 3 {
		runtime.GC() // it looks each time
	}
	if s := r.run.Status(); s.Error != "" {
		t.Fatalf("it ended with little: %s", s.Error)
	}
	held := make([]byte, ballast)
	runtime.GC()
	want(t, r.final(c), 125, "MiB of memory", "fewer connections")
	runtime.KeepAlive(held)
}

func TestMemoryIsWatchedUntilTheEnd(t *testing.T) {
	rung, left := make(chan struct{}, 10), 3
	afterCollection(func() bool {
		left--
		rung <- struct{}{}
		return left > 0
	})
	for range 1000 { // a collection that has begun already may not tell
		if runtime.GC(); len(rung) == 3 {
			break
		}
		runtime.Gosched()
	}
	runtime.GC()
	runtime.GC()
	if len(rung) != 3 {
		t.Errorf("it was told %d times", len(rung))
	}
}
