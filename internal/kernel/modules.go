package kernel

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
)

// wanted are the modules of the guest's devices and file systems. What a
// kernel has built in is skipped.
var wanted = []string{
	"virtio_mmio", "virtio_console", "virtio_blk", "virtio_net", "virtio_rng",
	"overlay", "fuse",
}

// moduleName is the name by which dependencies refer to a module's file.
func moduleName(file string) string {
	name, _, _ := strings.Cut(path.Base(file), ".ko")
	return strings.ReplaceAll(name, "-", "_")
}

// loadOrder is the closure of wanted over depends, each module behind those
// that it needs. Modules have no modules.dep in their package: it is made on
// the machine that installs them.
func loadOrder(wanted []string, has func(string) bool, builtin map[string]bool, depends func(string) ([]string, error)) ([]string, error) {
	var order []string
	var visit func(name string, path []string) error
	visit = func(name string, above []string) error {
		switch {
		case slices.Contains(order, name):
			return nil
		case slices.Contains(above, name):
			return fmt.Errorf("module %s needs itself, by way of %s", name, strings.Join(above, ", "))
		case !has(name) && builtin[name]:
			return nil
		case !has(name):
			return fmt.Errorf("module %s is neither there nor built in; want a kernel with its modules, such as Debian's cloud kernel", name)
		}
		needs, err := depends(name)
		if err != nil {
			return fmt.Errorf("module %s: %w", name, err)
		}
		for _, n := range needs {
			if err := visit(n, append(above, name)); err != nil {
				return err
			}
		}
		order = append(order, name)
		return nil
	}
	for _, name := range wanted {
		if err := visit(name, nil); err != nil {
			return nil, err
		}
	}
	return order, nil
}

// moduleDepends reads "depends=" from a module's .modinfo section. A module of
// another kernel than the release is an error: that kernel will not load it.
func moduleDepends(module []byte, release string) ([]string, error) {
	f, err := elf.NewFile(bytes.NewReader(module))
	if err != nil {
		return nil, fmt.Errorf("read ELF: %w", err)
	}
	info := f.Section(".modinfo")
	if info == nil || info.Size > uint64(len(module)) {
		return nil, errors.New("no .modinfo section")
	}
	data, err := info.Data()
	if err != nil {
		return nil, fmt.Errorf("read .modinfo: %w", err)
	}
	var needs []string
	for entry := range strings.SplitSeq(string(data), "\x00") {
		if magic, ok := strings.CutPrefix(entry, "vermagic="); ok {
			if of, _, _ := strings.Cut(magic, " "); of != release {
				return nil, fmt.Errorf("it is of kernel %q, and the kernel is %q", of, release)
			}
		}
		list, ok := strings.CutPrefix(entry, "depends=")
		if !ok || list == "" {
			continue
		}
		for name := range strings.SplitSeq(list, ",") {
			needs = append(needs, moduleName(name))
		}
	}
	return needs, nil
}
