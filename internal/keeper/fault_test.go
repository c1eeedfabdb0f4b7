package keeper

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"creel/internal/audit"
	"creel/internal/audit/event"
	"creel/internal/guest/api"
	"creel/internal/keeper/launch"
	"creel/internal/keeper/rundir"
	"creel/internal/vm"
	"creel/internal/wire"
)

// A fault of the host's disk is in the status at once, on record, and no task
// that may have lost what it wrote ends with 0.
func TestFaultOfTheHostsDisk(t *testing.T) {
	for _, tc := range []struct {
		args  []string
		fault vm.Fault
		code  int
		words string
	}{
		{[]string{"wait"}, vm.Fault{Write: true, NoSpace: true}, 143, "the host's disk is full"},
		{[]string{"cat"}, vm.Fault{Write: true, NoSpace: true}, 125, "free some space"},
		{[]string{"cat"}, vm.Fault{Write: true}, 125, "refused a write"},
		{[]string{"cat"}, vm.Fault{}, 125, "refused a read"},
	} {
		r, c := started(t, options{args: tc.args})
		r.driver.Machines()[0].Fault(tc.fault)
		awaitFault(t, r)
		if tc.args[0] == "wait" {
			if err := c.Signal(t.Context(), 15); err != nil {
				t.Fatal(err)
			}
		} else {
			stdin, output := attach(t, c, everything)
			stdin.Close()
			output()
		}
		want(t, r.final(c), tc.code, tc.words)
		if !has(r.audit.kinds(), "disk-fault") {
			t.Errorf("on record: %v", r.audit.kinds())
		}
	}
}

// The log is on the same disk, most likely: the record of the fault comes once
// there is room, or the record of the end says that it never came.
func TestFaultIsOnRecordOnceThereIsRoom(t *testing.T) {
	for _, room := range []bool{true, false} {
		r, c := started(t, options{args: []string{"wait"}})
		r.audit.failAll(true)
		r.driver.Machines()[0].Fault(vm.Fault{Write: true, NoSpace: true})
		awaitFault(t, r)
		r.audit.failAll(!room)
		if err := c.Kill(t.Context()); err != nil {
			t.Fatal(err)
		}
		r.final(c)
		late := slices.ContainsFunc(r.audit.events, func(e audit.Event) bool {
			fault, ok := e.Data.(event.DiskFault)
			return ok && fault.Full && !fault.When.IsZero()
		})
		if missed := exitOf(t, r).Unrecorded[event.KindDiskFault]; late != room || (missed == 1) == room {
			t.Errorf("room %v: on record %v, missed %d", room, r.audit.kinds(), missed)
		}
	}
}

// awaitFault returns when the status that others read has the fault.
func awaitFault(t *testing.T, r *rig) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		if s, err := rundir.ReadStatus(r.dir); err == nil && s.DiskFault != "" {
			return
		}
		select {
		case <-tick.C:
		case <-t.Context().Done():
			t.Fatal("the status does not say it")
		}
	}
}

// A fault that comes when the disk is written out at the end counts, too.
func TestFaultAtTheEnd(t *testing.T) {
	var r *rig
	guest := &script{answer: func(_ context.Context, s *wire.Stream) bool {
		if s.Op() == api.OpShutdown {
			r.driver.Machines()[0].Fault(vm.Fault{Write: true, NoSpace: true})
		}
		return false
	}}
	r, c := begin(t, options{args: []string{"exit", "0"}, guest: guest,
		with: func(_ *rig, cfg *launch.Config, _ *Deps) { cfg.Spec.Keep = true }})
	if err := c.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s := r.final(c); s.ExitCode != 125 || !strings.Contains(s.Error, "disk is full") {
		t.Errorf("ended with %d, %q", s.ExitCode, s.Error)
	}
}
