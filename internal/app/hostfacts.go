package app

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"creel/internal/durable"
	"creel/internal/procs"
	"creel/internal/sandbox"
	"creel/internal/template"
	"creel/internal/vm/qemu"
)

// vmmFacts is what asking the VMM for its identity told, valid while its file
// stays what it was.
type vmmFacts struct {
	Path  string       `json:"path"`
	Dev   uint64       `json:"dev"`
	Ino   uint64       `json:"ino"`
	Size  int64        `json:"size"`
	Ctime int64        `json:"ctime"` // nanoseconds
	VMM   template.VMM `json:"vmm"`
}

// vmmIdentity is the VMM's name, version and digest. They take 30 ms to learn,
// so they are kept.
func vmmIdentity(ctx context.Context, driver *qemu.Driver, dir string) (template.VMM, error) {
	var st unix.Stat_t
	if err := unix.Stat(driver.Path(), &st); err != nil {
		return template.VMM{}, fmt.Errorf("look at the VMM: %w", err)
	}
	now := vmmFacts{Path: driver.Path(), Dev: st.Dev, Ino: st.Ino, Size: st.Size, Ctime: st.Ctim.Nano()}
	path := filepath.Join(dir, "vmm.json")
	var known vmmFacts
	if readJSON(path, &known) {
		now.VMM = known.VMM
		if known == now {
			return known.VMM, nil
		}
	}
	id, err := driver.Identity(ctx)
	if err != nil {
		return template.VMM{}, err
	}
	now.VMM = template.VMM{Name: filepath.Base(id.Path), Version: id.Version, Digest: "sha256:" + id.SHA256}
	writeJSON(path, now) // where it cannot be kept it is learned again
	return now.VMM, nil
}

// tscFacts keeps the first measurement of this host's time stamp counter.
type tscFacts struct {
	BootID string `json:"bootId"` // of the last boot in which it was confirmed
	KHz    uint64 `json:"khz"`
}

// maxTSCDrift is how far two measurements of one counter may lie apart, in
// parts of the whole; another host's lies further.
const maxTSCDrift = 1e-4

// bootCmdline is the guest kernel's command line. Under emulation it holds the
// frequency of the host's counter, which comes out a little different each
// time: the first measurement is kept for as long as later ones, one in each
// boot of the host, agree with it, since a template is known by it.
func bootCmdline(dir string, a sandbox.Accel) (string, error) {
	if a != sandbox.AccelTCG {
		return qemu.Cmdline(a, 0), nil
	}
	id, err := procs.BootID()
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "tsc.json")
	now := tscFacts{BootID: id}
	var known tscFacts
	if readJSON(path, &known) && known.BootID == now.BootID && known.KHz > 0 {
		return qemu.Cmdline(a, known.KHz), nil
	}
	if now.KHz, err = qemu.TSCKHz(); err != nil {
		return "", err
	}
	if math.Abs(float64(known.KHz)-float64(now.KHz)) <= maxTSCDrift*float64(now.KHz) {
		now.KHz = known.KHz
	}
	return qemu.Cmdline(a, now.KHz), writeJSON(path, now)
}

// readJSON reads a fact that can be learned again: one that is missing or
// damaged is just not known.
func readJSON(path string, v any) bool {
	data, err := os.ReadFile(path)
	return err == nil && json.Unmarshal(data, v) == nil
}

// writeJSON replaces a file.
func writeJSON(path string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if err := durable.Swap(path, append(data, '\n')); err != nil {
		return fmt.Errorf("keep what was learned of the host: %w", err)
	}
	return nil
}
