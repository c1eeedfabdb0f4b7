package vm

import "fmt"

var (
	memoryRungs = []int{256, 512, 1024, 2048, 4096, 8192} // MiB
	vcpuRungs   = []int{1, 2, 4}
)

// ShapeFor rounds what was asked up to the ladder of shapes: memory in bytes
// (0: 512 MiB) and CPUs (0: 1). More than the highest rung is an error.
func ShapeFor(memoryBytes int64, cpus float64) (Shape, error) {
	mib := max(int((memoryBytes+1<<20-1)>>20), 0)
	if memoryBytes == 0 {
		mib = 512
	}
	memory, ok := rung(memoryRungs, func(r int) bool { return r >= mib })
	if !ok {
		return Shape{}, fmt.Errorf("memory of %d MiB is more than the largest machine has (%d MiB)", mib, memoryRungs[len(memoryRungs)-1])
	}
	vcpus, ok := rung(vcpuRungs, func(r int) bool { return float64(r) >= cpus })
	if !ok {
		return Shape{}, fmt.Errorf("%g CPUs are more than the largest machine has (%d)", cpus, vcpuRungs[len(vcpuRungs)-1])
	}
	return Shape{MemoryMiB: memory, VCPUs: vcpus}, nil
}

// String is the form used in file names and messages, such as "512m-1cpu".
func (s Shape) String() string { return fmt.Sprintf("%dm-%dcpu", s.MemoryMiB, s.VCPUs) }

func rung(rungs []int, fits func(int) bool) (int, bool) {
	for _, r := range rungs {
		if fits(r) {
			return r, true
		}
	}
	return 0, false
}
