package engine

import (
	"fmt"

	"creel/internal/sandbox"

	"github.com/docker/go-units"
	"golang.org/x/sys/unix"
)

// diskFault is why the host's disk has no room for one more sandbox, or "".
func (e *Engine) diskFault() string {
	free, size, err := e.room(e.opts.Dir)
	if err != nil {
		return "disk: " + err.Error()
	}
	reserve := sandbox.DiskReserve(size)
	if free >= reserve {
		return ""
	}
	return fmt.Sprintf("disk: %s has %s free, and Creel starts nothing below %s, for what runs already and for the record: "+
		"free some space (creel rm, creel image rm, creel template rm), or set CREEL_STATE_DIR to a larger disk",
		e.opts.Dir, units.BytesSize(float64(free)), units.BytesSize(float64(reserve)))
}

// diskRoom is what a user may still write to the file system of dir, and its
// size, in bytes.
func diskRoom(dir string) (free, size int64, err error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return 0, 0, fmt.Errorf("look for room in %s: %w", dir, err)
	}
	return int64(fs.Bavail) * fs.Bsize, int64(fs.Blocks) * fs.Bsize, nil
}
