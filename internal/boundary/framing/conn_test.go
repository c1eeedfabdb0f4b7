package framing

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"strings"
	"testing"
)

// spied tells how the read of one byte went by which net/http watches for the
// client's end.
type spied struct {
	*Conn
	watch chan error
}

func (s spied) Read(p []byte) (int, error) {
	n, err := s.Conn.Read(p)
	if len(p) == 1 {
		s.watch <- err
	}
	return n, err
}

type spying struct{ net.Listener }

func (l spying) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return spied{NewConn(c), make(chan error, 100)}, nil
}

type spiedKey struct{}

func connOf(r *http.Request) spied { return r.Context().Value(spiedKey{}).(spied) }

// serve starts a server of net/http behind Conns and returns its address.
func serve(t *testing.T, handler http.HandlerFunc) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: handler, ErrorLog: log.New(io.Discard, "", 0),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, spiedKey{}, c.(spied))
		}}
	done := make(chan struct{})
	go func() { defer close(done); s.Serve(spying{l}) }()
	t.Cleanup(func() { s.Close(); <-done })
	return l.Addr().String()
}

func dial(t *testing.T, address, send string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if _, err := io.WriteString(c, send); err != nil {
		t.Fatal(err)
	}
	return c
}

type answer struct {
	status int
	body   string
}

// exchange sends bytes and returns the answers, until the server closes.
func exchange(t *testing.T, address, send string) (all []answer) {
	t.Helper()
	c := dial(t, address, send)
	// A server that waits for more than a client has sent, as it does for bodies
	// that are cut off, gets the end.
	c.(*net.TCPConn).CloseWrite()
	br := bufio.NewReader(c)
	for {
		r, err := http.ReadResponse(br, nil)
		if err != nil {
			return all
		}
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Fatalf("read answer: %v", err)
		}
		all = append(all, answer{r.StatusCode, string(body)})
	}
}

const (
	good = "GET /good HTTP/1.1\r\nHost: a.example\r\n\r\n"
	bad  = "POST /bad HTTP/1.1\r\nHost: a.example\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n" +
		"0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a.example\r\n\r\n"
)

// A request that is being served when the fault behind it is met is answered,
// not cancelled; then comes the 400, and nothing else.
func TestFaultBehindARequestInProgress(t *testing.T) {
	var paths []string
	var fault *Fault
	address := serve(t, func(w http.ResponseWriter, r *http.Request) {
		paths = append(paths, r.URL.Path)
		c := connOf(r)
		if err := <-c.watch; err != nil {
			t.Errorf("net/http cancels the request because of %v", err)
		}
		fault = c.Fault()
		io.WriteString(w, "fine")
	})
	answers := exchange(t, address, good+bad)
	if len(answers) != 2 || answers[0] != (answer{200, "fine"}) || answers[1].status != 400 || len(paths) != 1 {
		t.Fatalf("served %q with %v, want 200 and 400", paths, answers)
	}
	var told struct{ Error, By, Reason, Hint string }
	if err := json.Unmarshal([]byte(answers[1].body), &told); err != nil || told.By != "creel" || told.Hint == "" ||
		told.Reason != "content-length together with transfer-encoding" {
		t.Errorf("told %q: %v", answers[1].body, err)
	}
	if fault == nil || fault.Reason != told.Reason {
		t.Errorf("the connection has fault %v", fault)
	}
}

// A guest that is still sending gets the answer, not a reset: what it sends is
// taken before the connection is closed.
func TestAnswerWhileTheGuestSends(t *testing.T) {
	client, server := net.Pipe()
	sent := make(chan error)
	go func() {
		_, err := io.WriteString(client, bad+strings.Repeat("x", lingerBytes/2))
		sent <- err
	}()
	served := make(chan struct{})
	go func() {
		defer close(served)
		c := NewConn(server)
		defer c.Close()
		io.Copy(io.Discard, c)
		io.WriteString(c, serverAnswer)
	}()
	r, err := http.ReadResponse(bufio.NewReader(client), nil)
	if err != nil || r.StatusCode != 400 {
		t.Errorf("answer %v: %v", r, err)
	}
	if err := <-sent; err != nil {
		t.Errorf("send the rest: %v", err)
	}
	client.Close()
	<-served
}

func TestEveryRefusedIsAnswered(t *testing.T) {
	for _, c := range corpus(t, "refused.txt") {
		t.Run(c.name, func(t *testing.T) {
			address := serve(t, func(w http.ResponseWriter, r *http.Request) {
				if strings.Contains(r.URL.Path, "smuggled") {
					t.Error("what was smuggled was served")
				}
				if _, err := io.ReadAll(r.Body); err != nil {
					// net/http hides what was wrong in a trailer.
					if fault := (*Fault)(nil); !errors.As(err, &fault) && !strings.Contains(c.name, "trailer") {
						t.Errorf("read the body: %v, want a fault", err)
					}
					http.Error(w, connOf(r).Fault().Reason, 400)
				}
			})
			answers := exchange(t, address, c.bytes)
			if len(answers) == 0 {
				t.Fatal("no answer")
			}
			if last := answers[len(answers)-1]; last.status != 400 || !strings.Contains(last.body, c.reason) {
				t.Errorf("the last answer is %v, want 400 with %q", last, c.reason)
			}
		})
	}
}

func TestEveryPassedIsServed(t *testing.T) {
	for _, c := range corpus(t, "passed.txt") {
		t.Run(c.name, func(t *testing.T) {
			address := serve(t, func(w http.ResponseWriter, r *http.Request) {
				if _, err := io.ReadAll(r.Body); err != nil {
					t.Errorf("read the body: %v", err)
				}
			})
			for _, a := range exchange(t, address, c.bytes) {
				if a.status != 200 && a.status != 100 {
					t.Errorf("answer %v", a)
				}
			}
		})
	}
}

// In full duplex, net/http takes what follows a broken body for the next
// request (Go 1.26).
func TestBrokenBodyHidesNoRequest(t *testing.T) {
	for _, body := range []string{"zz\r\n", "1\r\nxy\r\n", "0\r\nX y\r\n"} {
		var paths []string
		address := serve(t, func(w http.ResponseWriter, r *http.Request) {
			http.NewResponseController(w).EnableFullDuplex()
			paths = append(paths, r.URL.Path)
		})
		exchange(t, address, "POST /first HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n"+body+good)
		if len(paths) != 1 {
			t.Errorf("behind %q, served %q", body, paths)
		}
	}
}

func TestPassThrough(t *testing.T) {
	const other = "\x81\x05\x00\r\n\n :no HTTP\r\r\n"
	address := serve(t, func(w http.ResponseWriter, r *http.Request) {
		connOf(r).PassThrough()
		c, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		got := make([]byte, len(other))
		if _, err := io.ReadFull(rw, got); err != nil || string(got) != other {
			t.Errorf("read %q: %v", got, err)
		}
		c.Write(got)
	})
	c := dial(t, address, "GET / HTTP/1.1\r\nHost: a.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
	br := bufio.NewReader(c)
	r, err := http.ReadResponse(br, nil)
	if err != nil || r.StatusCode != 101 {
		t.Fatalf("answer %v: %v", r, err)
	}
	io.WriteString(c, other)
	got, err := io.ReadAll(br)
	if err != nil || string(got) != other {
		t.Errorf("read %q: %v", got, err)
	}
}

// Only the server's own words are replaced, and only after a fault.
func TestAnswersPass(t *testing.T) {
	client, server := net.Pipe()
	defer client.Close()
	c := NewConn(server)
	c.fault.Store(&Fault{"a reason"})
	go func() {
		defer c.Close()
		io.WriteString(c, "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
		c.fault.Store(nil)
		io.WriteString(c, serverAnswer)
	}()
	got, _ := io.ReadAll(client)
	if want := "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n" + serverAnswer; string(got) != want {
		t.Errorf("read %q, want %q", got, want)
	}
}
