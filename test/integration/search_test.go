package integration

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// needles are the ways in which a text may be written, by name.
type needles map[string][]byte

// spellings are for a text of at most 32 bytes.
func spellings(text string) needles {
	n := needles{
		"plain": []byte(text), "percent-encoded": []byte(url.QueryEscape(text)),
		"hex": []byte(hex.EncodeToString([]byte(text))), "upper-case hex": []byte(strings.ToUpper(hex.EncodeToString([]byte(text)))),
	}
	for before := range 3 {
		// Characters at the ends depend on what is around the text.
		bits := 8 * (before + len(text))
		code := base64.StdEncoding.EncodeToString([]byte(strings.Repeat("\x00", before) + text))
		n[fmt.Sprintf("base64 behind %d bytes", before)] = []byte(code[(8*before+5)/6 : bits/6])
	}
	return n
}

const (
	searchBlock   = 1 << 20
	searchOverlap = 128 // longer than a needle
)

// in reads to the end, and returns which needles are there and how much it read.
func (n needles) in(r io.Reader) (found []string, size int64, err error) {
	buf, zeros := make([]byte, searchOverlap+searchBlock), make([]byte, searchOverlap+searchBlock)
	kept := 0
	for err == nil {
		var got int
		got, err = io.ReadFull(r, buf[kept:])
		size += int64(got)
		if block := buf[:kept+got]; !bytes.Equal(block, zeros[:len(block)]) {
			for name, text := range n {
				if bytes.Contains(block, text) && !slices.Contains(found, name) {
					found = append(found, name)
				}
			}
		}
		kept = copy(buf, buf[max(0, kept+got-searchOverlap):kept+got])
	}
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		err = nil
	}
	return found, size, err
}

// inMemory searches all that a process has mapped readable.
func (n needles) inMemory(t *testing.T, pid int) (found []string, size int64) {
	t.Helper()
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		t.Fatal(err)
	}
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	for _, line := range lines(string(maps)) {
		if strings.Contains(line, "[v") { // the kernel's own pages
			continue
		}
		var from, to int64
		var mode string
		if _, err := fmt.Sscanf(line, "%x-%x %s", &from, &to, &mode); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if mode[0] != 'r' {
			continue
		}
		there, n, err := n.in(io.NewSectionReader(mem, from, to-from))
		if err != nil || n != to-from {
			t.Errorf("of %q %d bytes were read: %v", line, n, err)
		}
		for _, name := range there {
			found = append(found, fmt.Sprintf("%s in %s", name, line))
		}
		size += n
	}
	return found, size
}

// inFile searches what a file really has: disks are mostly holes.
func (n needles) inFile(path string) (found []string, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	for at := int64(0); ; {
		from, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
		if err == syscall.ENXIO { // nothing but a hole
			return found, nil
		}
		if err != nil {
			return nil, err
		}
		if at, err = unix.Seek(int(f.Fd()), from, unix.SEEK_HOLE); err != nil {
			return nil, err
		}
		there, _, err := n.in(io.NewSectionReader(f, from, at-from))
		if err != nil {
			return nil, err
		}
		found = append(found, there...) // once for each stretch of data
	}
}

// inFiles searches every file below a directory.
func (n needles) inFiles(t *testing.T, dir string) (found []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		there, err := n.inFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		for _, name := range there {
			found = append(found, name+" in "+path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}
