package sandbox

// MaxDiskReserve is what is kept free of a large disk.
const MaxDiskReserve = 1 << 30

// DiskReserve is how much of a host's disk of size bytes no sandbox may count
// on: a twentieth of it, at most 1 GiB. Writable disks are sparse files, which
// grow as their tasks write; the audit record and other sandboxes need room too.
// Nothing is started below it, and what writes much ends below half of it.
func DiskReserve(size int64) int64 { return min(size/20, MaxDiskReserve) }
