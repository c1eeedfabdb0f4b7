package image

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"creel/internal/image/blobs"
	"creel/internal/image/imagetest"
	"creel/internal/image/registry"
)

// anyone uses no login, whatever the user who runs the tests has.
var anyone = registry.Options{Keychain: authn.NewMultiKeychain()}

// noise is a layer that does not pack: its size is what goes over the wire.
func noise(t testing.TB, seed byte, size int) []byte {
	b := make([]byte, size)
	rand.NewChaCha8([32]byte{seed}).Read(b)
	return imagetest.MakeLayer(t, imagetest.Reg(fmt.Sprintf("noise%d", seed), string(b), 0o644))
}

// published pushes an image to a registry and returns it, from another store.
func published(t testing.TB, name string, layers ...[]byte) Image {
	t.Helper()
	s := open(t)
	if _, err := s.Load(ctx, bytes.NewReader(imagetest.DockerArchive(t, imagetest.Image{Name: name, Layers: layers}))); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Push(ctx, name, PushOptions{Registry: anyone}); err != nil {
		t.Fatal(err)
	}
	img, err := s.Resolve(ctx, name)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func isBlob(r *http.Request) bool {
	return r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/sha256:")
}

// counting counts fetches of blobs.
func counting(n *atomic.Int64) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if isBlob(r) {
				n.Add(1)
			}
			next.ServeHTTP(w, r)
		})
	}
}

func TestPushAndPull(t *testing.T) {
	var fetched atomic.Int64
	host := imagetest.Registry(t, counting(&fetched))
	name := host + "/team/app:v1"
	want := published(t, name, imagetest.PackGzip(t, base(t)), imagetest.PackZstd(t, top(t)), noise(t, 1, 300_000))

	s := open(t)
	var mu sync.Mutex
	kinds := map[EventKind]int{}
	progress := func(e Event) {
		mu.Lock()
		defer mu.Unlock()
		kinds[e.Kind]++
		if e.Current > e.Total {
			t.Errorf("event %+v", e)
		}
	}
	got, err := s.Pull(ctx, name, PullOptions{Registry: anyone, Progress: progress})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("pulled (-pushed +pulled):\n%s", diff)
	}
	if fetched.Load() != 4 || kinds[Done] != 4 || kinds[Converting] != 1 || kinds[Downloading] < 4 {
		t.Errorf("%d blobs fetched, events %v; want a configuration and three layers", fetched.Load(), kinds)
	}
	// Again, and by digest: nothing is fetched twice.
	for _, ref := range []string{name, got.Digests[0]} {
		if again, err := s.Pull(ctx, ref, PullOptions{Registry: anyone}); err != nil || again.ID != got.ID {
			t.Errorf("pull %s: %v, %v", ref, again.ID, err)
		}
	}
	if n := fetched.Load(); n != 4 {
		t.Errorf("%d blobs fetched after pulling again, want 4", n)
	}
	if img, err := s.Resolve(ctx, got.Digests[0]); err != nil || img.ID != got.ID {
		t.Errorf("resolve by digest: %v, %v", img.ID, err)
	}
	// A damaged blob is fetched again.
	blob := s.blobs.Path(mustInspect(t, s, name).layerDigest(t, 2))
	root, err := s.RootFS(ctx, got)
	if err := errors.Join(err, os.Remove(blob), os.WriteFile(blob, []byte("damage"), 0o600), os.Remove(root.Path)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Pull(ctx, name, PullOptions{Registry: anyone}); err != nil || fetched.Load() != 5 {
		t.Errorf("pull over damage: %v, %d blobs fetched, want 5", err, fetched.Load())
	}
	if left, _ := os.ReadDir(filepath.Join(s.dir, "partial")); len(left) != 0 {
		t.Errorf("left in partial: %v", left)
	}
}

func mustInspect(t testing.TB, s *Store, ref string) Details {
	t.Helper()
	d, err := s.Inspect(ctx, ref)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func (d Details) layerDigest(t testing.TB, i int) string {
	t.Helper()
	var m struct{ Layers []struct{ Digest string } }
	if err := json.Unmarshal(d.Manifest, &m); err != nil {
		t.Fatal(err)
	}
	return m.Layers[i].Digest
}

// breaking ends the connection of each blob after n bytes, times times; after
// that the registry works. It records the ranges that were asked for.
type breaking struct {
	mu     sync.Mutex
	after  int
	times  int
	ranges []string
	paths  map[string]int
}

func (b *breaking) wrap(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !isBlob(r) {
			next.ServeHTTP(w, r)
			return
		}
		b.mu.Lock()
		b.ranges = append(b.ranges, r.Header.Get("Range"))
		if b.paths == nil {
			b.paths = map[string]int{}
		}
		b.paths[r.URL.Path]++
		broken := b.times > 0
		if broken {
			b.times--
		}
		b.mu.Unlock()
		if broken {
			w = &breakingWriter{w, b.after}
		}
		next.ServeHTTP(w, r)
	})
}

type breakingWriter struct {
	http.ResponseWriter
	left int
}

func (w *breakingWriter) Write(p []byte) (int, error) {
	if len(p) > w.left {
		w.ResponseWriter.Write(p[:w.left])
		w.ResponseWriter.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}
	w.left -= len(p)
	return w.ResponseWriter.Write(p)
}

func TestBrokenConnectionsAreContinued(t *testing.T) {
	b := &breaking{after: 100_000}
	name := imagetest.Registry(t, b.wrap) + "/app:1"
	published(t, name, noise(t, 1, 350_000))
	b.times = 4
	s := open(t)
	if _, err := s.Pull(ctx, name, PullOptions{Registry: anyone}); err != nil {
		t.Fatal(err)
	}
	asked := slices.DeleteFunc(b.ranges, func(r string) bool { return r == "" })
	for i, want := range []string{"bytes=100000-", "bytes=200000-", "bytes=300000-"} {
		if i >= len(asked) || !strings.HasPrefix(asked[i], want) {
			t.Fatalf("asked for ranges %q", asked)
		}
	}
}

// TestNextPullContinues: what a pull that was stopped fetched is not fetched
// again, and but for that the store is as before.
func TestNextPullContinues(t *testing.T) {
	b := &breaking{}
	hang := func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			defer func() {
				if v := recover(); v != nil {
					<-r.Context().Done() // instead of breaking off, say nothing more
					panic(v)
				}
			}()
			next.ServeHTTP(w, r)
		})
	}
	name := imagetest.Registry(t, b.wrap, hang) + "/app:1"
	published(t, name, noise(t, 1, 1<<20))
	b.after, b.times = 600_000, 2 // the configuration and the layer; the first is smaller
	s := open(t)
	before := snapshot(t, s)
	stopping, cancel := context.WithCancelCause(ctx)
	_, err := s.Pull(stopping, name, PullOptions{Registry: anyone, Progress: func(e Event) {
		if e.Kind == Downloading && e.Current > 1<<18 {
			cancel(errors.New("asked to stop"))
		}
	}})
	if err == nil || !strings.Contains(err.Error(), "asked to stop") {
		t.Fatalf("got %v, want the reason of the stop", err)
	}
	after := snapshot(t, s)
	partials := 0
	for file := range after {
		if strings.HasPrefix(file, "partial/") && !strings.HasSuffix(file, "/") {
			delete(after, file)
			partials++
		}
	}
	same(t, before, after)
	if partials != 2 {
		t.Errorf("%d partial downloads, want the configuration and half a layer", partials)
	}
	b.ranges = nil
	if _, err := s.Pull(ctx, name, PullOptions{Registry: anyone}); err != nil {
		t.Fatal(err)
	}
	if i := slices.IndexFunc(b.ranges, func(r string) bool { return strings.HasPrefix(r, "bytes=") }); i < 0 || strings.HasPrefix(b.ranges[i], "bytes=0-") {
		t.Errorf("the second pull asked for ranges %q", b.ranges)
	}
}

// replacing gives other bytes for the blobs of a registry.
func replacing(edit func(body []byte, w http.ResponseWriter, r *http.Request)) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if !isBlob(r) {
				next.ServeHTTP(w, r)
				return
			}
			rec := &recorder{header: http.Header{}}
			plain := r.Clone(r.Context())
			plain.Header.Del("Range")
			next.ServeHTTP(rec, plain)
			edit(rec.body.Bytes(), w, r)
		})
	}
}

type recorder struct {
	header http.Header
	body   bytes.Buffer
}

func (r *recorder) Header() http.Header         { return r.header }
func (r *recorder) Write(p []byte) (int, error) { return r.body.Write(p) }
func (r *recorder) WriteHeader(int)             {}

func TestRegistriesThatMisbehave(t *testing.T) {
	const size = 200_000
	big := func(b []byte) bool { return len(b) > size }
	var calls atomic.Int64
	tests := map[string]struct {
		edit func(body []byte, w http.ResponseWriter, r *http.Request)
		want string // "": works
	}{
		"wrong content": {func(b []byte, w http.ResponseWriter, _ *http.Request) {
			b[len(b)/2] ^= 1
			w.Write(b)
		}, "want sha256:"},
		"too long": {func(b []byte, w http.ResponseWriter, _ *http.Request) { w.Write(append(b, b...)) }, "longer than"},
		"too short": {func(b []byte, w http.ResponseWriter, _ *http.Request) {
			if big(b) {
				b = nil
			}
			w.Write(b)
		}, "unexpected EOF"},
		"forbidden blobs": {func(_ []byte, w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) }, "docker login"},
		"missing blobs":   {func(_ []byte, w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotFound) }, "check name"},
		"ranges ignored": {func(b []byte, w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Range") == "" && big(b) {
				w.Write(b[:size/2])
				w.(http.Flusher).Flush()
				panic(http.ErrAbortHandler)
			}
			w.Write(b)
		}, ""},
		"wrong range": {func(b []byte, w http.ResponseWriter, r *http.Request) {
			if !big(b) || calls.Add(1) > 2 {
				w.Write(b)
				return
			}
			if r.Header.Get("Range") != "" {
				w.Header().Set("Content-Range", "bytes 7-9/10")
				w.WriteHeader(http.StatusPartialContent)
				return
			}
			w.Write(b[:size/2])
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		}, ""},
		"errors of the server pass": {func(b []byte, w http.ResponseWriter, _ *http.Request) {
			if calls.Add(1)%2 == 1 {
				w.WriteHeader(http.StatusBadGateway)
				return
			}
			w.Write(b)
		}, ""},
		"redirect to plain HTTP elsewhere": {func(_ []byte, w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://registry.invalid/blob", http.StatusTemporaryRedirect)
		}, "plain HTTP"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			calls.Store(0)
			ref := imagetest.Registry(t, replacing(tt.edit)) + "/app:1"
			published(t, ref, noise(t, 1, size))
			s := open(t)
			before := snapshot(t, s)
			_, err := s.Pull(ctx, ref, PullOptions{Registry: anyone})
			if tt.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("got error %v, want one with %q", err, tt.want)
			}
			after := snapshot(t, s)
			for file := range after {
				if strings.HasPrefix(file, "partial/") && !strings.HasSuffix(file, "/") {
					delete(after, file)
				}
			}
			same(t, before, after)
		})
	}
}

// TestDamagedPartial: a download that continues something else is begun anew.
func TestDamagedPartial(t *testing.T) {
	name := imagetest.Registry(t) + "/app:1"
	img := published(t, name, noise(t, 1, 300_000))
	s := open(t)
	for _, content := range []string{"rubbish", strings.Repeat("x", 400_000)} {
		path := filepath.Join(s.dir, "partial", strings.TrimPrefix(img.Layers[0], "sha256:")) // not packed: the same digest
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Pull(ctx, name, PullOptions{Registry: anyone}); err != nil {
			t.Error(err)
		}
		if _, err := s.Remove(ctx, name); err != nil {
			t.Fatal(err)
		}
	}
}

func TestManifestDigestIsChecked(t *testing.T) {
	lie := func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/manifests/sha256:") {
				w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
				io.WriteString(w, `{"schemaVersion":2}`)
				return
			}
			next.ServeHTTP(w, r)
		})
	}
	host := imagetest.Registry(t, lie)
	img := published(t, host+"/app:1", base(t))
	if _, err := open(t).Pull(ctx, host+"/app@"+img.Digest, PullOptions{Registry: anyone}); !errdefs.IsDataLoss(err) {
		t.Errorf("got %v, want DataLoss", err)
	}
}

func basicAuth(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, pass, _ := r.BasicAuth(); user != "me" || pass != "secret" {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// tokenAuth is a registry with a token service on the same host.
func tokenAuth(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/token" {
			if user, pass, _ := r.BasicAuth(); user != "me" || pass != "secret" {
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			io.WriteString(w, `{"token":"good"}`)
			return
		}
		if r.Header.Get("Authorization") != "Bearer good" {
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token",service="test"`, r.Host))
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// dockerLogin writes a Docker configuration as docker login does, or one with a
// credential helper, and makes it the user's.
func dockerLogin(t *testing.T, host, pass string, helper bool) {
	t.Helper()
	dir := t.TempDir()
	config := fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, host, base64.StdEncoding.EncodeToString([]byte("me:"+pass)))
	if helper {
		config = fmt.Sprintf(`{"credHelpers":{%q:"creeltest"}}`, host)
		script := fmt.Sprintf("#!/bin/sh\nread host\nprintf '{\"ServerURL\":\"%%s\",\"Username\":\"me\",\"Secret\":\"%s\"}' \"$host\"\n", pass)
		if err := os.WriteFile(filepath.Join(dir, "docker-credential-creeltest"), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
		t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("DOCKER_CONFIG", dir)
}

func TestDockerLogin(t *testing.T) {
	for auth, wrap := range map[string]func(http.Handler) http.Handler{"basic": basicAuth, "token": tokenAuth} {
		for _, helper := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, helper %v", auth, helper), func(t *testing.T) {
				host := imagetest.Registry(t, wrap)
				name := host + "/app:1"
				dockerLogin(t, host, "secret", helper)
				s := open(t)
				if _, err := s.Load(ctx, bytes.NewReader(imagetest.DockerArchive(t, imagetest.Image{Name: name, Layers: [][]byte{base(t)}}))); err != nil {
					t.Fatal(err)
				}
				if _, err := s.Push(ctx, name, PushOptions{}); err != nil {
					t.Fatalf("push: %v", err)
				}
				if _, err := open(t).Pull(ctx, name, PullOptions{}); err != nil {
					t.Fatalf("pull: %v", err)
				}
				dockerLogin(t, host, "wrong", helper)
				_, pullErr := open(t).Pull(ctx, name, PullOptions{})
				_, pushErr := s.Push(ctx, name, PushOptions{})
				for _, err := range []error{pullErr, pushErr} {
					if !errdefs.IsPermissionDenied(err) || !strings.Contains(err.Error(), "docker login "+host) {
						t.Errorf("with a wrong password: %v", err)
					} else if strings.Contains(err.Error(), "wrong") {
						t.Errorf("the password is in the error: %v", err)
					}
				}
			})
		}
	}
}

func TestMirrors(t *testing.T) {
	var fromMirror, fromOrigin atomic.Int64
	b := &breaking{after: 0}
	mirror := imagetest.Registry(t, b.wrap, counting(&fromMirror))
	origin := imagetest.Registry(t, counting(&fromOrigin))
	published(t, mirror+"/cache/team/app:1", base(t))
	published(t, origin+"/team/app:1", base(t))
	published(t, origin+"/team/app:2", top(t))
	options := PullOptions{Registry: registry.Options{Keychain: anyone.Keychain,
		Mirrors: map[string][]string{origin: {"127.0.0.1:1", mirror + "/cache"}}}}

	img, err := open(t).Pull(ctx, origin+"/team/app:1", options)
	if err != nil || !slices.Equal(img.Names, []string{origin + "/team/app:1"}) {
		t.Fatalf("got %v, %v", img.Names, err)
	}
	if fromMirror.Load() != 2 || fromOrigin.Load() != 0 {
		t.Errorf("%d blobs from the mirror, %d from the registry; want 2 and 0", fromMirror.Load(), fromOrigin.Load())
	}
	if _, err := open(t).Pull(ctx, origin+"/team/app:2", options); err != nil || fromOrigin.Load() != 2 {
		t.Errorf("what the mirror lacks: %v, %d blobs from the registry", err, fromOrigin.Load())
	}
	fromOrigin.Store(0)
	b.mu.Lock()
	b.times = 1 << 30 // the mirror answers and then breaks
	b.mu.Unlock()
	if _, err := open(t).Pull(ctx, origin+"/team/app:1", options); err != nil || fromOrigin.Load() == 0 {
		t.Errorf("when the mirror breaks: %v, %d blobs from the registry", err, fromOrigin.Load())
	}
	options.Registry.Mirrors[origin] = []string{"no mirror"}
	if _, err := open(t).Pull(ctx, origin+"/team/app:1", options); !errdefs.IsInvalidArgument(err) {
		t.Errorf("bad mirror: %v", err)
	}
}

func TestPullPlatforms(t *testing.T) {
	host := imagetest.Registry(t)
	name := host + "/multi:1"
	s := open(t)
	var list []string
	for _, arch := range []string{"s390x", "amd64"} {
		part := host + "/multi:" + arch
		if _, err := s.Load(ctx, bytes.NewReader(imagetest.DockerArchive(t, imagetest.Image{Name: part, Architecture: arch, Layers: [][]byte{base(t)}}))); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Push(ctx, part, PushOptions{Registry: anyone}); err != nil {
			t.Fatal(err)
		}
		d := mustInspect(t, s, part)
		list = append(list, fmt.Sprintf(`{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":%q,"size":%d,"platform":{"os":"linux","architecture":%q}}`, d.Digest, len(d.Manifest), arch))
	}
	index := `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[` + strings.Join(list, ",") + `]}`
	req, err := http.NewRequest(http.MethodPut, "http://"+host+"/v2/multi/manifests/1", strings.NewReader(index))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/vnd.oci.image.index.v1+json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil || resp.StatusCode != http.StatusCreated {
		t.Fatalf("put index: %v, %v", resp, err)
	}
	resp.Body.Close()
	tests := map[string]struct {
		ref, platform, want, err string
	}{
		"this machine's":        {name, "", "linux/amd64", ""},
		"another":               {name, "linux/s390x", "linux/s390x", ""},
		"one that is not there": {name, "linux/riscv64", "", "linux/s390x, linux/amd64"},
		"no platform":           {name, "a/b/c/d", "", "write it as"},
		"single, another":       {host + "/multi:s390x", "", "", "--platform"},
		"single, asked for":     {host + "/multi:s390x", "linux/s390x", "linux/s390x", ""},
		"index by digest":       {host + "/multi@" + blobs.Digest([]byte(index)), "", "linux/amd64", ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			s := open(t)
			got, err := s.Pull(ctx, tt.ref, PullOptions{Registry: anyone, Platform: tt.platform})
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("got error %v, want one with %q", err, tt.err)
				}
				return
			}
			if err != nil || got.Platform != tt.want {
				t.Fatalf("got %q, %v; want %q", got.Platform, err, tt.want)
			}
			if r, err := s.Resolve(ctx, tt.ref); err != nil || r.ID != got.ID {
				t.Errorf("resolve %s: %v, %v", tt.ref, r.ID, err)
			}
		})
	}
}

func TestManyPullsFetchOnce(t *testing.T) {
	b := &breaking{}
	name := imagetest.Registry(t, b.wrap) + "/app:1"
	var shared string
	for i := range 2 { // two images that share layers
		img := published(t, fmt.Sprint(name, i), noise(t, 1, 500_000), noise(t, 2, 500_000), noise(t, byte(i+3), 1000))
		shared = img.Layers[0]
	}
	dir := t.TempDir()
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			s, err := Open(dir)
			if err == nil {
				_, err = s.Pull(ctx, fmt.Sprint(name, i%2), PullOptions{Registry: anyone})
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for path, n := range b.paths {
		if strings.HasSuffix(path, shared) && n != 1 {
			t.Errorf("%s was fetched %d times", path, n)
		}
	}
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	img, err := s.Resolve(ctx, name+"0")
	if err != nil {
		t.Fatal(err)
	}
	root, err := s.RootFS(ctx, img)
	if err := errors.Join(err, os.Remove(root.Path)); err != nil {
		t.Fatal(err)
	}
	if again, err := s.RootFS(ctx, img); err != nil || again != root {
		t.Errorf("rebuilt: %v, %v", again, err)
	}
}

func TestPushErrors(t *testing.T) {
	s := open(t)
	if _, err := s.Load(ctx, bytes.NewReader(imagetest.Archive(t, base(t)))); err != nil {
		t.Fatal(err)
	}
	img, err := s.Resolve(ctx, "test")
	if err != nil {
		t.Fatal(err)
	}
	for ref, is := range map[string]func(error) bool{
		"127.0.0.1:1/nothing:1":   errdefs.IsNotFound,
		"test@" + img.Digest:      errdefs.IsInvalidArgument,
		"No Name":                 errdefs.IsInvalidArgument,
		strings.TrimSpace(img.ID): errdefs.IsNotFound,
	} {
		if _, err := s.Push(ctx, ref, PushOptions{Registry: anyone}); !is(err) {
			t.Errorf("push %s: %v", ref, err)
		}
	}
}

func TestTag(t *testing.T) {
	s := open(t)
	for i, name := range []string{"a:1", "b:1"} {
		layer := imagetest.MakeLayer(t, imagetest.Reg("n", fmt.Sprint(i), 0o644))
		if _, err := s.Load(ctx, bytes.NewReader(imagetest.DockerArchive(t, imagetest.Image{Name: name, Layers: [][]byte{layer}}))); err != nil {
			t.Fatal(err)
		}
	}
	a := mustInspect(t, s, "a:1")
	for _, name := range []string{"host.test/x", "b:1", "a:1"} {
		if err := s.Tag(ctx, "a:1", name); err != nil {
			t.Errorf("tag %s: %v", name, err)
		}
	}
	if got := mustInspect(t, s, "b:1"); got.ID != a.ID || !slices.Equal(got.Names, []string{"a:1", "b:1", "host.test/x:latest"}) {
		t.Errorf("names %v", got.Names)
	}
	if err := s.Tag(ctx, "none", "x"); !errdefs.IsNotFound(err) {
		t.Errorf("tag of nothing: %v", err)
	}
	for _, name := range []string{"UPPER", "x@" + a.Digest} {
		if err := s.Tag(ctx, "a:1", name); !errdefs.IsInvalidArgument(err) {
			t.Errorf("tag %s: %v", name, err)
		}
	}
}

func TestSave(t *testing.T) {
	host := imagetest.Registry(t)
	published(t, host+"/app:1", imagetest.PackGzip(t, base(t)), top(t))
	s := open(t)
	img, err := s.Pull(ctx, host+"/app:1", PullOptions{Registry: anyone})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Tag(ctx, img.ID, "other:2"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Load(ctx, bytes.NewReader(imagetest.Archive(t, base(t)))); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := s.Save(ctx, []string{host + "/app:1", "other:2", "test"}, &b); err != nil {
		t.Fatal(err)
	}
	loaded, err := open(t).Load(ctx, bytes.NewReader(b.Bytes()))
	if err != nil {
		t.Fatal(err)
	}
	want, err := s.List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	byID := func(a, b Image) int { return strings.Compare(a.ID, b.ID) }
	slices.SortFunc(want, byID)
	slices.SortFunc(loaded, byID)
	if diff := cmp.Diff(want, loaded, cmpopts.IgnoreFields(Image{}, "Digests")); diff != "" {
		t.Errorf("loaded (-saved +loaded):\n%s", diff)
	}
	// As docker load before version 25 reads it, by its own list only.
	_, err = tarball.Image(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil }, nil)
	if err == nil {
		t.Error("two images taken for one")
	}
	b.Reset()
	if err := s.Save(ctx, []string{"other:2"}, &b); err != nil {
		t.Fatal(err)
	}
	old, err := tarball.Image(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil }, nil)
	if err != nil {
		t.Fatal(err)
	}
	id, err := old.ConfigName()
	if err != nil || id.String() != img.ID {
		t.Errorf("another reader finds %v, %v", id, err)
	}
	layers, err := old.Layers()
	if err != nil {
		t.Fatal(err)
	}
	for i, l := range layers {
		if d, err := l.DiffID(); err != nil || d.String() != img.Layers[i] {
			t.Errorf("layer %d: %v, %v", i, d, err)
		}
	}
	if err := s.Save(ctx, []string{"nothing"}, io.Discard); !errdefs.IsNotFound(err) {
		t.Errorf("save of nothing: %v", err)
	}
	if err := s.Save(ctx, []string{img.ID}, &b); err != nil {
		t.Fatal(err)
	}
	tr := tar.NewReader(&b)
	if _, err := tr.Next(); err != nil {
		t.Error(err)
	}
}

func TestPrune(t *testing.T) {
	s := open(t)
	load := func(name string, layers ...[]byte) Image {
		t.Helper()
		got, err := s.Load(ctx, bytes.NewReader(imagetest.DockerArchive(t, imagetest.Image{Name: name, Layers: layers})))
		if err != nil {
			t.Fatal(err)
		}
		return got[0]
	}
	named := load("named:1", base(t))
	want := snapshot(t, s)
	unnamed := load("", top(t))
	used := load("", base(t), top(t))
	partial := filepath.Join(s.dir, "partial", strings.Repeat("ab", 32))
	stray := s.blobs.Path("sha256:" + strings.Repeat("cd", 32))
	if err := errors.Join(os.WriteFile(partial, []byte("half"), 0o600), os.WriteFile(stray, []byte("stray"), 0o600)); err != nil {
		t.Fatal(err)
	}
	inUse := func(img Image) bool { return img.ID == used.ID }
	got, err := s.Prune(ctx, PruneOptions{InUse: inUse})
	if diff := cmp.Diff(Removed{Deleted: []string{unnamed.ID}}, got, cmpopts.IgnoreFields(Removed{}, "FreedBytes")); diff != "" || err != nil {
		t.Errorf("pruned: %v\n%s", err, diff)
	}
	if got.FreedBytes < unnamed.SizeBytes {
		t.Errorf("%d bytes freed, want at least the root file system's %d", got.FreedBytes, unnamed.SizeBytes)
	}
	if got, err = s.Prune(ctx, PruneOptions{}); err != nil || !slices.Equal(got.Deleted, []string{used.ID}) {
		t.Errorf("when nothing is in use: %v, %v", got, err)
	}
	same(t, want, snapshot(t, s))
	if got, err = s.Prune(ctx, PruneOptions{All: true}); err != nil || !slices.Equal(got.Deleted, []string{named.ID}) || !slices.Equal(got.Untagged, []string{"named:1"}) {
		t.Errorf("all: %v, %v", got, err)
	}
	if left, err := s.List(ctx); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}
