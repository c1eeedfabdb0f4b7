package keeper

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync/atomic"
)

// Memory bounds what the process of a run may hold, in bytes. Guest and
// upstreams choose many sizes; each has a bound, and this is the bound of all of
// them together. It ends this run, before the host has to choose whom it ends.
type Memory struct {
	Goal int64 // from here on the collector works harder
	Most int64 // the run ends; 0: never
	Data int64 // the kernel gives no more than this
}

// UsualMemory is that of a keeper. What its network may hold at worst is in
// docs/network.md.
var UsualMemory = Memory{Goal: 640 << 20, Most: 768 << 20, Data: 1 << 30}

// watchMemory ends the run when the process holds too much, until it is stopped.
// It looks at the end of each collection: nothing grows without one.
func (r *Run) watchMemory() (stop func()) {
	m := r.deps.Memory
	if m.Most == 0 {
		return func() {}
	}
	before := debug.SetMemoryLimit(m.Goal)
	var stopped atomic.Bool
	afterCollection(func() bool {
		if stopped.Load() {
			return false
		}
		if held := heldMemory(); held > m.Most {
			r.abandon(fmt.Errorf("its keeper held %d MiB of memory, and may hold %d: what the task or its destinations sent cost too much; use fewer connections and requests at once, and see Bounds in docs/network.md",
				held>>20, m.Most>>20))
			return false
		}
		return true
	})
	return func() {
		stopped.Store(true)
		debug.SetMemoryLimit(before)
	}
}

// afterCollection calls do once each collection of garbage has ended, until it
// returns false.
func afterCollection(do func() bool) {
	type bell struct{ _ [16]byte } // of a size that is not put together with others
	var ring func(struct{})
	ring = func(struct{}) {
		if do() {
			runtime.AddCleanup(new(bell), ring, struct{}{})
		}
	}
	runtime.AddCleanup(new(bell), ring, struct{}{})
}

// heldMemory is what the runtime has of the host, in bytes, as its own limit
// counts it, without what is garbage for all that is known.
func heldMemory() int64 {
	s := []metrics.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/memory/classes/heap/stacks:bytes"}}
	metrics.Read(s)
	return int64(s[0].Value.Uint64() + s[1].Value.Uint64())
}
