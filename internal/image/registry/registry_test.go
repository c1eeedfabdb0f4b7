package registry

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/distribution/reference"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	ggcr "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

func TestGuard(t *testing.T) {
	tests := map[string]bool{ // refused
		"http://registry.invalid/v2/":          true,
		"http://10.0.0.1/v2/":                  true,
		"http://192.168.1.1:5000/v2/":          true,
		"http://169.254.169.254/latest":        true,
		"http://localhost.example.invalid/v2/": true,
		"http://0.0.0.0:1/v2/":                 true,
		"http://127.0.0.1:1/v2/":               false,
		"http://127.8.9.10:1/v2/":              false,
		"http://[::1]:1/v2/":                   false,
		"http://[::ffff:127.0.0.1]:1/v2/":      false,
		"http://localhost:1/v2/":               false,
		"ftp://registry.invalid/v2/":           true,
	}
	for target, want := range tests {
		req, err := http.NewRequest(http.MethodGet, target, nil)
		if err != nil {
			t.Fatal(err)
		}
		_, err = newGuard().RoundTrip(req)
		if err == nil {
			t.Fatalf("%s answered", target)
		}
		if got := errors.Is(err, errRefused); got != want {
			t.Errorf("%s: refused is %v (%v), want %v", target, got, err, want)
		}
	}
}

func TestRedirects(t *testing.T) {
	tests := map[string]struct {
		from, to string
		refused  bool
	}{
		"to storage":            {"https://registry.example", "https://storage.example", false},
		"same host":             {"https://10.0.0.1", "https://10.0.0.1", false},
		"to this machine":       {"https://registry.example", "https://127.0.0.1", true},
		"to this machine, name": {"https://registry.example", "https://localhost:8080", true},
		"to the network":        {"https://registry.example", "https://192.168.0.1", true},
		"to metadata":           {"https://registry.example", "https://169.254.169.254", true},
		"to unspecified":        {"https://registry.example", "https://0.0.0.0", true},
		"mapped":                {"https://registry.example", "https://[::ffff:10.0.0.1]", true},
		"from this machine":     {"http://127.0.0.1:5000", "http://127.0.0.1:5001", false},
	}
	parse := func(s string) *http.Request {
		u, err := url.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		return &http.Request{URL: u}
	}
	for name, tt := range tests {
		if err := checkRedirect(parse(tt.to), []*http.Request{parse(tt.from)}); (err != nil) != tt.refused {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if err := checkRedirect(parse("https://a"), make([]*http.Request, 10)); err == nil {
		t.Error("redirects without end")
	}
}

// TestSelfSigned: a registry on this machine may have a certificate that nobody
// signed.
func TestSelfSigned(t *testing.T) {
	s := httptest.NewTLSServer(ggcr.New())
	defer s.Close()
	blob := []byte("blob")
	h, _, err := v1.SHA256(bytes.NewReader(blob))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := s.Client().Post(s.URL+"/v2/app/blobs/uploads/?digest="+h.String(), "application/octet-stream", bytes.NewReader(blob))
	if err != nil || resp.StatusCode != http.StatusCreated {
		t.Fatalf("put blob: %v, %v", resp, err)
	}
	resp.Body.Close()
	named, err := reference.ParseDockerRef(strings.TrimPrefix(s.URL, "https://") + "/app:1")
	if err != nil {
		t.Fatal(err)
	}
	r, err := New(Options{Keychain: authn.NewMultiKeychain()}).Repository(named)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(t.TempDir(), "blob"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := r.Download(context.Background(), v1.Descriptor{Digest: h, Size: int64(len(blob))}, f, nil); err != nil {
		t.Error(err)
	}
}

// TestHub: a short name leads to the registry, and to the login, that Docker
// uses for it.
func TestHub(t *testing.T) {
	named, err := reference.ParseDockerRef("alpine")
	if err != nil {
		t.Fatal(err)
	}
	r, err := New(Options{}).Repository(named)
	if err != nil {
		t.Fatal(err)
	}
	repo := r.endpoints[0].repo
	if repo.RegistryStr() != name.DefaultRegistry || repo.RepositoryStr() != "library/alpine" || repo.Scheme() != "https" {
		t.Errorf("got %s over %s", repo, repo.Scheme())
	}
}
