package diskroom

import (
	"os"
	"testing"
)

func TestReserve(t *testing.T) {
	for size, want := range map[int64]int64{0: 0, 20 << 20: 1 << 20, 20 << 30: 1 << 30, 1 << 40: 1 << 30} {
		if got := Reserve(size); got != want {
			t.Errorf("of %d: %d, want %d", size, got, want)
		}
	}
	if left := (Room{Free: 10, Size: 1 << 40}).Left(); left != 0 {
		t.Errorf("below the reserve, %d bytes are left", left)
	}
}

func TestRoom(t *testing.T) {
	dir := t.TempDir()
	room, err := Of(dir)
	if err != nil || room.Free <= 0 || room.Size < room.Free || room.Block <= 0 || room.Left() >= room.Free {
		t.Errorf("%+v, %v", room, err)
	}
	if _, err := Of(dir + "/none"); err == nil {
		t.Error("what is not there has room")
	}
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if of, err := OfFile(f); err != nil || of.Size != room.Size {
		t.Errorf("%+v, %v", of, err)
	}
}
