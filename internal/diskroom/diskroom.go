// Package diskroom knows how much of a file system Creel may fill. It must not
// know what for, and must not write.
package diskroom

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// MaxReserve is how many bytes are kept free of a large file system.
const MaxReserve = 1 << 30

const maxSpare = 1 << 16 // files that it must still be able to hold

// Reserve is how much of a file system of this size, in bytes, Creel leaves
// free: a twentieth of it, at most 1 GiB.
func Reserve(size int64) int64 { return min(size/20, MaxReserve) }

// Room is of a file system.
type Room struct {
	Free, Size   int64 // bytes that a user may still write, and all
	Files, Spare int64 // files that it can still hold, and that it must be left; 0 both where it has no such limit
	Block        int64 // bytes that the smallest file takes
}

// Left is how many bytes may be written before the reserve is touched.
func (r Room) Left() int64 { return max(r.Free-Reserve(r.Size), 0) }

// Of is the room on the file system of dir.
func Of(dir string) (Room, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return Room{}, fmt.Errorf("look for room in %s: %w", dir, err)
	}
	return roomOf(fs), nil
}

// OfFile is the room on the file system of a file or directory.
func OfFile(f *os.File) (Room, error) {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &fs); err != nil {
		return Room{}, fmt.Errorf("look for room in %s: %w", f.Name(), err)
	}
	return roomOf(fs), nil
}

func roomOf(fs unix.Statfs_t) Room {
	return Room{Free: int64(fs.Bavail) * fs.Bsize, Size: int64(fs.Blocks) * fs.Bsize, Block: fs.Bsize,
		Files: int64(fs.Ffree), Spare: int64(min(fs.Files/20, maxSpare))}
}
