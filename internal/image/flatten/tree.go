package flatten

import (
	"archive/tar"
	"errors"
	"fmt"
	"path"
	"strings"
	"time"
)

const (
	whiteout     = ".wh."
	whiteoutMeta = ".wh..wh."
	opaque       = ".wh..wh..opq"
)

// node is one file. Hard links are several names of one node.
type node struct {
	meta
	layer    int // that last said what this file is
	touched  int // last layer that put something below this directory
	children map[string]*node
	written  string // first name under which it was written
}

func (n *node) isDir() bool { return n.typ == tar.TypeDir }

// tree is the file system as far as the layers were applied.
type tree struct{ root *node }

func newTree() *tree { return &tree{root: newDir(-1)} }

// newDir is a directory that no entry describes: 0755 and root's, as Docker
// makes them.
func newDir(layer int) *node {
	return &node{
		meta:  meta{typ: tar.TypeDir, mode: 0o755, mtime: time.Unix(0, 0)},
		layer: layer, touched: layer, children: map[string]*node{},
	}
}

func (t *tree) apply(layer int, x *index) error {
	for i := range x.entries {
		if err := t.applyEntry(layer, &x.entries[i]); err != nil {
			return fmt.Errorf("entry %.200q: %w", x.entries[i].name, err)
		}
	}
	return nil
}

func (t *tree) applyEntry(layer int, e *entry) error {
	dirName, base, err := splitName(e.name)
	if err != nil {
		return err
	}
	if base == "" { // the root itself
		if e.hard || !e.isDir() {
			return errors.New("the root of an image must be a directory")
		}
		t.root.meta, t.root.layer = e.meta, layer
		return nil
	}
	if strings.HasPrefix(base, whiteoutMeta) && base != opaque {
		return nil // bookkeeping of AUFS
	}
	dir, err := t.walk(dirName, layer)
	if err != nil {
		return err
	}
	switch {
	case base == opaque:
		for name := range dir.children {
			hide(dir, name, layer)
		}
		return nil
	case strings.HasPrefix(base, whiteout):
		name := base[len(whiteout):]
		if name == "" || name == "." || name == ".." {
			return errors.New("whiteout of nothing")
		}
		hide(dir, name, layer)
		return nil
	case e.hard:
		return t.link(dir, base, e.link)
	}
	put(dir, base, layer, e.meta)
	return nil
}

func (e *entry) isDir() bool { return e.typ == tar.TypeDir }

// splitName cleans a name as Docker does: absolute names are taken below the
// root, and a name that leaves it is refused.
func splitName(name string) (dir, base string, err error) {
	clean := path.Clean(strings.TrimLeft(name, "/"))
	switch {
	case name == "":
		return "", "", errors.New("empty name")
	case clean == ".." || strings.HasPrefix(clean, "../"):
		return "", "", errors.New("name leaves the root of the image")
	case clean == ".":
		return "", "", nil
	}
	dir, base = path.Split(clean)
	if len(base) > maxName {
		return "", "", fmt.Errorf("name is longer than %d bytes", maxName)
	}
	return dir, base, nil
}

// put makes name in dir what m says. A directory that meets a directory keeps
// its content; everything else is replaced.
func put(dir *node, name string, layer int, m meta) {
	n := dir.children[name]
	if n != nil && n.isDir() && m.typ == tar.TypeDir {
		n.meta, n.layer = m, layer
		return
	}
	n = &node{meta: m, layer: layer, touched: layer}
	if m.typ == tar.TypeDir {
		n.children = map[string]*node{}
	}
	dir.children[name] = n
}

func (t *tree) link(dir *node, name, target string) error {
	targetDir, base, err := splitName(target)
	if err != nil {
		return fmt.Errorf("hard link to %.200q: %w", target, err)
	}
	from, err := t.resolve(targetDir, walkOptions{})
	if err != nil {
		return fmt.Errorf("hard link to %.200q: %w", target, err)
	}
	n := from[len(from)-1].children[base]
	switch {
	case n == nil:
		return fmt.Errorf("hard link to %.200q, which does not exist", target)
	case n.isDir():
		return fmt.Errorf("hard link to %.200q, which is a directory", target)
	}
	dir.children[name] = n
	return nil
}

// hide takes away what layers below put at name; what this layer put there
// stays, wherever in the layer the whiteout is.
func hide(dir *node, name string, layer int) {
	n := dir.children[name]
	switch {
	case n == nil:
	case !n.isDir():
		if n.layer < layer {
			delete(dir.children, name)
		}
	case n.layer < layer && n.touched < layer:
		delete(dir.children, name)
	default:
		if n.layer < layer { // known to this layer only as a parent
			n.meta, n.layer = newDir(layer).meta, layer
		}
		for child := range n.children {
			hide(n, child, layer)
		}
	}
}

// walk returns the directory of an entry, with symbolic links followed inside
// the root, and what is missing made.
func (t *tree) walk(name string, layer int) (*node, error) {
	stack, err := t.resolve(name, walkOptions{create: true, layer: layer})
	if err != nil {
		return nil, err
	}
	for _, n := range stack {
		n.touched = layer
	}
	return stack[len(stack)-1], nil
}

type walkOptions struct {
	create bool
	layer  int // that makes what is missing
}

// resolve returns the directories from the root down to name.
func (t *tree) resolve(name string, o walkOptions) ([]*node, error) {
	stack := []*node{t.root}
	todo := strings.Split(name, "/")
	for hops := 0; len(todo) > 0; {
		part := todo[0]
		todo = todo[1:]
		cur := stack[len(stack)-1]
		if part == "" || part == "." {
			continue
		}
		if part == ".." {
			stack = stack[:max(1, len(stack)-1)]
			continue
		}
		next := cur.children[part]
		if next != nil && next.typ == tar.TypeSymlink {
			if hops++; hops > maxHops {
				return nil, errors.New("too many symbolic links in its path")
			}
			if strings.HasPrefix(next.link, "/") {
				stack = stack[:1]
			}
			todo = append(strings.Split(next.link, "/"), todo...)
			continue
		}
		next, err := enter(cur, part, o)
		if err != nil {
			return nil, err
		}
		if stack = append(stack, next); len(stack) > maxDepth {
			return nil, fmt.Errorf("deeper than %d directories", maxDepth)
		}
	}
	return stack, nil
}

// enter returns the directory at name. A file of a lower layer gives way to
// the directory that this layer needs there; one of the same layer does not.
func enter(dir *node, name string, o walkOptions) (*node, error) {
	next := dir.children[name]
	switch {
	case next != nil && next.isDir():
		return next, nil
	case !o.create && next == nil:
		return nil, fmt.Errorf("directory %.200q does not exist", name)
	case !o.create, next != nil && next.layer == o.layer:
		return nil, fmt.Errorf("%.200q in its path is not a directory", name)
	case len(name) > maxName:
		return nil, fmt.Errorf("name is longer than %d bytes", maxName)
	}
	next = newDir(o.layer)
	dir.children[name] = next
	return next, nil
}
