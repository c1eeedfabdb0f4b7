package integration

import (
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"

	"creel/test/rig"
)

// service is a world in which each host wants a key of its own.
type service struct {
	*world
	keys map[string]string // by host; the world's mutex guards it
}

// serve starts a service for the rest of the test.
func serve(t *testing.T, keys map[string]string, reply func(w http.ResponseWriter, r *http.Request, key string)) *service {
	t.Helper()
	s := &service{newWorld(t), maps.Clone(keys)}
	s.guard = func(r *http.Request) bool { return keyIn(r.Header) == s.key(r.Host) }
	s.mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { reply(w, r, s.key(r.Host)) })
	return s
}

// keyIn is what a request has for a key.
func keyIn(h http.Header) string {
	if key, bearer := strings.CutPrefix(h.Get("Authorization"), "Bearer "); bearer {
		return key
	}
	return h.Get(keyHeader)
}

func (s *service) key(host string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.keys[host]
}

// wants changes a host's key.
func (s *service) wants(host, key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keys[host] = key
}

// setSecret gives Creel a secret that may go to the service, for the rest of
// the test.
func (s *service) setSecret(t *testing.T, r *rig.Rig, name, value string, flags ...string) {
	t.Helper()
	if got := r.RunIn(t, strings.NewReader(value), slices.Concat([]string{"secret", "set", name}, s.bound(t), flags)...); got.Code != 0 {
		t.Fatalf("set %s: %+v", name, got)
	}
	t.Cleanup(func() { r.Must(t, "secret", "rm", name) })
}
