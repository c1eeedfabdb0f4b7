package audit

import (
	"crypto/sha256"
	"math/bits"

	"golang.org/x/mod/sumdb/tlog"
)

// tree is the growing edge of a Merkle tree (RFC 6962): its size and the roots
// of its full subtrees, largest first. It is all that adding a leaf and taking
// the root need, so a log of any length is read in constant memory.
type tree struct {
	size  int64
	peaks []tlog.Hash
}

func (t *tree) add(leaf []byte) {
	h := tlog.RecordHash(leaf)
	for n := t.size; n&1 == 1; n >>= 1 {
		last := len(t.peaks) - 1
		h = tlog.NodeHash(t.peaks[last], h)
		t.peaks = t.peaks[:last]
	}
	t.peaks = append(t.peaks, h)
	t.size++
}

func (t *tree) root() tlog.Hash {
	if t.size == 0 {
		return sha256.Sum256(nil)
	}
	last := len(t.peaks) - 1
	h := t.peaks[last]
	for i := last - 1; i >= 0; i-- {
		h = tlog.NodeHash(t.peaks[i], h)
	}
	return h
}

// clone returns a tree that can grow without changing t.
func (t *tree) clone() tree {
	return tree{t.size, append(make([]tlog.Hash, 0, len(t.peaks)+8), t.peaks...)}
}

// wellFormed reports whether there are as many peaks as the size has subtrees.
func (t *tree) wellFormed() bool {
	return t.size >= 0 && len(t.peaks) == bits.OnesCount64(uint64(t.size))
}
