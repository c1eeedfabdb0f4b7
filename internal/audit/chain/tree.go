package chain

import (
	"crypto/sha256"
	"math/bits"

	"golang.org/x/mod/sumdb/tlog"
)

// Tree is the growing edge of a Merkle tree (RFC 6962): its size and the roots
// of its full subtrees, largest first. It is all that adding a leaf and taking
// the root need, so a log of any length is read in constant memory.
type Tree struct {
	Size  int64
	Peaks []tlog.Hash
}

// Add appends a line, without its newline.
func (t *Tree) Add(leaf []byte) {
	h := tlog.RecordHash(leaf)
	for n := t.Size; n&1 == 1; n >>= 1 {
		last := len(t.Peaks) - 1
		h = tlog.NodeHash(t.Peaks[last], h)
		t.Peaks = t.Peaks[:last]
	}
	t.Peaks = append(t.Peaks, h)
	t.Size++
}

// Root is the root hash of RFC 6962.
func (t *Tree) Root() tlog.Hash {
	if t.Size == 0 {
		return sha256.Sum256(nil)
	}
	last := len(t.Peaks) - 1
	h := t.Peaks[last]
	for i := last - 1; i >= 0; i-- {
		h = tlog.NodeHash(t.Peaks[i], h)
	}
	return h
}

// Clone returns a tree that can grow without changing t.
func (t *Tree) Clone() Tree {
	return Tree{t.Size, append(make([]tlog.Hash, 0, len(t.Peaks)+8), t.Peaks...)}
}

// WellFormed reports whether there are as many peaks as the size has subtrees.
func (t *Tree) WellFormed() bool {
	return t.Size >= 0 && len(t.Peaks) == bits.OnesCount64(uint64(t.Size))
}
