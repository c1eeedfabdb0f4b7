package sandbox

import (
	"strings"
	"testing"
	"time"
)

func valid() Spec {
	return Spec{ID: NewID(), Name: "quiet-otter", Image: "debian", Confinement: ConfinementFull, Accel: AccelAuto}
}

func TestValidateAcceptsTheSmallestSpec(t *testing.T) {
	s := valid()
	if err := s.Validate(); err != nil {
		t.Fatal(err)
	}
}

func TestValidateNamesEachFault(t *testing.T) {
	for field, spoil := range map[string]func(*Spec){
		"sandbox id":  func(s *Spec) { s.ID = "../x" },
		"name":        func(s *Spec) { s.Name = "-x" },
		"name \"0123": func(s *Spec) { s.Name = "0123456789abcdef0123456789abcdef" },
		"image":       func(s *Spec) { s.Image = "" },
		"hostname":    func(s *Spec) { s.Hostname = "a b" },
		"workdir":     func(s *Spec) { s.Workdir = "relative" },
		"user":        func(s *Spec) { s.User = "a:b:c" },
		"timeout":     func(s *Spec) { s.Timeout = -time.Second },
		"confinement": func(s *Spec) { s.Confinement = "none" },
		"accel":       func(s *Spec) { s.Accel = "hvf" },
		"command":     func(s *Spec) { s.Command = []string{"a\x00b"} },
		"env":         func(s *Spec) { s.Env = []string{"NOVALUE"} },
		"env BIG":     func(s *Spec) { s.Env = []string{"BIG=" + strings.Repeat("x", maxEnvBytes)} },
		"memory":      func(s *Spec) { s.Resources.MemoryBytes = 1 },
		"disk":        func(s *Spec) { s.Resources.DiskBytes = MaxDiskBytes + 1 },
		"cpus":        func(s *Spec) { s.Resources.CPUs = 5 },
		"pids-limit":  func(s *Spec) { s.Resources.PIDs = 1 },
		"mount \"/proc\"": func(s *Spec) {
			s.Mounts = []Mount{{Kind: MountTmpfs, Target: "/proc"}}
		},
		"mount \"/a/../b\"":  func(s *Spec) { s.Mounts = []Mount{{Kind: MountTmpfs, Target: "/a/../b"}} },
		"mount \"/x\": kind": func(s *Spec) { s.Mounts = []Mount{{Kind: "nfs", Target: "/x"}} },
		"mount \"/x\": given twice": func(s *Spec) {
			s.Mounts = []Mount{{Kind: MountTmpfs, Target: "/x"}, {Kind: MountTmpfs, Target: "/x"}}
		},
	} {
		s := valid()
		spoil(&s)
		err := s.Validate()
		if err == nil || !strings.HasPrefix(err.Error(), field) {
			t.Errorf("%s: got %v", field, err)
		}
	}
}

func TestValidateReturnsEveryFaultAtOnce(t *testing.T) {
	s := valid()
	s.Name, s.Image, s.Resources.CPUs = "", "", 99
	err := s.Validate()
	for _, want := range []string{"name", "image", "cpus"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not name %s", err, want)
		}
	}
}
