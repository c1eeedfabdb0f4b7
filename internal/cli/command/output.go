package command

import (
	"errors"
	"io"
	"os"
	"sync"
	"syscall"

	"creel/internal/printable"

	"golang.org/x/term"
)

// Output is standard output or standard error as commands print to it. What is
// written is made safe to show, see package printable, and the first error of
// writing is kept, since hardly anybody looks at what a print returns.
type Output struct {
	to io.Writer

	mu    sync.Mutex
	clean *printable.Writer
	err   error
}

// NewOutput is the stream that goes to w.
func NewOutput(w io.Writer) *Output {
	o := &Output{to: w}
	o.clean = printable.NewWriter(w)
	return o
}

func (o *Output) Write(p []byte) (int, error) { return o.write(o.clean, p) }

func (o *Output) write(w io.Writer, p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	n, err := w.Write(p)
	if err != nil && o.err == nil {
		o.err = err
	}
	return n, err
}

// Finish writes what is held back, and returns the first error of all writing.
func (o *Output) Finish() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if err := o.clean.Flush(); err != nil && o.err == nil {
		o.err = err
	}
	return o.err
}

// Raw is a stream for bytes that stay as they are: a task's own output, an
// archive, what is signed.
func Raw(w io.Writer) io.Writer {
	if o, ok := w.(*Output); ok {
		return rawOutput{o}
	}
	return w
}

type rawOutput struct{ o *Output }

func (r rawOutput) Write(p []byte) (int, error) { return r.o.write(r.o.to, p) }

// IsTerminal tells whether a person looks at a stream.
func IsTerminal(w io.Writer) bool {
	switch to := w.(type) {
	case *Output:
		w = to.to
	case rawOutput:
		w = to.o.to
	}
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// ReaderGone tells whether writing ended because nobody reads any more, as in
// `creel ps | head -1`.
func ReaderGone(err error) bool { return errors.Is(err, syscall.EPIPE) }
