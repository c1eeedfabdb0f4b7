package vmtest

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"creel/internal/guest/api"
	"creel/internal/sandbox"
	"creel/internal/vm"
)

// StubFixtures are what a driver's machines are tested with where no Linux
// guest can be booted: a KVM that interprets its guests' kernels, say. The
// guest is the suite's own.
type StubFixtures struct {
	Accel       sandbox.Accel
	CPU         string // as in [vm.Config]
	VCPUs       int
	Confinement func(t *testing.T) vm.Confinement
}

// RunStub checks a driver with a guest of 77 bytes, which counts and sends each
// number as a frame. Machines are booted, paused, resumed, frozen, cloned from
// sealed memory and closed.
func RunStub(t *testing.T, d vm.Driver, fx StubFixtures) {
	t.Run("count, freeze, clone", func(t *testing.T) { testStubClones(t, d, fx) })
	if fx.Accel == sandbox.AccelKVM {
		t.Run("an internal error of KVM ends it", func(t *testing.T) { testStubStops(t, d, fx) })
	}
}

func testStubClones(t *testing.T, d vm.Driver, fx StubFixtures) {
	temp(t, 0).Close() // the first file or socket makes what Go waits with
	before := openFiles(t)
	c, m := fx.boot(t, d, counter)
	numbers := listen(t, m.Network())
	// A number may be sent before QEMU has opened its end of the network.
	numbers.follow(numbers.next()+1, 20)
	stubPause(t, m, numbers, c.Memory)
	state := temp(t, 0)
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	if err := m.(vm.Snapshotter).Snapshot(ctx, state); err != nil {
		t.Fatal(err)
	}
	closeTwice(t, m)
	frozen := countIn(t, c.Memory)
	// A clone sends this with its numbers, and a guest that booted does not.
	if _, err := c.Memory.WriteAt(words(mark), markAt); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.FcntlInt(c.Memory.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_WRITE|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW); err != nil {
		t.Fatal(err)
	}

	c.Kernel, c.Initrd, c.Restore = nil, nil, state
	var clones []vm.Machine
	var heard []*numberReader
	for range 3 {
		c.Confinement = fx.Confinement(t)
		clone := start(t, d, c)
		clones, heard = append(clones, clone), append(heard, listen(t, clone.Network()))
	}
	for i, numbers := range heard {
		// It may send before QEMU has opened its end of the network.
		first := numbers.next()
		if first < frozen || numbers.mark != mark {
			t.Errorf("clone %d goes on with %d and the mark %#x, frozen at %d with %#x", i, first, numbers.mark, frozen, mark)
		}
		numbers.follow(first+1, 50*(i+1))
	}
	stubPause(t, clones[0], heard[0], nil)
	for _, clone := range clones {
		closeTwice(t, clone)
	}
	if now := countIn(t, c.Memory); now != frozen {
		t.Errorf("the template counted on from %d to %d", frozen, now)
	}
	for _, f := range []*os.File{c.Memory, state} {
		f.Close()
	}
	if after := openFiles(t); after != before {
		t.Errorf("%d open files before, %d after", before, after)
	}
}

// stubPause wants a paused guest to send nothing new, and a resumed one to go
// on. memory is where its count can be seen; nil for a clone.
func stubPause(t *testing.T, m vm.Machine, numbers *numberReader, memory *os.File) {
	t.Helper()
	p := m.(vm.Pauser)
	if err := p.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	last := numbers.drain()
	if memory != nil {
		if count := countIn(t, memory); last > count {
			t.Errorf("a paused guest sent %d and has counted to %d", last, count)
		} else {
			last = count
		}
	}
	if err := p.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	for numbers.next() <= last {
	}
	if memory != nil && countIn(t, memory) <= last {
		t.Errorf("a resumed guest does not count")
	}
}

func testStubStops(t *testing.T, d vm.Driver, fx StubFixtures) {
	_, m := fx.boot(t, d, stray)
	select {
	case <-m.Done():
	case <-time.After(limit):
		t.Fatal("the machine did not end")
	}
	if err := m.Err(); err == nil || !strings.Contains(err.Error(), "internal error") || !strings.Contains(err.Error(), "EIP=") {
		t.Errorf("Err() = %v, want KVM's internal error and the registers", err)
	}
	closeTwice(t, m)
}

func (fx StubFixtures) boot(t *testing.T, d vm.Driver, program []byte) (vm.Config, vm.Machine) {
	t.Helper()
	c := vm.Config{
		Shape: vm.Shape{MemoryMiB: memoryMiB, VCPUs: fx.VCPUs}, Accel: fx.Accel, CPU: fx.CPU,
		Disks: []vm.Disk{
			{Serial: api.DiskRoot, ReadOnly: true, PlaceholderBytes: placeholder},
			{Serial: api.DiskScratch, PlaceholderBytes: placeholder},
		},
		Memory: memory(t), Confinement: fx.Confinement(t),
		Kernel: temp(t, 0), Initrd: temp(t, 512),
	}
	defer c.Kernel.Close()
	defer c.Initrd.Close()
	if _, err := c.Kernel.Write(stubELF(program)); err != nil {
		t.Fatal(err)
	}
	return c, start(t, d, c)
}

// Where the stub guest's parts lie in its memory.
const (
	stubAt      = 0x100000
	descAt      = stubAt + 0x100 // one descriptor: the frame
	availAt     = descAt + 0x10  // flags, index, ring of one
	usedAt      = descAt + 0x20
	frameAt     = descAt + 0x40
	headerBytes = 12 // struct virtio_net_hdr_v1
	etherBytes  = 14
	countAt     = frameAt + headerBytes + etherBytes
	markAt      = countAt + 4
	frameBytes  = headerBytes + etherBytes + 8

	mark = 0x5ea1ed
)

// counter is the guest that counts. It is entered in 32-bit mode, without
// paging, and has no stack. It finds its NIC among the 24 places of virtio-mmio
// (0xfeb00000 + n*0x200), sets it up from the table behind the code, and
// then counts as fast as the frames are taken. In the syntax of GNU as:
//
//	 0:  bf 00 2e b0 fe           mov    $0xfeb02e00, %edi    # the last place
//	 5:  83 7f 08 01           1: cmpl   $1, 8(%edi)          # DeviceID: network?
//	 9:  74 08                    je     2f
//	 b:  81 ef 00 02 00 00        sub    $0x200, %edi
//	11:  eb f2                    jmp    1b
//	13:  be 4d 00 10 00        2: mov    $table, %esi         # register, value, ...
//	18:  b9 10 00 00 00           mov    $16, %ecx
//	1d:  ad                    3: lodsl
//	1e:  89 c2                    mov    %eax, %edx
//	20:  ad                       lodsl
//	21:  89 04 17                 mov    %eax, (%edi,%edx)
//	24:  e2 f7                    loop   3b
//	26:  ff 05 5a 01 10 00     4: incl   count
//	2c:  66 ff 05 12 01 10 00     incw   avail.index
//	33:  66 a1 12 01 10 00        mov    avail.index, %ax
//	39:  c7 47 50 01 00 00 00     movl   $1, 0x50(%edi)       # QueueNotify: transmit
//	40:  f3 90                 5: pause
//	42:  66 3b 05 22 01 10 00     cmp    used.index, %ax
//	49:  75 f5                    jne    5b
//	4b:  eb d9                    jmp    4b
//	4d:                        table:
var counter = slices.Concat([]byte{
	0xbf, 0x00, 0x2e, 0xb0, 0xfe,
	0x83, 0x7f, 0x08, 0x01, 0x74, 0x08,
	0x81, 0xef, 0x00, 0x02, 0x00, 0x00, 0xeb, 0xf2,
	0xbe, 0x4d, 0x00, 0x10, 0x00,
	0xb9, 0x10, 0x00, 0x00, 0x00,
	0xad, 0x89, 0xc2, 0xad, 0x89, 0x04, 0x17, 0xe2, 0xf7,
	0xff, 0x05, 0x5a, 0x01, 0x10, 0x00,
	0x66, 0xff, 0x05, 0x12, 0x01, 0x10, 0x00,
	0x66, 0xa1, 0x12, 0x01, 0x10, 0x00,
	0xc7, 0x47, 0x50, 0x01, 0x00, 0x00, 0x00,
	0xf3, 0x90,
	0x66, 0x3b, 0x05, 0x22, 0x01, 0x10, 0x00,
	0x75, 0xf5, 0xeb, 0xd9,
}, words(
	// Virtio 1.1, 4.2.2: registers of the MMIO transport.
	0x70, 0, // Status: reset
	0x70, 1, // acknowledge
	0x70, 3, // driver
	0x24, 1, 0x20, 1, // VIRTIO_F_VERSION_1, bit 32, and no other feature
	0x24, 0, 0x20, 0,
	0x70, 0xb, // features are settled
	0x30, 1, 0x38, 1, // the transmit queue, of one place
	0x80, descAt, 0x90, availAt, 0xa0, usedAt,
	0x84, 0, // all below 4 GiB; 0x94 and 0xa4 are 0 after a reset
	0x44, 1, // the queue is ready
	0x70, 0xf, // the driver is
))

// stray is the guest that KVM cannot go on with: it jumps to where there is
// neither memory nor a device.
//
//	0:  b8 00 00 00 e0           mov    $0xe0000000, %eax
//	5:  ff e0                    jmp    *%eax
var stray = []byte{0xb8, 0x00, 0x00, 0x00, 0xe0, 0xff, 0xe0}

func words(values ...uint32) []byte {
	var b []byte
	for _, v := range values {
		b = binary.LittleEndian.AppendUint32(b, v)
	}
	return b
}

// stubELF puts a program and the counter's ring and frame into an ELF that is
// entered by its PVH note.
func stubELF(program []byte) []byte {
	const ehdr, phdr, noteAt, imageAt = 64, 56, 0x100, 0x1000
	le := binary.LittleEndian
	image := make([]byte, 0x200)
	copy(image, program)
	put := func(at uint32, b []byte) { copy(image[at-stubAt:], b) }
	put(descAt, words(frameAt, 0, frameBytes, 0))
	put(availAt, []byte{1}) // no interrupts
	ether := make([]byte, etherBytes)
	ether[0], ether[6], ether[12], ether[13] = 0x02, 0x02, 0x88, 0xb5 // a type for experiments
	put(frameAt+headerBytes, ether)

	// Xen's note 18: the 32-bit physical address to enter at.
	note := append(words(4, 8, 18), "Xen\x00"...)
	note = append(note, words(stubAt, 0)...)

	b := make([]byte, imageAt+len(image))
	copy(b, "\x7fELF\x02\x01\x01")
	le.PutUint16(b[16:], 2)  // executable
	le.PutUint16(b[18:], 62) // x86-64
	le.PutUint32(b[20:], 1)
	le.PutUint64(b[24:], stubAt)
	le.PutUint64(b[32:], ehdr)
	for i, v := range []uint16{ehdr, phdr, 2} {
		le.PutUint16(b[52+2*i:], v)
	}
	segment := func(i int, kind uint32, at, address, size uint64) {
		p := b[ehdr+i*phdr:]
		le.PutUint32(p, kind)
		le.PutUint32(p[4:], 7)
		le.PutUint64(p[8:], at)
		le.PutUint64(p[16:], address)
		le.PutUint64(p[24:], address)
		le.PutUint64(p[32:], size)
		le.PutUint64(p[40:], size)
		le.PutUint64(p[48:], 4)
	}
	segment(0, 1, imageAt, stubAt, uint64(len(image)))
	segment(1, 4, noteAt, 0, uint64(len(note)))
	copy(b[noteAt:], note)
	copy(b[imageAt:], image)
	return b
}

// countIn is what the guest whose memory is written through has counted to.
func countIn(t *testing.T, memory *os.File) uint32 {
	t.Helper()
	var b [4]byte
	if _, err := memory.ReadAt(b[:], countAt); err != nil {
		t.Fatal(err)
	}
	return binary.LittleEndian.Uint32(b[:])
}

// numberReader reads the counter's frames.
type numberReader struct {
	t    *testing.T
	conn net.Conn
	r    *bufio.Reader
	last uint32 // number, and the mark beside it
	mark uint32
}

func listen(t *testing.T, conn net.Conn) *numberReader {
	return &numberReader{t: t, conn: conn, r: bufio.NewReader(conn)}
}

// wireBytes is a frame and its length, as [vm.Machine.Network] has them.
const wireBytes = 4 + etherBytes + 8

// next is the next number that the guest has sent.
func (n *numberReader) next() uint32 {
	n.t.Helper()
	number, err := n.within(limit)
	if err != nil {
		n.t.Fatalf("after the number %d: %v", n.last, err)
	}
	return number
}

// follow wants the next count numbers to be from, from+1, and so on.
func (n *numberReader) follow(from uint32, count int) {
	n.t.Helper()
	for i := range uint32(count) {
		if got := n.next(); got != from+i {
			n.t.Fatalf("the guest sent %d, want %d", got, from+i)
		}
	}
}

// drain reads what a paused guest has sent before, and returns the last number.
// More than a socket holds did not come from before.
func (n *numberReader) drain() uint32 {
	n.t.Helper()
	const quiet, most = 100 * time.Millisecond, 1 << 20 / wireBytes
	for range most {
		if _, err := n.within(quiet); errors.Is(err, os.ErrDeadlineExceeded) {
			return n.last
		} else if err != nil {
			n.t.Fatalf("after the number %d: %v", n.last, err)
		}
	}
	n.t.Fatalf("a paused guest goes on sending: %d", n.last)
	return 0
}

func (n *numberReader) within(limit time.Duration) (uint32, error) {
	if err := n.conn.SetReadDeadline(time.Now().Add(limit)); err != nil {
		return 0, err
	}
	frame, err := n.r.Peek(wireBytes)
	if err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return 0, err
	}
	if size := binary.BigEndian.Uint32(frame); size != wireBytes-4 {
		return 0, fmt.Errorf("a frame of %d bytes", size)
	}
	n.last = binary.LittleEndian.Uint32(frame[4+etherBytes:])
	n.mark = binary.LittleEndian.Uint32(frame[4+etherBytes+4:])
	n.r.Discard(wireBytes)
	return n.last, nil
}
