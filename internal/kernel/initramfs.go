package kernel

import (
	"bufio"
	"fmt"
	"io"
	"path"
	"strings"
)

// WriteInitramfs writes the archive that the kernel unpacks and boots from:
// the guest agent as /init, the modules, and /modules/order, which names the
// module files a line each in the order in which they load. The same kernel
// and agent give the same bytes. Every module is checked against its digest.
func (k Kernel) WriteInitramfs(w io.Writer, agent []byte) error {
	c := cpio{w: bufio.NewWriterSize(w, 1<<20)}
	c.entry(cpioEntry{name: "dev", mode: modeDir | 0o755})
	c.entry(cpioEntry{name: "dev/console", mode: modeChar | 0o600, major: 5, minor: 1})
	c.entry(cpioEntry{name: "init", mode: modeFile | 0o755, data: agent})
	c.entry(cpioEntry{name: "modules", mode: modeDir | 0o755})
	var order strings.Builder
	for _, m := range k.Modules {
		data, err := k.read(m)
		if err != nil {
			return err
		}
		name := path.Base(m.Name)
		c.entry(cpioEntry{name: "modules/" + name, mode: modeFile | 0o644, data: data})
		order.WriteString(name + "\n")
	}
	c.entry(cpioEntry{name: "modules/order", mode: modeFile | 0o644, data: []byte(order.String())})
	c.entry(cpioEntry{name: "TRAILER!!!"})
	if c.err == nil {
		c.err = c.w.Flush()
	}
	if c.err != nil {
		return fmt.Errorf("write initramfs: %w", c.err)
	}
	return nil
}

const (
	modeDir  = 0o040000
	modeChar = 0o020000
	modeFile = 0o100000
)

// cpio writes the "newc" format (Linux,
// Documentation/driver-api/early-userspace/buffer-format.rst). Owners and
// times are zero. The first error stays.
type cpio struct {
	w     *bufio.Writer
	inode int
	err   error
}

type cpioEntry struct {
	name         string
	mode         uint32
	major, minor uint32 // of a device node
	data         []byte
}

func (c *cpio) entry(e cpioEntry) {
	if c.err != nil {
		return
	}
	c.inode++
	nameSize := len(e.name) + 1
	links := 1
	// magic, ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor,
	// rdevmajor, rdevminor, namesize, check
	_, c.err = fmt.Fprintf(c.w, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		c.inode, e.mode, 0, 0, links, 0, len(e.data), 0, 0, e.major, e.minor, nameSize, 0, e.name)
	const headerSize = 110
	c.pad(headerSize + nameSize)
	if c.err == nil {
		_, c.err = c.w.Write(e.data)
	}
	c.pad(len(e.data))
}

// pad fills up to a multiple of four bytes.
func (c *cpio) pad(n int) {
	if c.err == nil {
		_, c.err = c.w.WriteString("\x00\x00\x00"[:(4-n%4)%4])
	}
}
