package postmortem

import (
	"os"
	"path/filepath"
	"testing"
)

func TestKillsAreThoseSinceOpen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "vmstat")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("nr_free_pages 1\noom_kill 41\noom_kill_other 7\n")
	c, err := open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if n, err := c.Count(); n != 0 || err != nil {
		t.Errorf("%d, %v at once", n, err)
	}
	write("nr_free_pages 1\noom_kill 43\noom_kill_other 9\n")
	if n, err := c.Count(); n != 2 || err != nil {
		t.Errorf("%d, %v after two", n, err)
	}
	write("nr_free_pages 1\n")
	if _, err := c.Count(); err == nil {
		t.Error("a kernel that does not say was believed")
	}
}

func TestThisKernelCounts(t *testing.T) {
	c, err := OpenKills()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if n, err := c.Count(); n < 0 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
}
