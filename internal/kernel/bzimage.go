package kernel

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/ulikunitz/xz"
)

// Offsets in a bzImage (Linux, Documentation/arch/x86/boot.rst).
const (
	offSetupSects    = 0x1f1
	offHeaderMagic   = 0x202
	offPayloadOffset = 0x248
	offPayloadLength = 0x24c
	headerEnd        = 0x250
	sectorBytes      = 512

	maxVMLinux = 256 << 20
)

// extractELF returns the kernel proper that a bzImage carries compressed: the
// guest is spared decompressing it at every boot.
func extractELF(bz []byte) ([]byte, error) {
	if len(bz) < headerEnd || string(bz[offHeaderMagic:offHeaderMagic+4]) != "HdrS" {
		return nil, errors.New("not a bzImage: no HdrS magic")
	}
	sects := int64(bz[offSetupSects])
	if sects == 0 {
		sects = 4 // what 0 means since the first bzImage
	}
	start := (sects+1)*sectorBytes + int64(binary.LittleEndian.Uint32(bz[offPayloadOffset:]))
	end := start + int64(binary.LittleEndian.Uint32(bz[offPayloadLength:]))
	if start > end || end > int64(len(bz)) {
		return nil, fmt.Errorf("payload at %d to %d lies outside the file of %d bytes", start, end, len(bz))
	}
	payload := bz[start:end]
	if !bytes.HasPrefix(payload, []byte(gzipMagic)) && !bytes.HasPrefix(payload, []byte(elf.ELFMAG)) && len(payload) > 4 {
		payload = payload[:len(payload)-4] // the size, which the kernel's build appends; gzip has its own
	}
	image, err := decompress(payload, maxVMLinux)
	if err != nil {
		return nil, fmt.Errorf("decompress payload: %w", err)
	}
	if err := checkPVH(image); err != nil {
		return nil, err
	}
	return image, nil
}

// Magic numbers of compressed files.
const (
	lz4Legacy = "\x02\x21\x4c\x18"
	gzipMagic = "\x1f\x8b"
	xzMagic   = "\xfd7zXZ\x00"
	zstdMagic = "\x28\xb5\x2f\xfd"
)

// decompress knows the formats of kernels and modules by their magic numbers;
// anything else is taken as not compressed.
func decompress(data []byte, limit int64) ([]byte, error) {
	var r io.Reader
	var err error
	switch in := bytes.NewReader(data); {
	case bytes.HasPrefix(data, []byte(lz4Legacy)):
		return decompressLZ4Legacy(data, limit)
	case bytes.HasPrefix(data, []byte(gzipMagic)):
		r, err = gzip.NewReader(in)
	case bytes.HasPrefix(data, []byte(xzMagic)):
		r, err = xz.ReaderConfig{DictCap: 64 << 20}.NewReader(in)
	case bytes.HasPrefix(data, []byte(zstdMagic)):
		var zr *zstd.Decoder
		if zr, err = zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(uint64(limit))); err == nil {
			defer zr.Close()
			r = zr
		}
	default:
		return data, nil
	}
	if err != nil {
		return nil, err
	}
	return readLimited(r, limit)
}

// decompressLZ4Legacy reads the frame that `lz4 -l` writes: blocks of at most
// 8 MiB, each behind its compressed size.
func decompressLZ4Legacy(data []byte, limit int64) ([]byte, error) {
	var out []byte
	block := make([]byte, 8<<20)
	for data = data[len(lz4Legacy):]; len(data) >= 4; {
		if bytes.HasPrefix(data, []byte(lz4Legacy)) {
			data = data[len(lz4Legacy):]
			continue
		}
		n := int64(binary.LittleEndian.Uint32(data))
		if n > int64(len(data)-4) {
			return nil, fmt.Errorf("lz4 block of %d bytes, %d are left", n, len(data)-4)
		}
		size, err := lz4.UncompressBlock(data[4:4+n], block)
		if err != nil {
			return nil, fmt.Errorf("lz4 block: %w", err)
		}
		if int64(len(out)+size) > limit {
			return nil, fmt.Errorf("more than %d bytes", limit)
		}
		out = append(out, block[:size]...)
		data = data[4+n:]
	}
	return out, nil
}

const notePhys32Entry = 18 // XEN_ELFNOTE_PHYS32_ENTRY: where a PVH boot enters

func checkPVH(image []byte) error {
	f, err := elf.NewFile(bytes.NewReader(image))
	if err != nil {
		return fmt.Errorf("read kernel ELF: %w", err)
	}
	if f.Class != elf.ELFCLASS64 || f.Machine != elf.EM_X86_64 {
		return fmt.Errorf("kernel is %v %v, want a 64-bit x86-64 ELF", f.Class, f.Machine)
	}
	for _, p := range f.Progs {
		if p.Type != elf.PT_NOTE || p.Filesz > 1<<20 {
			continue
		}
		notes := make([]byte, p.Filesz)
		if _, err := p.ReadAt(notes, 0); err != nil {
			return fmt.Errorf("read kernel ELF notes: %w", err)
		}
		if hasNote(notes, "Xen\x00", notePhys32Entry) {
			return nil
		}
	}
	return errors.New("kernel has no PVH entry note; want one built with CONFIG_PVH, as Debian's are")
}

func hasNote(notes []byte, name string, kind uint32) bool {
	padded := func(n uint32) int64 { return (int64(n) + 3) &^ 3 }
	for len(notes) >= 12 {
		nameLen, descLen := binary.LittleEndian.Uint32(notes), binary.LittleEndian.Uint32(notes[4:])
		size := 12 + padded(nameLen) + padded(descLen)
		if size > int64(len(notes)) {
			return false
		}
		if binary.LittleEndian.Uint32(notes[8:]) == kind && string(notes[12:12+nameLen]) == name {
			return true
		}
		notes = notes[size:]
	}
	return false
}
