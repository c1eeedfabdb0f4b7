package cli

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	"creel/internal/printable"

	"github.com/spf13/pflag"
)

// usualKeys are those that Docker detaches by.
const usualKeys = "ctrl-p,ctrl-q"

func registerDetachKeys(fs *pflag.FlagSet, keys *string) {
	fs.StringVar(keys, "detach-keys", usualKeys, "the `keys` that leave a terminal while its process goes on")
}

// parseKeys reads Docker's form: characters and ctrl-X, with commas between.
func parseKeys(s string) ([]byte, error) {
	var keys []byte
	for _, word := range strings.Split(s, ",") {
		letter, ctrl := strings.CutPrefix(word, "ctrl-")
		switch {
		case ctrl && len(letter) == 1 && strings.Contains("@abcdefghijklmnopqrstuvwxyz[\\]^_", letter):
			keys = append(keys, strings.ToUpper(letter)[0]&0x1f)
		case word == "DEL":
			keys = append(keys, 0x7f)
		case !ctrl && len(word) == 1:
			keys = append(keys, word[0])
		default:
			return nil, fmt.Errorf("--detach-keys %q: %q is no key; want characters and ctrl-LETTER with commas between, such as %s", s, word, usualKeys)
		}
	}
	return keys, nil
}

// errDetached ends the copying of a terminal's input where its user leaves.
var errDetached = errors.New("detached")

// watcher passes on what is typed, up to the keys that detach. The beginning of
// them is held back until it is known to be something else.
type watcher struct {
	to   io.Writer
	keys []byte
	held []byte
}

func (w *watcher) Write(p []byte) (int, error) {
	var out []byte
	for _, key := range p {
		w.held = append(w.held, key)
		for !bytes.HasPrefix(w.keys, w.held) {
			out, w.held = append(out, w.held[0]), w.held[1:]
		}
		if len(w.held) == len(w.keys) {
			_, err := w.to.Write(out)
			return len(p), errors.Join(errDetached, err)
		}
	}
	if len(out) > 0 {
		if _, err := w.to.Write(out); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}

// sendInput copies this process's standard input to a process until it ends,
// and reports whether the user of its terminal detached instead. keys is nil
// where nobody can.
func sendInput(env Env, to io.WriteCloser, keys []byte) (detached bool) {
	if len(keys) == 0 {
		io.Copy(to, env.In) // a process that has ended takes no more
		to.Close()
		return false
	}
	w := &watcher{to: to, keys: keys}
	if _, err := io.Copy(w, env.In); errors.Is(err, errDetached) {
		return true
	}
	to.Write(w.held)
	to.Close()
	return false
}

// keyboard is what a terminal's user types, with the wish to leave in it. Its
// goroutine may wait for the next key until this process ends.
type keyboard struct {
	left  chan struct{} // the user wants to leave
	stays chan struct{} // and could not
}

func newKeyboard() keyboard { return keyboard{make(chan struct{}, 1), make(chan struct{}, 1)} }

// send copies what is typed with a function that reports that its user wants to
// leave, and goes on where they cannot.
func (k keyboard) send(copyInput func() (leaves bool)) {
	for copyInput() {
		k.left <- struct{}{}
		<-k.stays
	}
}

// await waits until the output is done, or its user has left. Where detach
// fails they are told on the raw terminal of w, and stay.
func (k keyboard) await(done <-chan error, w io.Writer, detach func() error) (err error, detached bool) {
	for {
		select {
		case err := <-done:
			return err, false
		case <-k.left:
		}
		err := detach()
		if err == nil {
			return nil, true
		}
		fmt.Fprintf(w, "\r\ncreel: not detached: %s\r\n", printable.Line(err.Error()))
		k.stays <- struct{}{}
	}
}

// detachKeys are those of a process whose terminal this one has.
func detachKeys(s string, tty, stdin bool) ([]byte, error) {
	keys, err := parseKeys(s)
	if !tty || !stdin {
		keys = nil
	}
	return keys, err
}
