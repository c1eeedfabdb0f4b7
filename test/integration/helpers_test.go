package integration

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"strings"
	"testing"
	"time"

	"creel/test/images"
	"creel/test/rig"
)

func sha256Hex(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// screen collects what a terminal shows.
type screen struct {
	t     *testing.T
	bytes chan string // closed at the terminal's end
	seen  string
}

func newScreen(t *testing.T, terminal *os.File) *screen {
	s := &screen{t: t, bytes: make(chan string)}
	done := t.Context().Done()
	go func() {
		defer close(s.bytes)
		buf := make([]byte, 4<<10)
		for {
			n, err := terminal.Read(buf)
			if err != nil {
				return
			}
			select {
			case s.bytes <- string(buf[:n]):
			case <-done:
				return
			}
		}
	}()
	return s
}

// await reads on until text has been shown since the last call.
func (s *screen) await(text string) {
	s.t.Helper()
	timer := time.NewTimer(rig.Patience)
	defer timer.Stop()
	for {
		if _, after, found := strings.Cut(s.seen, text); found {
			s.seen = after
			return
		}
		select {
		case more, open := <-s.bytes:
			if !open {
				s.t.Fatalf("the terminal ended; wanted %q after %q", text, s.seen)
			}
			s.seen += more
		case <-timer.C:
			s.t.Fatalf("the terminal shows %q, want %q", s.seen, text)
		}
	}
}

// lines of the text, without the last one's end.
func lines(text string) []string { return strings.Split(strings.TrimSuffix(text, "\n"), "\n") }

// debianLayer is the layer that images of tests stand on.
func debianLayer(t *testing.T) []byte {
	t.Helper()
	base, err := images.Debian(rig.Context(t))
	if err != nil {
		t.Fatal(err)
	}
	layer, err := os.ReadFile(base)
	if err != nil {
		t.Fatal(err)
	}
	return layer
}

// importBusybox takes the smallest image in.
func importBusybox(t *testing.T, r *rig.Rig) {
	t.Helper()
	tar, err := images.Busybox(rig.Context(t))
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(tar)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if got := r.RunIn(t, f, "image", "import", "-", "busybox"); got.Code != 0 {
		t.Fatalf("import busybox: %+v", got)
	}
}
