package keeper

import (
	"creel/internal/audit/event"
	"creel/internal/vm"
)

// heedFaults puts the first error of the host's disk on record and into the
// status. The guest gets it as an error of its own disk; since that may come
// long after the write that it is about, the task need not notice.
func (r *Run) heedFaults() {
	m, ok := r.machine.(vm.Faulter)
	if !ok {
		return
	}
	select {
	case f := <-m.Faults():
		r.noteFault(f)
	case <-r.over:
	}
}

// lastFault is for a fault of the run's last moments, when its disk is written
// out. The machine has ended.
func (r *Run) lastFault() {
	if m, ok := r.machine.(vm.Faulter); ok && r.Status().DiskFault == "" {
		select {
		case f := <-m.Faults():
			r.noteFault(f)
		default:
		}
	}
}

func (r *Run) noteFault(f vm.Fault) {
	words := faultWords(f)
	r.deps.Log.Error(words, "disk", f.Disk)
	r.tell(event.KindDiskFault, event.DiskFault{Disk: f.Disk, Write: f.Write, Full: f.NoSpace}) // the log may be on the same disk
	r.mu.Lock()
	defer r.mu.Unlock()
	r.status.DiskFault = words
	if r.isOver() {
		return // what is final is about to be saved
	}
	if err := r.saveLocked(); err != nil {
		r.deps.Log.Error("a fault of the host's disk is not in the status", "err", err)
	}
}

// faultWords is a fault in words, with what to do.
func faultWords(f vm.Fault) string {
	switch {
	case f.NoSpace:
		return "the host's disk is full, and what the task wrote is not all there: free some space, or set CREEL_STATE_DIR to a larger disk"
	case f.Write:
		return "the host's disk refused a write, and what the task wrote is not all there: look at the host's log"
	}
	return "the host's disk refused a read: look at the host's log"
}
