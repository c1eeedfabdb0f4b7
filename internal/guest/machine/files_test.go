package machine

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestWriteFileReplaces(t *testing.T) {
	for name, before := range map[string]func(dir, path string) error{
		"nothing":      func(dir, path string) error { return os.Remove(dir) },
		"empty":        func(_, path string) error { return os.WriteFile(path, nil, 0o644) },
		"longer":       func(_, path string) error { return os.WriteFile(path, []byte("what was there before"), 0o644) },
		"link":         func(dir, path string) error { return os.Symlink(dir+".target", path) },
		"dangling":     func(dir, path string) error { return os.Symlink("/no/such/file", path) },
		"pipe":         func(_, path string) error { return unix.Mkfifo(path, 0o644) },
		"not writable": func(_, path string) error { return os.WriteFile(path, []byte("old"), 0o444) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "etc")
			path, target := filepath.Join(dir, "file"), dir+".target"
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(target, []byte("mine"), 0o644); err != nil {
				t.Fatal(err)
			}
			if err := before(dir, path); err != nil {
				t.Fatal(err)
			}
			if err := writeFile(path, "new\n", 0o644); err != nil {
				if name == "not writable" && os.Geteuid() != 0 {
					t.Skip("only root can write it")
				}
				t.Fatal(err)
			}
			info, err := os.Lstat(path)
			if err != nil || !info.Mode().IsRegular() {
				t.Fatalf("%v, %v", info, err)
			}
			if data, err := os.ReadFile(path); string(data) != "new\n" || err != nil {
				t.Errorf("%q, %v", data, err)
			}
			if data, err := os.ReadFile(target); string(data) != "mine" || err != nil {
				t.Errorf("the link's target: %q, %v", data, err)
			}
		})
	}
}

func TestPlainEtc(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root makes files of others")
	}
	mkdir := func(mode os.FileMode) func(string) error {
		return func(path string) error {
			if err := os.Mkdir(path, 0o755); err != nil {
				return err
			}
			return os.Chmod(path, mode)
		}
	}
	for name, c := range map[string]struct {
		make func(path string) error
		want bool
	}{
		"none":    {func(string) error { return nil }, true},
		"plain":   {mkdir(0o755), true},
		"private": {mkdir(0o700), false},
		"setgid":  {mkdir(0o755 | os.ModeSetgid), false},
		"link":    {func(path string) error { return os.Symlink("usr/etc", path) }, false},
		"file":    {func(path string) error { return os.WriteFile(path, nil, 0o755) }, false},
		"another's": {func(path string) error {
			if err := os.Mkdir(path, 0o755); err != nil {
				return err
			}
			return os.Chown(path, 0, 7)
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			if err := c.make(root + "/etc"); err != nil {
				t.Fatal(err)
			}
			if got, err := plainEtc(root); got != c.want || err != nil {
				t.Errorf("%v, %v; want %v", got, err, c.want)
			}
		})
	}
	root := t.TempDir()
	if err := os.Mkdir(root+"/etc", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setxattr(root+"/etc", "user.note", []byte("x"), 0); err != nil {
		t.Skipf("this file system has no attributes: %v", err)
	}
	if got, err := plainEtc(root); got || err != nil {
		t.Errorf("with an attribute: %v, %v", got, err)
	}
}

func TestPlantedEtcIsDroppedFromAFreshDiskOnly(t *testing.T) {
	for _, used := range []bool{false, true} {
		disk := t.TempDir()
		work := "work"
		if used {
			work = "work/work"
		}
		for _, dir := range []string{"upper/etc", work} {
			if err := os.MkdirAll(filepath.Join(disk, dir), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(filepath.Join(disk, "upper/etc/hosts"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := dropPlanted(disk); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(filepath.Join(disk, "upper/etc/hosts")); (err == nil) != used {
			t.Errorf("used %v: %v", used, err)
		}
		if _, err := os.Stat(filepath.Join(disk, "upper")); err != nil {
			t.Error(err)
		}
	}
}
