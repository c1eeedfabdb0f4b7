package cli

import (
	"bytes"
	"errors"
	"strings"
	"testing"
)

func TestDetachKeys(t *testing.T) {
	for keys, want := range map[string]string{
		"ctrl-p,ctrl-q": "\x10\x11", "ctrl-[,a,DEL": "\x1ba\x7f", "q": "q", "ctrl-@": "\x00",
	} {
		if got, err := parseKeys(keys); string(got) != want || err != nil {
			t.Errorf("%s: %q, %v", keys, got, err)
		}
	}
	for _, keys := range []string{"", "ctrl-1", "ctrl-pp", "ab", "a,,b"} {
		if got, err := parseKeys(keys); err == nil {
			t.Errorf("%q: %q", keys, got)
		}
	}
}

// What is typed arrives, but for the keys that detach, however it is cut.
func TestWatcherPassesWhatIsTyped(t *testing.T) {
	for _, c := range []struct {
		keys, typed, want string
		detached          bool
	}{
		{"\x10\x11", "ls\r", "ls\r", false},
		{"\x10\x11", "ls\x10\x11more", "ls", true},
		{"\x10\x11", "\x10x\x11", "\x10x\x11", false},
		{"\x10\x11", "\x10\x10\x11", "\x10", true},
		{"\x10\x11", "end\x10", "end", false}, // held until it is known
		{"aab", "aaab", "a", true},
		{"aab", "aac aab", "aac ", true},
	} {
		for size := 1; size <= len(c.typed); size++ {
			var to bytes.Buffer
			w := &watcher{to: &to, keys: []byte(c.keys)}
			var err error
			for rest := c.typed; rest != "" && err == nil; {
				n := min(size, len(rest))
				_, err = w.Write([]byte(rest[:n]))
				rest = rest[n:]
			}
			if errors.Is(err, errDetached) != c.detached || to.String() != c.want {
				t.Errorf("%q in pieces of %d: %q, %v", c.typed, size, to.String(), err)
			}
		}
	}
	if n, err := (&watcher{to: broken{}, keys: []byte("q")}).Write([]byte("x")); n != 0 || err == nil {
		t.Error("what could not be passed on was taken")
	}
}

// Who cannot leave is told so, and types on.
func TestWhoCannotDetachStays(t *testing.T) {
	keys, done := newKeyboard(), make(chan error, 1)
	typed := make(chan bool)
	go keys.send(func() bool { return <-typed })
	var told bytes.Buffer
	refused := errors.New("the disk is full")
	tries := 0
	result := make(chan bool, 1)
	go func() {
		_, detached := keys.await(done, &told, func() error {
			if tries++; tries == 1 {
				return refused
			}
			return nil
		})
		result <- detached
	}()
	typed <- true
	typed <- true // it is read again
	if detached := <-result; !detached || tries != 2 || !strings.Contains(told.String(), "not detached: the disk is full") {
		t.Errorf("detached %v after %d tries, told %q", detached, tries, told.String())
	}
	ended := errors.New("output")
	done <- ended
	if err, detached := newKeyboard().await(done, &told, nil); err != ended || detached {
		t.Errorf("at the end: %v, %v", err, detached)
	}
}

type broken struct{}

func (broken) Write([]byte) (int, error) { return 0, errors.New("gone") }

func TestPsOptions(t *testing.T) {
	for options, want := range map[string]string{
		"": "user pid ppid c stime tty time cmd", "-ef": "user pid ppid c stime tty time cmd", "aux": "user pid pcpu vsz rss tty stat stime time args",
		"-eo pid,args": "pid args", "-o pid,command,%cpu": "pid args pcpu", "-Ao uid": "uid", "-e -o rss": "rss",
	} {
		if got, ok := psOptions(strings.Fields(options)); !ok || strings.Join(got, " ") != want {
			t.Errorf("%q: %q, %v", options, got, ok)
		}
	}
	for _, options := range []string{"-o", "-o colour", "--forest", "-p 1", "axjf", "-eo pid,colour"} {
		if got, ok := psOptions(strings.Fields(options)); ok {
			t.Errorf("%q: %q, which its own ps has to answer", options, got)
		}
	}
}
