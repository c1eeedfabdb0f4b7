package accel

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"

	"creel/internal/durable"
	"creel/internal/procs"
	"creel/internal/sandbox"

	"golang.org/x/sys/unix"
)

// maxFindings is how many users, levels and states of the device are kept.
const maxFindings = 8

// verdict is the probe's answer.
type verdict struct {
	Opens  bool `json:"opens"` // a VMM may open /dev/kvm, and KVM makes guests
	Usable bool `json:"usable"`
	// Measured is false where something was in the way of the probe, which may
	// be gone the next time: such a verdict is not kept.
	Measured bool   `json:"measured"`
	Reason   string `json:"reason"`
	Advice   string `json:"advice,omitempty"`
	Features
}

// sighting is how a guest kernel fared under KVM.
type sighting struct {
	CameUp bool   `json:"cameUp"`
	Reason string `json:"reason"`
}

// finding is all that is known for one key.
type finding struct {
	Key     string              `json:"key"`
	Verdict verdict             `json:"verdict"`
	Kernels map[string]sighting `json:"kernels,omitempty"` // by digest
}

// memory is the file. It holds until the next boot.
type memory struct {
	BootID   string    `json:"bootId"`
	Findings []finding `json:"findings"` // the latest last
}

// keyOf names what a verdict depends on within one boot: who asks, at what
// level, and the device. Whoever gives or takes access to it changes its ctime.
func keyOf(path string, level sandbox.Confinement) (string, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return "", fmt.Errorf("look at %s: %w", path, err)
	}
	groups, err := os.Getgroups()
	if err != nil {
		return "", fmt.Errorf("list groups: %w", err)
	}
	slices.Sort(groups)
	return fmt.Sprintf("user %d, group %d, groups %v, %s; device %d:%d, number %#x, owner %d, group %d, mode %o, changed %d",
		os.Geteuid(), os.Getegid(), groups, level, st.Dev, st.Ino, st.Rdev, st.Uid, st.Gid, st.Mode, st.Ctim.Nano()), nil
}

// load is what is kept of this boot. A file that does not parse is as good as
// none: everything in it can be found out again.
func (h Host) load() (memory, error) {
	id, err := procs.BootID()
	if err != nil {
		return memory{}, err
	}
	var m memory
	if data, err := os.ReadFile(h.File); err == nil && json.Unmarshal(data, &m) == nil && m.BootID == id {
		return m, nil
	}
	return memory{BootID: id}, nil
}

func (h Host) find(key string) (finding, bool) {
	m, err := h.load()
	if err != nil {
		return finding{}, false
	}
	if i := m.index(key); i >= 0 {
		return m.Findings[i], true
	}
	return finding{}, false
}

func (m memory) index(key string) int {
	return slices.IndexFunc(m.Findings, func(f finding) bool { return f.Key == key })
}

// keep adds a finding. Where two processes write at once one finding is lost,
// and found out again.
func (h Host) keep(f finding) error {
	if h.File == "" {
		return nil
	}
	m, err := h.load()
	if err != nil {
		return err
	}
	m.Findings = append(slices.DeleteFunc(m.Findings, func(o finding) bool { return o.Key == f.Key }), f)
	m.Findings = m.Findings[max(0, len(m.Findings)-maxFindings):]
	return h.save(m)
}

func (h Host) keepSighting(key, kernel string, s sighting) error {
	m, err := h.load()
	if err != nil {
		return err
	}
	i := m.index(key)
	if i < 0 {
		return nil // access has changed meanwhile: what was seen holds no more
	}
	f := m.Findings[i]
	if f.Kernels == nil {
		f.Kernels = map[string]sighting{}
	}
	f.Kernels[kernel] = s
	return h.keep(f)
}

func (h Host) save(m memory) error {
	data, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	if err := durable.Swap(h.File, append(data, '\n')); err != nil {
		return fmt.Errorf("keep the probe's answer: %w", err)
	}
	return nil
}
