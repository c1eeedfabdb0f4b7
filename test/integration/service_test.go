package integration

import (
	"crypto/tls"
	"fmt"
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
)

// service is an HTTPS server on the loopback that wants a key: whoever does not
// send it gets 401.
type service struct {
	address string // ADDRESS:PORT
	ca      string // file: who signs for its hosts

	reply func(w http.ResponseWriter, r *http.Request, key string)
	mu    sync.Mutex
	key   string
	seen  []string // METHOD HOST/PATH STATUS, and of WebSockets that
}

// serve starts a service for the rest of the test.
func serve(t *testing.T, key string, reply func(w http.ResponseWriter, r *http.Request, key string)) *service {
	t.Helper()
	authority, err := intercept.New("service", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	s := &service{ca: filepath.Join(t.TempDir(), "ca.pem"), key: key, reply: reply}
	if err := os.WriteFile(s.ca, []byte(authority.PEM()), 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.address = l.Addr().String()
	server := &http.Server{Handler: s, ReadHeaderTimeout: time.Minute, TLSConfig: &tls.Config{
		GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) { return authority.Config(h.ServerName), nil },
	}}
	ended := make(chan error, 1)
	go func() { ended <- server.ServeTLS(l, "", "") }()
	t.Cleanup(func() {
		server.Close()
		if err := <-ended; err != http.ErrServerClosed {
			t.Error(err)
		}
	})
	return s
}

func (s *service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	key, status := s.key, http.StatusOK
	if sent := r.Header.Get("X-Api-Key"); sent != key && r.Header.Get("Authorization") != "Bearer "+key {
		status = http.StatusUnauthorized
	}
	line := fmt.Sprintf("%s %s%s %d %s", r.Method, r.Host, r.URL.Path, status, r.Header.Get("Upgrade"))
	s.seen = append(s.seen, strings.TrimSpace(line))
	s.mu.Unlock()
	if status != http.StatusOK {
		http.Error(w, "the key is wrong", status)
		return
	}
	s.reply(w, r, key)
}

// asked are the requests so far.
func (s *service) asked() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.seen)
}

// wants changes the key.
func (s *service) wants(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.key = key
}

// upstream is the key of a rule that leads to the service.
func (s *service) upstream() string {
	return fmt.Sprintf("    upstream: {address: %q, ca: %q}\n", s.address, s.ca)
}

// setSecret gives Creel a secret for the rest of the test.
func setSecret(t *testing.T, r *rig.Rig, name, value string, flags ...string) {
	t.Helper()
	if got := r.RunIn(t, strings.NewReader(value), append([]string{"secret", "set", name}, flags...)...); got.Code != 0 {
		t.Fatalf("set %s: %+v", name, got)
	}
	t.Cleanup(func() { r.Must(t, "secret", "rm", name) })
}
