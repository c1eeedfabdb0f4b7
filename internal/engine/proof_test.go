package engine

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"creel/internal/audit"
	"creel/internal/audit/query"
)

// What is left is found, and is on record.
func TestProofFindsWhatIsLeft(t *testing.T) {
	e, _, _ := admitting(t)
	rec := planNamed("web", false)
	dir := e.store.Dir(rec.Config.Spec.ID)
	want := `"checked":["mounts","directory"]`
	if os.Geteuid() == 0 {
		rec.UID = 0x70000000 + os.Getpid() // nobody else's
		cmd := exec.Command("sleep", "600")
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(rec.UID), Gid: uint32(rec.UID)}}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		left, err := processesLeft(rec.UID, time.Millisecond)
		if err != nil || len(left) != 1 {
			t.Errorf("processes %v, %v", left, err)
		}
		cmd.Process.Kill() // what has been killed, and not been asked after, is gone
		if left, err := processesLeft(rec.UID, killGrace); err != nil || len(left) != 0 {
			t.Errorf("processes %v, %v", left, err)
		}
		cmd.Wait()
		want = `"checked":["processes","mounts","directory"]`
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, gone := range []bool{false, true} {
		if gone {
			if err := os.Remove(dir); err != nil {
				t.Fatal(err)
			}
			want = `{"complete":true,` + want + `}`
		} else {
			want += `,"left":["` + filepath.Base(dir) + `"]`
		}
		if err := e.proveGone(t.Context(), rec.Record, false); err != nil {
			t.Fatal(err)
		}
		last := ""
		for r, err := range query.Records(t.Context(), e.opts.AuditDir, query.Filter{Kinds: []audit.Kind{audit.KindCleanup}}) {
			if err != nil {
				t.Fatal(err)
			}
			last = string(r.Data)
		}
		if !strings.Contains(last, want) {
			t.Errorf("gone %v: on record is %s, want %s", gone, last, want)
		}
		want, _, _ = strings.Cut(want, `,"left"`)
	}
	if left, err := mountsLeft("/proc"); err != nil || len(left) == 0 {
		t.Errorf("no mounts: %v, %v", left, err)
	}
}
