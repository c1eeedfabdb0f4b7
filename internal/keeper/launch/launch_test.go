package launch

import (
	"context"
	"errors"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"creel/internal/sandbox"
	"creel/internal/secret"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// anOrder has one of everything. The connection's other end is returned.
func anOrder(t *testing.T) (Order, net.Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	other := os.NewFile(uintptr(fds[0]), "launcher")
	conn, err := net.FileConn(other)
	if err != nil {
		t.Fatal(err)
	}
	other.Close()
	value, err := secret.NewValue("a-value-of-some-length")
	if err != nil {
		t.Fatal(err)
	}
	o := Order{
		Conn: os.NewFile(uintptr(fds[1]), "keeper"), Lock: tempFile(t), Ports: []*os.File{tempFile(t)},
		Grants: []secret.Grant{{Name: "key", Value: value,
			Binding: secret.Binding{Hosts: []string{"api.example.com"}, Use: secret.Use{As: secret.AsBearer}}}},
		Launch: Launch{StateDir: "/state", UID: 7, Ports: []sandbox.Port{{GuestPort: 80, Proto: "tcp"}},
			Environ: []string{"A=b"}, Config: Config{Template: "sha256:1", Spec: sandbox.Spec{ID: sandbox.NewID()}}},
	}
	t.Cleanup(func() { conn.Close(); o.Conn.Close() })
	return o, conn
}

func tempFile(t *testing.T) *os.File {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// handOver is a start whose keeper has copies, as another process would.
func handOver(t *testing.T, to chan<- []*os.File) func([]*os.File) error {
	return func(files []*os.File) error {
		var copies []*os.File
		for _, f := range files {
			fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
			if err != nil {
				return err
			}
			copies = append(copies, os.NewFile(uintptr(fd), f.Name()))
		}
		to <- copies
		return nil
	}
}

func TestWhatIsGivenIsRead(t *testing.T) {
	o, ours := anOrder(t)
	to := make(chan []*os.File, 1)
	given := make(chan error, 1)
	go func() { given <- o.Give(t.Context(), handOver(t, to)) }()
	got, err := Read(Files(<-to))
	if err != nil {
		t.Fatal(err)
	}
	defer got.Conn.Close()
	defer got.Lock.Close()
	if err := <-given; err != nil {
		t.Fatal(err)
	}
	want := o.Launch
	want.Version = got.Version
	if diff := cmp.Diff(want, got.Launch); diff != "" {
		t.Error(diff)
	}
	if len(got.Grants) != 1 || got.Grants[0].Value.Reveal() != "a-value-of-some-length" {
		t.Errorf("grants: %d", len(got.Grants))
	}
	if len(got.Files) != 1 || got.Files[0].Name() != o.Ports[0].Name() {
		t.Errorf("the port's socket is %v", got.Files)
	}
	if got.Lock.Name() != o.Lock.Name() {
		t.Errorf("the lock is %s", got.Lock.Name())
	}
	go ours.Write([]byte("x"))
	if n, err := got.Conn.Read(make([]byte, 1)); n != 1 {
		t.Errorf("the connection leads elsewhere: %v", err)
	}
}

// A keeper that dies before it has read breaks the pipe.
func TestGiveToAKeeperThatDies(t *testing.T) {
	o, _ := anOrder(t)
	o.Launch.Environ = []string{strings.Repeat("x", 1<<20)} // more than a pipe holds
	err := o.Give(t.Context(), func([]*os.File) error { return nil })
	if !errors.Is(err, unix.EPIPE) {
		t.Errorf("error %v", err)
	}
}

// A keeper that does not read holds its launcher up no longer than that wants.
func TestGiveToAKeeperThatHangs(t *testing.T) {
	o, _ := anOrder(t)
	o.Launch.Environ = []string{strings.Repeat("x", 1<<20)}
	to := make(chan []*os.File, 1)
	ctx, cancel := context.WithCancelCause(t.Context())
	given := make(chan error, 1)
	go func() { given <- o.Give(ctx, handOver(t, to)) }()
	defer closeFiles(<-to)
	enough := errors.New("enough")
	cancel(enough)
	select {
	case err := <-given:
		if !errors.Is(err, enough) {
			t.Errorf("error %v", err)
		}
	case <-time.After(time.Minute):
		t.Fatal("it waits for ever")
	}
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

func TestGiveWhereNothingStarts(t *testing.T) {
	o, _ := anOrder(t)
	fault := errors.New("no such program")
	if err := o.Give(t.Context(), func([]*os.File) error { return fault }); !errors.Is(err, fault) {
		t.Errorf("error %v", err)
	}
}

func TestReadRefuses(t *testing.T) {
	for name, text := range map[string]string{
		"nothing": "", "no launch": "hello", "another version": `{"version": 1}`, "an unknown field": `{"versions": 1}`,
	} {
		t.Run(name, func(t *testing.T) {
			config, in, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			in.WriteString(text)
			in.Close()
			if _, err := Read(Files([]*os.File{config})); err == nil {
				t.Error("it was read")
			}
		})
	}
}
