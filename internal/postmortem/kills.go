package postmortem

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

// Kills is the number of processes that the kernel has killed for lack of
// memory, on the host as a whole and in its cgroups, since it was opened.
type Kills struct {
	file  *os.File
	begin int64
}

// OpenKills starts counting. Close gives the file back.
func OpenKills() (*Kills, error) { return open(vmstat) }

func open(path string) (*Kills, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("count kills for lack of memory: %w", err)
	}
	c := &Kills{file: f}
	if c.begin, err = c.total(); err != nil {
		f.Close()
		return nil, err
	}
	return c, nil
}

// Count is how many there were since then.
func (c *Kills) Count() (int64, error) {
	now, err := c.total()
	return now - c.begin, err
}

// Close ends the counting; nil has nothing to end.
func (c *Kills) Close() error {
	if c == nil {
		return nil
	}
	return c.file.Close()
}

func (c *Kills) total() (int64, error) {
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
