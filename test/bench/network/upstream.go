package network

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"

	"creel/internal/boundary/intercept"
)

// served is the upstream of every row about networks, on loopback: the same
// handler without and with TLS.
type served struct {
	plain, secure int // ports
	authority     *intercept.Authority
}

// serve starts the upstream; the rig ends it.
func (b *Bench) serve(ctx context.Context) (*served, error) {
	if b.served != nil {
		return b.served, nil
	}
	s := &served{}
	var err error
	if s.authority, err = intercept.New("bench", time.Now()); err != nil {
		return nil, err
	}
	plain, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	secure, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listen: %w", err), plain.Close())
	}
	s.plain, s.secure = portOf(plain), portOf(secure)
	server := &http.Server{Handler: handler()}
	done := make(chan struct{}, 2)
	go func() { server.Serve(plain); done <- struct{}{} }()
	go func() { server.Serve(tls.NewListener(secure, s.config())); done <- struct{}{} }()
	b.Ends.Push("upstream", func() error {
		err := server.Close()
		<-done
		<-done
		return err
	})
	b.served = s
	return s, nil
}

// config is a certificate for whatever name is asked for, and HTTP/1.1, which
// all that is compared speaks.
func (s *served) config() *tls.Config {
	return &tls.Config{
		NextProtos: []string{"http/1.1"},
		GetCertificate: func(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
			host := h.ServerName
			if host == "" {
				host = "127.0.0.1"
			}
			return s.authority.Config(host).GetCertificate(h)
		},
	}
}

func portOf(l net.Listener) int { return l.Addr().(*net.TCPAddr).Port }

const (
	eventGap   = 5 * time.Millisecond
	eventCount = 60
)

func handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /bytes/{n}", func(w http.ResponseWriter, r *http.Request) {
		left, err := strconv.Atoi(r.PathValue("n"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Content-Length", strconv.Itoa(left))
		for left > 0 {
			n, err := w.Write(text[:min(left, len(text))])
			if err != nil {
				return
			}
			left -= n
		}
	})
	mux.HandleFunc("POST /sink", func(w http.ResponseWriter, r *http.Request) {
		io.CopyBuffer(struct{ io.Writer }{io.Discard}, r.Body, make([]byte, len(text)))
		w.Write([]byte("done"))
	})
	mux.HandleFunc("GET /events", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		tick := time.NewTicker(eventGap)
		defer tick.Stop()
		for range eventCount {
			select {
			case <-tick.C:
			case <-r.Context().Done():
				return
			}
			fmt.Fprintf(w, "event: delta\ndata: {\"sent\":%d,\"text\":\"a few words\"}\n\n", time.Now().UnixNano())
			http.NewResponseController(w).Flush()
		}
	})
	return mux
}

// text is what bodies are made of: words, as answers of APIs are.
var text = func() []byte {
	out := make([]byte, 0, 256<<10)
	for i := 0; len(out) < cap(out)-64; i++ {
		out = fmt.Appendf(out, `{"index":%d,"text":"the quick brown fox"},`, i)
	}
	return out
}()
