package qemu

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"strings"

	"creel/internal/guest/api"
	"creel/internal/sandbox"
	"creel/internal/vm"
)

// Descriptors that every VMM is handed; those of a boot and of the disks that
// have files follow.
const (
	fdQMP = 3 + iota
	fdControl
	fdShare
	fdNetwork
	fdMemory
	fdFirstFree
)

const (
	mac = "52:54:00:12:34:56" // the same in every machine: each has a network of its own
	mtu = 65000

	cpuTCG = "Nehalem-v1,+arat" // -v1 warns of nothing, ARAT lets an idle guest sleep
)

// plan is a machine as QEMU's arguments and the descriptors that they name.
type plan struct {
	args  []string
	files []*os.File // from fdFirstFree on
}

func (p *plan) add(args ...string) { p.args = append(p.args, args...) }

// pass hands a file over and returns its descriptor in the VMM.
func (p *plan) pass(f *os.File) int {
	p.files = append(p.files, f)
	return fdFirstFree + len(p.files) - 1
}

// newPlan is the one place that knows the device set. Template and clone differ
// in nothing but the backing of their devices, or the state would not load.
func newPlan(c vm.Config) plan {
	var p plan
	share := "off"
	if c.Restore == nil {
		share = "on"
	}
	accel := "kvm"
	if c.Accel == sandbox.AccelTCG {
		// Threads of their own cost a lone CPU start-up time. The cache of
		// translated code counts against the machine's memory on the host.
		accel = "tcg,tb-size=64,thread=single"
		if c.Shape.VCPUs > 1 {
			accel = "tcg,tb-size=64,thread=multi"
		}
	}
	p.add("-M", "microvm,pit=off,pic=off,rtc=on,isa-serial=on,memory-backend=mem",
		"-accel", accel, "-cpu", cmp.Or(c.CPU, CPU(c.Accel, false)),
		"-smp", fmt.Sprint(c.Shape.VCPUs),
		"-m", fmt.Sprintf("%dM", c.Shape.MemoryMiB),
		"-object", fmt.Sprintf("memory-backend-file,id=mem,size=%dM,mem-path=/proc/self/fd/%d,share=%s", c.Shape.MemoryMiB, fdMemory, share),
		"-global", "virtio-mmio.force-legacy=false",
		"-nodefaults", "-no-user-config", "-display", "none",
		// However the guest ends the machine, the VMM only stops and says so: the
		// driver kills it, and none of the VMM's own way out is open to a guest.
		"-action", "reboot=shutdown,shutdown=pause",
		"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
		"-chardev", fmt.Sprintf("socket,id=qmp,fd=%d", fdQMP), "-mon", "chardev=qmp,mode=control",
		// The kernel says there why it gives up. It is the VMM's standard output.
		"-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console",
		"-netdev", fmt.Sprintf("stream,id=net,server=off,addr.type=fd,addr.str=%d", fdNetwork),
		"-device", fmt.Sprintf("virtio-net-device,netdev=net,mac=%s,host_mtu=%d", mac, mtu),
		"-object", "rng-builtin,id=rng", "-device", "virtio-rng-device,rng=rng",
		"-device", "virtio-serial-device,max_ports=4",
		"-chardev", fmt.Sprintf("socket,id=ctl,fd=%d", fdControl),
		"-device", "virtserialport,nr=1,chardev=ctl,name="+api.PortControl,
		"-chardev", fmt.Sprintf("socket,id=fs,fd=%d", fdShare),
		"-device", "virtserialport,nr=2,chardev=fs,name="+api.PortShare)
	for i, d := range c.Disks {
		p.disk(i, d)
	}
	if c.Restore != nil {
		p.add("-incoming", "defer")
	} else {
		p.add("-kernel", fmt.Sprintf("/proc/self/fd/%d", p.pass(c.Kernel)),
			"-initrd", fmt.Sprintf("/proc/self/fd/%d", p.pass(c.Initrd)), "-append", c.Cmdline)
	}
	return p
}

// Plan is a machine as data, for who runs a VMM without a [Driver], as the bench
// does to give it another network: the VMM's arguments, and the files that
// follow descriptor 7. 3 to 7 are a socket for commands, those of the two
// ports and of the card, and the memory.
func Plan(c vm.Config) (args []string, rest []*os.File) {
	p := newPlan(c)
	return p.args, p.files
}

// diskNode is the name of a disk in commands and events.
func diskNode(i int) string { return fmt.Sprintf("disk%d", i) }

func (p *plan) disk(i int, d vm.Disk) {
	node, mode := diskNode(i), "off"
	if d.ReadOnly {
		mode = "on"
	}
	if d.File == nil {
		p.add("-blockdev", fmt.Sprintf("driver=null-co,node-name=%s,read-only=%s,size=%d,read-zeroes=on", node, mode, d.PlaceholderBytes))
	} else {
		// A set holds the descriptor itself: it is never opened again, so the
		// file's mode and path do not matter. Set 0 is an ordinary number.
		p.add("-add-fd", fmt.Sprintf("fd=%d,set=%d", p.pass(d.File), i),
			"-blockdev", fmt.Sprintf("driver=raw,node-name=%s,read-only=%s,file.driver=file,file.filename=/dev/fdset/%d,file.locking=off", node, mode, i))
	}
	// An error of the host's disk is the guest's to handle. By default the VMM
	// stops the machine when the host's disk is full, and waits for somebody.
	p.add("-device", fmt.Sprintf("virtio-blk-device,drive=%s,serial=%s,werror=report,rerror=report", node, d.Serial))
}

// MachineID describes a machine as far as its frozen state depends on it: the
// devices, their order and settings, shape and accelerator; neither their
// backing nor the kernel's command line, nor the CPU's model. It belongs into a template's key.
func MachineID(shape vm.Shape, accel sandbox.Accel, disks []vm.Disk) string {
	empty := make([]vm.Disk, len(disks))
	for i, d := range disks {
		d.File = nil
		empty[i] = d
	}
	p := newPlan(vm.Config{Shape: shape, Accel: accel, Disks: empty})
	sum := sha256.Sum256([]byte(strings.Join(p.args, "\x00")))
	return hex.EncodeToString(sum[:])
}
