package integration

import (
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"creel/internal/boundary/intercept"
	"creel/test/rig"

	"github.com/coder/websocket"
)

// world is what the sandboxes of these tests can reach: one server on the
// loopback, which is whatever host it is called by, with and without TLS.
type world struct {
	secure, plain string // ADDRESS:PORT with TLS and without
	authority     string // PEM: who signs for its hosts
	mux           *http.ServeMux
	guard         func(*http.Request) bool // nil: everybody may

	mu       sync.Mutex
	arrivals []arrival
	received strings.Builder // of bodies, whole or not
}

// arrival is one request, as the server got it.
type arrival struct {
	Method, Host, Path, Proto string
	Header                    http.Header
}

// newWorld starts the server; the end of the test stops it.
func newWorld(t *testing.T) *world {
	t.Helper()
	authority, err := intercept.New("test upstream", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	w := &world{authority: authority.PEM(), mux: http.NewServeMux()}
	w.mux.HandleFunc("/{client}/hello", w.hello)
	w.mux.HandleFunc("/{client}/events", worldEvents)
	w.mux.HandleFunc("/{client}/socket", worldSocket)
	w.mux.HandleFunc("/{client}/echo.Echo/{method}", worldGRPC)
	config := &tls.Config{GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		return authority.Config(h.ServerName), nil
	}}
	w.secure = w.serve(t, func(s *http.Server, l net.Listener) error { s.TLSConfig = config; return s.ServeTLS(l, "", "") })
	w.plain = w.serve(t, (*http.Server).Serve)
	return w
}

func (w *world) serve(t *testing.T, serve func(*http.Server, net.Listener) error) (address string) {
	t.Helper()
	l := listenLoopback(t)
	server := &http.Server{Handler: w, ReadHeaderTimeout: rig.Patience, ErrorLog: log.New(io.Discard, "", 0)}
	done := make(chan error, 1)
	go func() { done <- serve(server, l) }()
	t.Cleanup(func() {
		server.Close()
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("the server ended with %v", err)
		}
	})
	return l.Addr().String()
}

func (w *world) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	w.mu.Lock()
	w.arrivals = append(w.arrivals, arrival{r.Method, r.Host, r.URL.Path, r.Proto, r.Header.Clone()})
	w.mu.Unlock()
	if w.guard != nil && !w.guard(r) {
		http.Error(rw, "who are you?", http.StatusUnauthorized)
		return
	}
	w.mux.ServeHTTP(rw, r)
}

// arrived are the requests for a host whose path begins as said.
func (w *world) arrived(host, prefix string) []arrival {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(w.arrivals), func(a arrival) bool {
		return a.Host != host || !strings.HasPrefix(a.Path, prefix)
	})
}

// policy writes a policy file. In its text UPSTREAM is the world with TLS and
// PLAIN without.
func (w *world) policy(t *testing.T, text string) (file string) {
	t.Helper()
	dir := t.TempDir()
	text = strings.NewReplacer(
		"UPSTREAM", fmt.Sprintf(`{address: %q, ca: ca.pem}`, w.secure), "PLAIN", fmt.Sprintf(`{address: %q}`, w.plain),
	).Replace(text)
	file = filepath.Join(dir, "policy.yaml")
	for name, data := range map[string]string{file: "version: 1\n" + text, filepath.Join(dir, "ca.pem"): w.authority} {
		if err := os.WriteFile(name, []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return file
}

// keyHeader is where the world wants its key.
const keyHeader = "X-Api-Key"

// hello tells back what it was given, as some real services do.
func (w *world) hello(rw http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(rw, r.Body, 1<<20))
	w.mu.Lock()
	w.received.Write(body)
	w.mu.Unlock()
	if err == nil {
		fmt.Fprintf(rw, "hello %s, your key is <%s>\n", r.PathValue("client"), r.Header.Get(keyHeader))
	}
}

func worldEvents(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/event-stream")
	for i := range 3 {
		fmt.Fprintf(w, "data: hello %s %d, your key is <%s>\n\n", r.PathValue("client"), i, r.Header.Get(keyHeader))
		w.(http.Flusher).Flush()
	}
}

func worldSocket(w http.ResponseWriter, r *http.Request) {
	c, err := websocket.Accept(w, r, nil)
	if err != nil {
		return
	}
	defer c.CloseNow()
	for {
		kind, b, err := c.Read(r.Context())
		answer := fmt.Appendf(nil, "hello %s, your key is <%s>, ", r.PathValue("client"), r.Header.Get(keyHeader))
		if err != nil || c.Write(r.Context(), kind, append(answer, b...)) != nil {
			return
		}
	}
}

// worldGRPC answers each message of a call at once, and ends it with trailers.
func worldGRPC(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/grpc")
	w.Header().Set("Trailer", "Grpc-Status, Grpc-Message")
	w.(http.Flusher).Flush()
	key := r.Header.Get(keyHeader)
	for {
		var head [5]byte
		if _, err := io.ReadFull(r.Body, head[:]); err != nil {
			break
		}
		message := make([]byte, binary.BigEndian.Uint32(head[1:])&0xffff)
		if _, err := io.ReadFull(r.Body, message); err != nil {
			break
		}
		answer := fmt.Appendf(nil, "hello %s %s, your key is <%s>, %s", r.PathValue("client"), r.PathValue("method"), key, message)
		binary.BigEndian.PutUint32(head[1:], uint32(len(answer)))
		if _, err := w.Write(append(head[:], answer...)); err != nil {
			return
		}
		w.(http.Flusher).Flush()
	}
	w.Header().Set("Grpc-Status", "0")
	w.Header().Set("Grpc-Message", "your key is <"+key+">")
}

// listenLoopback is a port of the loopback; the end of the test closes it.
func listenLoopback(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func portIn(address string) string { return address[strings.LastIndexByte(address, ':')+1:] }

// bound are the flags that let a secret go to the world's server.
func (w *world) bound(t *testing.T) []string {
	t.Helper()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, []byte(w.authority), 0o600); err != nil {
		t.Fatal(err)
	}
	return []string{"--upstream", w.secure, "--upstream-ca", ca}
}

// keepSecret makes a secret with a fresh value, which may go to the world's
// server and which the end of the test removes.
func keepSecret(t *testing.T, r *rig.Rig, w *world, name string, flags ...string) (value string) {
	t.Helper()
	random := make([]byte, 16)
	rand.Read(random)
	value = "key-" + hex.EncodeToString(random)
	args := slices.Concat([]string{"secret", "set", name}, w.bound(t), flags)
	if got := r.RunIn(t, strings.NewReader(value), args...); got.Code != 0 {
		t.Fatalf("creel %q: %+v", args, got)
	}
	t.Cleanup(func() { r.Run(t, "secret", "rm", name) })
	return value
}

// recordsOf are the data of a sandbox's records of one kind.
func recordsOf[T any](t *testing.T, r *rig.Rig, sandbox, kind string) (out []T) {
	t.Helper()
	got := r.Must(t, "audit", "query", "--sandbox", sandbox, "--kind", kind, "--json")
	for d := json.NewDecoder(bytes.NewReader([]byte(got))); ; {
		var one struct{ Data T }
		if err := d.Decode(&one); err == io.EOF {
			return out
		} else if err != nil {
			t.Fatalf("records of %s are %q: %v", kind, got, err)
		}
		out = append(out, one.Data)
	}
}

// receive is what comes next from a server of the test.
func receive[T any](t *testing.T, from <-chan T) (value T) {
	t.Helper()
	select {
	case value = <-from:
	case <-rig.Context(t).Done():
		t.Fatal("nothing arrived at the server")
	}
	return value
}
