package flatten

import (
	"bufio"
	"bytes"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// Compression is how a stream is packed.
type Compression string

const (
	Plain Compression = ""
	Gzip  Compression = "gzip"
	Zstd  Compression = "zstd"
)

const bufferSize = 1 << 20

// zstdWindow bounds the memory that a frame may ask for; encoders in use stay
// at 8 MiB, and "--long" at 128 MiB.
const zstdWindow = 128 << 20

// Decompress finds out how r is packed and returns what is inside. The reader
// must be closed before r is.
func Decompress(r io.Reader) (io.ReadCloser, Compression, error) {
	br := bufio.NewReaderSize(r, bufferSize)
	head, err := br.Peek(6)
	if err != nil && err != io.EOF {
		return nil, Plain, err
	}
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		zr, err := gzip.NewReader(br)
		if err != nil {
			return nil, Gzip, fmt.Errorf("gzip: %w", err)
		}
		return zr, Gzip, nil
	case bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		zr, err := zstd.NewReader(br, zstd.WithDecoderMaxWindow(zstdWindow), zstd.WithDecoderConcurrency(2))
		if err != nil {
			return nil, Zstd, fmt.Errorf("zstd: %w", err)
		}
		return zr.IOReadCloser(), Zstd, nil
	case bytes.HasPrefix(head, []byte("BZh")), bytes.HasPrefix(head, []byte("\xfd7zXZ\x00")):
		return nil, Plain, fmt.Errorf("packed with bzip2 or xz, which images are not; unpack it first, or use gzip or zstd")
	}
	return io.NopCloser(br), Plain, nil
}
