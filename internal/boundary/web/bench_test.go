package web

import (
	"crypto/tls"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"creel/internal/boundary/scrub"
)

// benchClients are as many connections of guests, each with one request at a
// time.
const benchClients = 64

// The bodies that are asked for, by path.
var benchBodies = map[string]string{
	"/small": `{"answer": "` + strings.Repeat("a word or two, ", 60) + `"}`,
	"/large": strings.Repeat("0123456789abcdefghijklmnopqrstuvwxyz some text to go\n", 20000),
}

func benchUpstream(b *testing.B) destination {
	return serveHTTP(b, tlsHTTP2, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		io.WriteString(w, benchBodies[r.URL.Path])
	}))
}

// load has the clients ask for a path until b.N requests were answered.
func load(b *testing.B, path string, newClient func() (*http.Client, string)) {
	body := strings.Repeat("what is asked, ", 40)
	size := len(benchBodies[path])
	jobs := make(chan struct{})
	var clients, connected sync.WaitGroup
	for range benchClients {
		client, base := newClient()
		ask := func() {
			res, err := client.Post(base+path, "application/json", strings.NewReader(body))
			if err != nil {
				b.Error(err)
				return
			}
			if n, err := io.Copy(io.Discard, res.Body); n != int64(size) || err != nil {
				b.Errorf("%d bytes, %v", n, err)
			}
			res.Body.Close()
		}
		connected.Add(1)
		clients.Go(func() {
			defer client.CloseIdleConnections()
			ask() // shakes hands
			connected.Done()
			for range jobs {
				ask()
			}
		})
	}
	connected.Wait()
	b.SetBytes(int64(size))
	b.ReportAllocs()
	before := cpuTime(b)
	b.ResetTimer()
	for range b.N {
		jobs <- struct{}{}
	}
	close(jobs)
	clients.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "requests/s")
	b.ReportMetric(float64((cpuTime(b)-before).Microseconds())/float64(b.N), "cpu-µs/op")
}

// cpuTime is what the process has used, which other load on the machine changes
// less than the time on the wall. Guests and upstream are in it.
func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func benchEach(b *testing.B, run func(b *testing.B, way, path string)) {
	for _, way := range []string{tlsHTTP1, tlsHTTP2} {
		for path := range benchBodies {
			b.Run(way+path, func(b *testing.B) { run(b, way, path) })
		}
	}
}

// BenchmarkProxy puts a credential into each request, and takes it out of each
// response.
func BenchmarkProxy(b *testing.B) {
	benchEach(b, func(b *testing.B, way, path string) {
		w := newWorld(b, way, benchUpstream(b))
		values := map[string]string{"one": theSecret, "two": "ghp_" + strings.Repeat("k7Q", 12), "three": strings.Repeat("9fE3", 16)}
		var err error
		if w.pass.Values, err = scrub.Compile(values); err != nil {
			b.Fatal(err)
		}
		w.pass.Marks = compile(b, theCanary, "ghp_"+strings.Repeat("zzz", 12))
		w.pass.Whole = true
		w.pass.Edit = func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+theSecret) }
		w.quiet = true
		load(b, path, func() (*http.Client, string) { return w.newClient(), w.url("") })
	})
}

// BenchmarkBare is the same with net/http's reverse proxy alone.
func BenchmarkBare(b *testing.B) {
	benchEach(b, func(b *testing.B, way, path string) {
		to := benchUpstream(b)
		transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: to.ca, ServerName: host}, ForceAttemptHTTP2: true, DisableCompression: true, MaxIdleConnsPerHost: benchClients}
		defer transport.CloseIdleConnections()
		proxy := &httputil.ReverseProxy{Transport: transport, FlushInterval: -1, BufferPool: new(buffers), Rewrite: func(pr *httputil.ProxyRequest) {
			pr.SetURL(&url.URL{Scheme: "https", Host: to.addr})
			pr.Out.Header.Set("Authorization", "Bearer "+theSecret)
		}}
		a, ca := authorityOf(b)
		s := httptest.NewUnstartedServer(proxy)
		s.Config.ErrorLog = log.New(io.Discard, "", 0)
		s.TLS = a.Config(host)
		s.EnableHTTP2 = way == tlsHTTP2
		s.StartTLS()
		defer s.Close()
		w := &world{t: b, way: way, to: to, addr: s.Listener.Addr().String(), ca: ca}
		load(b, path, func() (*http.Client, string) { return w.newClient(), "https://" + host })
	})
}
