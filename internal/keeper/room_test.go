package keeper

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"creel/internal/keeper/launch"
	"creel/internal/keeper/socket"
	"creel/internal/vm"
)

const mib = 1 << 20

// The disk that takes the host's last room is given up, and those that hardly
// write are not.
func TestGrowth(t *testing.T) {
	const size = 100 << 30 // of which 1 GiB is the reserve
	type step struct{ used, free int64 }
	for name, tc := range map[string]struct {
		every time.Duration
		looks []step
		ends  bool
	}{
		"writes where there is room":          {time.Second, []step{{0, 9000 * mib}, {4000 * mib, 5000 * mib}, {4400 * mib, 600 * mib}}, false},
		"writes into half of the reserve":     {time.Second, []step{{0, 900 * mib}, {450 * mib, 450 * mib}}, true},
		"does not write":                      {time.Second, []step{{4000 * mib, 900 * mib}, {4000 * mib, 100 * mib}, {4000 * mib, 0}}, false},
		"writes little":                       {time.Second, []step{{4000 * mib, 900 * mib}, {4001 * mib, 500 * mib}, {4002 * mib, 40 * mib}}, false},
		"writes little, and that is all":      {time.Second, []step{{4000 * mib, 900 * mib}, {4003 * mib, 500 * mib}, {4006 * mib, 4 * mib}}, true},
		"wrote much a while ago":              {10 * time.Second, []step{{0, 900 * mib}, {450 * mib, 550 * mib}, {450 * mib, 100 * mib}}, false},
		"is much when it is first looked at":  {time.Second, []step{{4000 * mib, 1 * mib}}, false},
		"gives room back":                     {time.Second, []step{{4000 * mib, 100 * mib}, {3000 * mib, 300 * mib}}, false},
		"fills what its host's root has left": {time.Second, []step{{0, 0}, {5 * mib, 0}}, true},
		"has only been started":               {time.Second, []step{{0, mib}, {2 * mib, 0}, {2 * mib, 0}}, false},
	} {
		g, now := &growth{}, time.Now()
		var err error
		for _, s := range tc.looks {
			now = now.Add(tc.every)
			if err = g.take(now, Room{Used: s.used, Free: s.free, Size: size}); err != nil {
				break
			}
		}
		if (err != nil) != tc.ends {
			t.Errorf("a disk that %s: %v", name, err)
		}
	}
}

// hostDisk is a disk of the host that two sandboxes share.
type hostDisk struct {
	mu   sync.Mutex
	used map[string]int64 // by file
	free int64
}

func (h *hostDisk) room(disk *os.File) (Room, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return Room{Used: h.used[disk.Name()], Free: h.free, Size: 100 << 30}, nil
}

func (h *hostDisk) write(disk string, n int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.used[disk] += n
	h.free -= n
}

// A task that fills the host's disk ends, with the reason, before the disk is
// full; its neighbour, which has a disk there, too, goes on.
func TestTaskThatFillsTheHostsDisk(t *testing.T) {
	h := &hostDisk{used: map[string]int64{}, free: 5 << 30}
	run := func() (*rig, *socket.Client, string) {
		path := filepath.Join(t.TempDir(), "scratch.img")
		disk, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		r, c := started(t, options{limit: func(d *deadlines) { d.look = 10 * time.Millisecond },
			with: func(r *rig, _ *launch.Config, deps *Deps) {
				deps.Room = h.room
				deps.Parts = func(context.Context) (*Parts, error) {
					r.parts.Add(1)
					return &Parts{Disks: []vm.Disk{{Serial: "root", ReadOnly: true}, {Serial: "scratch", File: disk}},
						Close: func() error { r.parts.Add(-1); return disk.Close() }}, nil
				}
			}})
		return r, c, path
	}
	filler, fc, path := run()
	bystander, bc, other := run()
	h.write(other, 10*mib)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for full := false; !full; {
		select {
		case <-filler.run.over:
			full = true
		case <-tick.C:
			h.mu.Lock()
			none := h.free < 20*mib
			h.mu.Unlock()
			if none {
				t.Fatal("the host's disk is full")
			}
			h.write(path, 4*mib)
		}
	}
	want(t, filler.final(fc), 125, "the host's disk is nearly full", "this task was writing to it")
	select {
	case <-bystander.run.over:
		t.Error("the neighbour ended, too")
	default:
	}
	if err := bc.Signal(t.Context(), 15); err != nil {
		t.Fatal(err)
	}
	want(t, bystander.final(bc), 143)
}

func TestRoomOf(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "disk"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(strings.Repeat("x", mib)); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	room, err := RoomOf(f)
	if err != nil || room.Used < mib || room.Used > 2*mib || room.Free <= 0 || room.Size < room.Free {
		t.Errorf("%+v, %v", room, err)
	}
}
