package flatten

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/Microsoft/hcsshim/ext4/tar2ext4"
)

const (
	xattrRecord = "SCHILY.xattr."
	aclAccess   = "system.posix_acl_access"
	aclDefault  = "system.posix_acl_default"
)

// xattrs takes the extended attributes out of PAX records: those of name
// spaces that Linux keeps on ext4. Overlay's own would change what the guest's
// overlay shows instead of being attributes, so they are left out.
func xattrs(records map[string]string) (attrs map[string]string, size int, err error) {
	for key, value := range records {
		name, ok := strings.CutPrefix(key, xattrRecord)
		if !ok || !keepXattr(name) {
			continue
		}
		if len(name) > maxName {
			return nil, 0, fmt.Errorf("extended attribute name is longer than %d bytes", maxName)
		}
		if attrs == nil {
			attrs = make(map[string]string)
		}
		attrs[name] = value
		size += len(name) + len(value)
	}
	return attrs, size, nil
}

func keepXattr(name string) bool {
	if name == aclAccess || name == aclDefault {
		return true
	}
	space, rest, _ := strings.Cut(name, ".")
	switch space {
	case "user", "trusted":
		return rest != "" && !strings.HasPrefix(rest, "overlay.")
	case "security":
		return rest != ""
	}
	return false
}

// ext4ACL turns an access control list from the form of system calls (and of
// tars) into the one on disk: version 1, and an id only where the tag has one.
func ext4ACL(v string) (string, error) {
	const apiVersion, diskVersion = 2, 1
	const tagUser, tagGroup = 0x02, 0x08
	b := []byte(v)
	if len(b) < 4 || (len(b)-4)%8 != 0 || binary.LittleEndian.Uint32(b) != apiVersion {
		return "", errors.New("damaged access control list")
	}
	out := binary.LittleEndian.AppendUint32(nil, diskVersion)
	for e := b[4:]; len(e) > 0; e = e[8:] {
		n := 4
		if tag := binary.LittleEndian.Uint16(e); tag == tagUser || tag == tagGroup {
			n = 8
		}
		out = append(out, e[:n]...)
	}
	return string(out), nil
}

// ext4Time returns the time that makes tar2ext4 write what Linux reads as t.
// It stores the low 34 bits of the seconds, but on disk the upper two of them
// count the times that a signed 32-bit number has wrapped. Times outside the
// years 1901 to 2310 become the nearest one inside.
func ext4Time(t time.Time) time.Time {
	const first, last = -1 << 31, 0x27fffffff
	s := min(max(t.Unix(), first), last)
	epoch := (s - int64(int32(s))) >> 32
	return time.Unix(int64(uint32(s))|epoch<<32, int64(t.Nanosecond()))
}

const (
	blockSize = 4096
	inodeSize = 256
	groupDesc = 32 // bytes of one group's descriptor; they begin at block 1
)

// mend corrects what tar2ext4 leaves: bits behind the end of each inode bitmap
// are set, as e2fsck wants them, and the entries of attribute blocks are
// sorted as the kernel's search needs them.
func mend(f *os.File) error {
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	sb, err := tar2ext4.ReadExt4SuperBlockReadSeeker(f)
	if err != nil {
		return fmt.Errorf("read superblock: %w", err)
	}
	groups := sb.InodesCount / sb.InodesPerGroup
	descs := make([]byte, groups*groupDesc)
	if _, err := f.ReadAt(descs, blockSize); err != nil {
		return fmt.Errorf("read group descriptors: %w", err)
	}
	padding := make([]byte, blockSize-sb.InodesPerGroup/8)
	for i := range padding {
		padding[i] = 0xff
	}
	table := make([]byte, sb.InodesPerGroup*inodeSize)
	for ; len(descs) > 0; descs = descs[groupDesc:] {
		bitmap := int64(binary.LittleEndian.Uint32(descs[4:])) * blockSize
		if _, err := f.WriteAt(padding, bitmap+int64(sb.InodesPerGroup/8)); err != nil {
			return err
		}
		if _, err := f.ReadAt(table, int64(binary.LittleEndian.Uint32(descs[8:]))*blockSize); err != nil {
			return err
		}
		for inode := table; len(inode) > 0; inode = inode[inodeSize:] {
			if block := binary.LittleEndian.Uint32(inode[104:]); block != 0 { // i_file_acl_lo
				if err := sortXattrs(f, int64(block)*blockSize); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// sortXattrs orders the entries of an attribute block by name space, length
// and name (fs/ext4/xattr.c). Values stay where they are.
func sortXattrs(f *os.File, offset int64) error {
	const header = 32
	b := make([]byte, blockSize)
	if _, err := f.ReadAt(b, offset); err != nil {
		return err
	}
	var entries [][]byte
	end := header
	for binary.LittleEndian.Uint32(b[end:]) != 0 {
		n := (int(b[end]) + 16 + 3) &^ 3
		entries = append(entries, slices.Clone(b[end:end+n]))
		end += n
	}
	slices.SortFunc(entries, func(x, y []byte) int {
		if x[1] != y[1] {
			return int(x[1]) - int(y[1])
		}
		if x[0] != y[0] {
			return int(x[0]) - int(y[0])
		}
		return strings.Compare(string(x[16:]), string(y[16:]))
	})
	at := header
	for _, e := range entries {
		at += copy(b[at:], e)
	}
	_, err := f.WriteAt(b, offset)
	return err
}
