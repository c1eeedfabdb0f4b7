// Package flatten turns the layers of an image into one read-only ext4 file:
// [Ext4] reads each [Layer] once, applies them from the lowest up to a tree in
// memory as the OCI image specification has it (whiteouts, opaque directories,
// hard links), and writes the result. The same layers always give the same
// bytes.
//
// Layers are hostile: everything in them is bounded by [Limits], and no name
// in them is ever used as a path of this host. The package must not know
// references, registries or where images are kept.
package flatten

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
)

// Version changes whenever the same layers would give other bytes than before,
// so that files built by an older Creel are not taken for this one's.
const Version = 1

// Layer is one layer as it is stored, compressed with gzip or zstd or not.
type Layer struct {
	Name   string                   // for errors
	DiffID string                   // sha256:… of the uncompressed tar, checked
	Open   func() (*os.File, error) // closed by Ext4
}

// Limits bound what the layers of one image may hold together.
type Limits struct {
	Bytes    int64 // uncompressed layers, and files with holes filled
	Entries  int64
	Metadata int64 // bytes of names, link targets and extended attributes
}

// DefaultLimits are beyond any image in use, and within what the ext4 writer
// lays out correctly (it does not above 42 GiB for one file).
func DefaultLimits() Limits {
	return Limits{Bytes: 32 << 30, Entries: 4 << 20, Metadata: 1 << 30}
}

const (
	maxPath  = 4096 // bytes of a path, as PATH_MAX
	maxName  = 255  // bytes of one name, as ext4
	maxDepth = 1024 // directories above an entry
	maxHops  = 40   // symbolic links in one path, as Linux
)

// Ext4 writes the file system made of layers, lowest first, to out, which is
// empty. Layers that are compressed are unpacked to nameless files in scratch,
// a directory. On error the content of out is undefined.
func Ext4(ctx context.Context, layers []Layer, scratch string, out *os.File, limits Limits) error {
	b := &budget{limits: limits}
	indexes := make([]*index, len(layers))
	defer func() {
		for _, x := range indexes {
			x.close()
		}
	}()
	if err := indexAll(ctx, layers, scratch, b, indexes); err != nil {
		return err
	}
	t := newTree()
	for i, x := range indexes {
		if err := t.apply(i, x); err != nil {
			return fmt.Errorf("apply layer %s: %w", layers[i].Name, err)
		}
		x.entries = nil // only the tree is needed from here on
	}
	return t.writeExt4(ctx, out)
}

// indexAll reads the layers side by side, as many as there are processors.
func indexAll(ctx context.Context, layers []Layer, scratch string, b *budget, out []*index) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var next atomic.Int64
	var wg sync.WaitGroup
	for range min(len(layers), runtime.GOMAXPROCS(0)) {
		wg.Go(func() {
			for i := next.Add(1) - 1; i < int64(len(layers)) && ctx.Err() == nil; i = next.Add(1) - 1 {
				x, err := readIndex(ctx, layers[i], scratch, b)
				if err != nil {
					cancel(fmt.Errorf("read layer %s: %w", layers[i].Name, err))
					return
				}
				out[i] = x
			}
		})
	}
	wg.Wait()
	return context.Cause(ctx)
}

// budget counts what all layers used of the limits.
type budget struct {
	limits                   Limits
	bytes, entries, metadata atomic.Int64
}

func (b *budget) takeBytes(n int64) error {
	if n < 0 || b.bytes.Add(n) > b.limits.Bytes {
		return fmt.Errorf("the image unpacks to more than %d MiB, the most that Creel accepts; use a smaller image", b.limits.Bytes>>20)
	}
	return nil
}

func (b *budget) takeEntry(metadata int) error {
	if b.entries.Add(1) > b.limits.Entries {
		return fmt.Errorf("the image has more than %d entries, the most that Creel accepts; use a smaller image", b.limits.Entries)
	}
	if b.metadata.Add(int64(metadata)) > b.limits.Metadata {
		return fmt.Errorf("names and attributes of the image exceed %d MiB, the most that Creel accepts", b.limits.Metadata>>20)
	}
	return nil
}
