// Package oom tells whether the host's kernel has killed processes for lack of
// memory. A [Count] is opened before a process locks itself in, and asked when
// another has died of SIGKILL. The package must not guess whom the kernel killed:
// it counts, and nothing more.
package oom

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"strconv"
)

const (
	vmstat   = "/proc/vmstat"
	maxBytes = 64 << 10
)

// Count is the number of processes that the kernel has killed for lack of
// memory, on the host as a whole and in its cgroups, since it was opened.
type Count struct {
	file  *os.File
	begin int64
}

// Open starts counting. Close gives the file back.
func Open() (*Count, error) { return open(vmstat) }

func open(path string) (*Count, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("count kills for lack of memory: %w", err)
	}
	c := &Count{file: f}
	if c.begin, err = c.total(); err != nil {
		f.Close()
		return nil, err
	}
	return c, nil
}

// Kills is how many there were since Open.
func (c *Count) Kills() (int64, error) {
	now, err := c.total()
	return now - c.begin, err
}

// Close ends the counting.
func (c *Count) Close() error { return c.file.Close() }

func (c *Count) total() (int64, error) {
	lines := bufio.NewScanner(io.NewSectionReader(c.file, 0, maxBytes))
	for lines.Scan() {
		name, value, _ := bytes.Cut(lines.Bytes(), []byte(" "))
		if string(name) == "oom_kill" {
			return strconv.ParseInt(string(value), 10, 64)
		}
	}
	if err := lines.Err(); err != nil {
		return 0, fmt.Errorf("count kills for lack of memory: %w", err)
	}
	return 0, fmt.Errorf("count kills for lack of memory: %s does not say (Linux 4.13 and later do)", c.file.Name())
}
