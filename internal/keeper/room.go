package keeper

import (
	"fmt"
	"os"
	"time"

	"creel/internal/diskroom"

	"github.com/docker/go-units"
	"golang.org/x/sys/unix"
)

// Room is what is known of a sandbox's disk and of the host's disk that it is
// on, in bytes.
type Room struct {
	Used int64 // of the host's disk, by the sandbox's
	Free int64 // for users
	Size int64
}

// RoomOf looks at the file of a disk.
func RoomOf(disk *os.File) (Room, error) {
	var file unix.Stat_t
	if err := unix.Fstat(int(disk.Fd()), &file); err != nil {
		return Room{}, fmt.Errorf("look at the disk: %w", err)
	}
	host, err := diskroom.OfFile(disk)
	const block = 512 // whatever the file system's
	return Room{Used: file.Blocks * block, Free: host.Free, Size: host.Size}, err
}

// growth judges whether a disk takes what the host has to keep. Each keeper
// knows its own disk alone, so that the measure is the disk's growth against what
// is left: one that writes much goes early, and one that writes little only when
// next to nothing is left for anybody.
type growth struct{ seen []look }

type look struct {
	at   time.Time
	used int64
}

const (
	// growthSpan is over how long a disk's growth is taken.
	growthSpan = 5 * time.Second
	// growthShare is the part of what is left that a disk may grow by meanwhile.
	growthShare = 8
	// growthFree is what a disk may grow by meanwhile in any case: a start takes
	// about half of it, and who writes no more is not who fills the disk.
	growthFree = 4 << 20
)

// take judges one more look. Its error says why the run has to end.
func (g *growth) take(now time.Time, room Room) error {
	g.seen = append(g.seen, look{now, room.Used})
	for now.Sub(g.seen[0].at) > growthSpan {
		g.seen = g.seen[1:] // the last one stays
	}
	grown := room.Used - g.seen[0].used
	if room.Free >= diskroom.Reserve(room.Size)/2 || grown <= max(growthFree, room.Free/growthShare) {
		return nil
	}
	return fmt.Errorf("the host's disk is nearly full (%s free), and this task was writing to it: its own disk takes %s of it; "+
		"free some space (creel rm, creel image rm), set CREEL_STATE_DIR to a larger disk, or give it a smaller disk (--disk)",
		units.BytesSize(float64(max(room.Free, 0))), units.BytesSize(float64(room.Used)))
}

// lookAgain is when to look next: a disk of the host that is nearly full may
// fill up in less than a second.
func (d deadlines) lookAgain(room Room) time.Duration {
	if room.Free < 4*diskroom.MaxReserve {
		return d.look / 10
	}
	return d.look
}

// keepReserve ends the run when its disk takes what the host has to keep for
// the others, before there is nothing left: a guest that cannot write its disk
// may lose what it has on it, and those that write little would, too.
func (r *Run) keepReserve() {
	disk := r.clone.writable()
	if r.deps.Room == nil || disk == nil {
		return
	}
	g := &growth{}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-r.over:
			return
		case <-timer.C:
		}
		room, err := r.deps.Room(disk)
		if err != nil {
			r.deps.Log.Error("the host's disk is not watched any more", "err", err)
			return
		}
		if err := g.take(time.Now(), room); err != nil {
			r.abandon(err)
			return
		}
		timer.Reset(r.limit.lookAgain(room))
	}
}

// writable is the file of the clone's own disk; nil where it has none.
func (w *Waiting) writable() *os.File {
	if w == nil {
		return nil
	}
	for _, d := range w.parts.Disks {
		if d.File != nil && !d.ReadOnly {
			return d.File
		}
	}
	return nil
}
