package decode

import (
	"bytes"
	"context"
	"errors"
	"io"
	"runtime"
	"testing"
	"time"

	"github.com/andybalholm/brotli"
)

// hostile is a beginning of a body in brotli that is as small as can be, and
// asks for a window of so many bits.
func hostile(t testing.TB, bits int) []byte {
	t.Helper()
	var b bytes.Buffer
	w := brotli.NewWriterOptions(&b, brotli.WriterOptions{Quality: 5, LGWin: bits})
	if _, err := w.Write(make([]byte, 1<<bits)); err != nil {
		t.Fatal(err)
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// blocking is a body that ends only when it is closed.
type blocking struct {
	io.Reader
	closed chan struct{}
}

func block(data []byte) *blocking { return &blocking{bytes.NewReader(data), make(chan struct{})} }

func (b *blocking) Read(p []byte) (int, error) {
	if n, _ := b.Reader.Read(p); n > 0 {
		return n, nil
	}
	<-b.closed
	return 0, io.ErrUnexpectedEOF
}

func (b *blocking) Close() error { close(b.closed); return nil }

func live() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// soon is a context that ends before anything is given back.
func soon(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	t.Cleanup(cancel)
	return ctx
}

// left is how much of a budget can be had.
func (b *Budget) left() (n int64) {
	for step := b.size; step > 0; step /= 2 {
		for b.memory.TryAcquire(step) {
			n += step
		}
	}
	b.memory.Release(n)
	return n
}

func TestWhatDecodersHoldIsCharged(t *testing.T) {
	for _, bits := range []int{16, 17, 18, 22, maxBrotliWindow} {
		data := hostile(t, bits)
		b := NewBudget(1 << 30)
		before := live()
		body := block(data)
		d, err := b.Open(t.Context(), "br", body)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(d, make([]byte, 1<<bits)); err != nil {
			t.Fatal(err)
		}
		held, charged := live()-before, b.size-b.left()
		if held > charged || charged > held+brotliTables {
			t.Errorf("%d bytes with a window of %d bits hold %d bytes, and %d were charged", len(data), bits, held, charged)
		}
		d.Close()
		if b.left() != b.size {
			t.Errorf("%d of %d bytes were given back", b.left(), b.size)
		}
	}
	gzipped := encode(t, "gzip", make([]byte, 1<<20))
	for _, encoding := range []string{"gzip", "deflate"} {
		b := NewBudget(1 << 30)
		before := live()
		d, err := b.Open(t.Context(), encoding, block(encode(t, encoding, gzipped)))
		if err != nil {
			t.Fatal(err)
		}
		d.Read(make([]byte, 10))
		if held := live() - before; held > flateCost {
			t.Errorf("%s holds %d bytes, and %d were charged", encoding, held, flateCost)
		}
		d.Close()
	}
}

func TestBrotliWindow(t *testing.T) {
	for bits := 10; bits <= maxBrotliWindow; bits++ {
		var b bytes.Buffer
		w := brotli.NewWriterOptions(&b, brotli.WriterOptions{Quality: 5, LGWin: bits})
		io.WriteString(w, "x")
		w.Close()
		if got := brotliWindow(b.Bytes()[0]); got != bits {
			t.Errorf("a window of %d bits was read as one of %d", bits, got)
		}
	}
}

func TestBudget(t *testing.T) {
	b := NewBudget(2 * brotliCost)
	first, err := b.Open(t.Context(), "br", block(hostile(t, 24)))
	if err != nil {
		t.Fatal(err)
	}
	second, err := b.Open(soon(t), "gzip, br", block(nil))
	if !errors.Is(err, ErrBudget) {
		t.Fatalf("two bodies got more than there is: %v, %v", second, err)
	}
	if second, err = b.Open(t.Context(), "br", block(hostile(t, 16))); err != nil {
		t.Fatal(err)
	}
	if _, err := second.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	// The small window was paid for as a large one only until it was known.
	third, err := b.Open(t.Context(), "gzip, gzip, gzip", block(nil))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := first.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	// What waits gets what is given back.
	waited := make(chan error)
	go func() {
		_, err := b.Open(t.Context(), "br", io.NopCloser(bytes.NewReader(nil)))
		waited <- err
	}()
	first.Close()
	if err := <-waited; err != nil {
		t.Error(err)
	}
	second.Close()
	third.Close()
	if got := b.left(); got != brotliCost {
		t.Errorf("%d bytes are left, want %d", got, brotliCost)
	}
}

// TestMemoryComesBack has every way in which a body can end.
func TestMemoryComesBack(t *testing.T) {
	whole := encode(t, "br", []byte("some text"))
	for name, end := range map[string]func(io.ReadCloser){
		"closed unread": func(d io.ReadCloser) { d.Close() },
		"closed twice":  func(d io.ReadCloser) { d.Close(); d.Close() },
		"closed while it is read": func(d io.ReadCloser) {
			done := make(chan struct{})
			go func() {
				io.Copy(io.Discard, d)
				close(done)
			}()
			d.Close()
			<-done
		},
		"read to its end": func(d io.ReadCloser) { io.Copy(io.Discard, d) },
	} {
		for kind, body := range map[string]io.ReadCloser{
			"whole": io.NopCloser(bytes.NewReader(whole)), "cut": io.NopCloser(bytes.NewReader(whole[:3])), "none": io.NopCloser(bytes.NewReader(nil)),
			"malformed": io.NopCloser(bytes.NewReader([]byte("\xfe is plain text"))), "endless": block(whole[:3]),
		} {
			if name == "read to its end" && kind == "endless" {
				continue
			}
			b := NewBudget(64 << 20)
			d, err := b.Open(t.Context(), "br", body)
			if err != nil {
				t.Fatal(err)
			}
			end(d)
			if b.left() != b.size {
				t.Errorf("%s, %s: %d bytes were not given back", name, kind, b.size-b.left())
			}
		}
	}
}
