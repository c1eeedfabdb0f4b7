package template

import (
	"os"

	"creel/internal/guest/api"
	"creel/internal/sandbox"
	"creel/internal/vm"
)

// Disks are the disks of every machine, in order: the template has only the
// root, a clone its scratch too; the rest are placeholders, typed as they will
// be used, because a guest keeps what it negotiated before the freeze. That of
// the scratch has the usual size: a clone need not learn another then.
func Disks(root, scratch *os.File) []vm.Disk {
	disk := func(serial string, readOnly bool, f *os.File, size int64) vm.Disk {
		return vm.Disk{Serial: serial, ReadOnly: readOnly, File: f, PlaceholderBytes: size}
	}
	return []vm.Disk{
		disk(api.DiskRoot, true, root, sandbox.MaxDiskBytes),
		disk(api.DiskScratch, false, scratch, sandbox.DefaultDisk),
		disk(api.DiskWorkspace, true, nil, sandbox.MaxDiskBytes),
		disk(api.DiskSpareRO, true, nil, sandbox.MaxDiskBytes),
		disk(api.DiskSpareRW, false, nil, sandbox.MaxDiskBytes),
	}
}
