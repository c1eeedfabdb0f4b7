package engine

import (
	"fmt"

	"github.com/docker/go-units"

	"creel/internal/diskroom"
)

// diskFault is why the host's disk has no room for one more sandbox, or "".
// Writable disks are sparse files, which grow as their tasks write; the audit
// record and other sandboxes need room too.
func (e *Engine) diskFault() string {
	room, err := e.room(e.opts.Dir)
	if err != nil {
		return "disk: " + err.Error()
	}
	reserve := diskroom.Reserve(room.Size)
	if room.Free >= reserve {
		return ""
	}
	return fmt.Sprintf("disk: %s has %s free, and Creel starts nothing below %s, for what runs already and for the record: "+
		"free some space (creel rm, creel image rm, creel template rm), or set CREEL_STATE_DIR to a larger disk",
		e.opts.Dir, units.BytesSize(float64(room.Free)), units.BytesSize(float64(reserve)))
}
