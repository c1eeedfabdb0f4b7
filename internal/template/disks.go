package template

import (
	"os"

	"creel/internal/guest/api"
	"creel/internal/sandbox"
	"creel/internal/vm"
)

// Disks are the disks of every machine, in order: the template has only the
// root, a clone its scratch too; the rest are placeholders of the largest size
// there is, typed as they will be used, because a guest keeps what it
// negotiated before the freeze.
func Disks(root, scratch *os.File) []vm.Disk {
	disk := func(serial string, readOnly bool, f *os.File) vm.Disk {
		return vm.Disk{Serial: serial, ReadOnly: readOnly, File: f, MaxBytes: sandbox.MaxDiskBytes}
	}
	return []vm.Disk{
		disk(api.DiskRoot, true, root),
		disk(api.DiskScratch, false, scratch),
		disk(api.DiskWorkspace, true, nil),
		disk(api.DiskSpareRO, true, nil),
		disk(api.DiskSpareRW, false, nil),
	}
}
