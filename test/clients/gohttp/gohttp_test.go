package main

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/coder/websocket"
)

// TestMain lets the program trust the test's server as a user would have it:
// system roots are read once in a process.
func TestMain(m *testing.M) {
	server := httptest.NewTLSServer(http.NotFoundHandler())
	certificate := server.Certificate()
	server.Close()
	os.Exit(withRoot(certificate, m))
}

func withRoot(certificate *x509.Certificate, m *testing.M) int {
	dir, err := os.MkdirTemp("", "root")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "root.pem")
	b := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate.Raw})
	if err := os.WriteFile(file, b, 0o600); err != nil {
		panic(err)
	}
	os.Setenv("SSL_CERT_FILE", file)
	return m.Run()
}

func start(t *testing.T) string {
	t.Helper()
	mux := http.NewServeMux()
	mux.HandleFunc("/hello", func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		w.Header().Set("Trailer", "X-End")
		fmt.Fprintf(w, "%s %s %s %s", r.Method, r.Proto, r.Header.Get("X-Key"), body)
		w.Header().Set("X-End", "here")
	})
	mux.HandleFunc("/events", func(w http.ResponseWriter, r *http.Request) {
		for i := range 3 {
			fmt.Fprintf(w, "event: e\ndata: %d\n\n", i)
			w.(http.Flusher).Flush()
		}
	})
	mux.HandleFunc("/socket", func(w http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(w, r, nil)
		if err != nil {
			return
		}
		defer c.CloseNow()
		for {
			kind, b, err := c.Read(r.Context())
			if err != nil || c.Write(r.Context(), kind, b) != nil {
				return
			}
		}
	})
	for _, method := range []string{"Unary", "Chat"} {
		mux.HandleFunc("/echo.Echo/"+method, echo)
	}
	mux.HandleFunc("/broken/echo.Echo/Unary", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Grpc-Status", "7")
	})
	server := httptest.NewUnstartedServer(mux)
	server.EnableHTTP2 = true
	server.StartTLS()
	t.Cleanup(server.Close)
	return server.URL
}

// echo is the server's side of a call: each message comes back at once.
func echo(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/grpc")
	w.Header().Set("Trailer", "Grpc-Status")
	w.WriteHeader(http.StatusOK)
	w.(http.Flusher).Flush()
	for {
		message, err := readMessage(r.Body)
		if err != nil {
			break
		}
		if writeMessage(w, message) != nil {
			return
		}
		w.(http.Flusher).Flush()
	}
	w.Header().Set("Grpc-Status", "0")
}

func TestRun(t *testing.T) {
	url := start(t)
	for name, tc := range map[string]struct {
		args []string
		want string // a regular expression
	}{
		"http/2":    {[]string{url + "/hello"}, `^HTTP/2.0 200 OK\nGET HTTP/2.0  \n$`},
		"http/1":    {[]string{"-http1", url + "/hello"}, `^HTTP/1.1 200 OK\nGET HTTP/1.1  \n$`},
		"post":      {[]string{"-X", "POST", "-H", "X-Key: k", "-d", "body", "-i", url + "/hello"}, `(?s)POST HTTP/2.0 k body\nX-End: here\n$`},
		"events":    {[]string{"-sse", url + "/events"}, `^HTTP/2.0 200 OK\n\d+ \+\d+us 0\n\d+ \+\d+us 1\n\d+ \+\d+us 2\n$`},
		"websocket": {[]string{"-ws", url + "/socket"}, `^MessageText after \d+us: message 0\nMessageBinary .*: message 1\nMessageText .*: message 2\n$`},
		"grpc": {[]string{"-grpc", "-n", "2", url}, `^HTTP/2.0 200 OK application/grpc\nafter \d+us: message 0\ngrpc-status "0".*\n` +
			`HTTP/2.0 .*\nafter \d+us: message 0\nafter \d+us: message 1\ngrpc-status "0", "", 0 bytes more\n$`},
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			if err := run(t.Context(), tc.args, &out); err != nil {
				t.Fatal(err)
			}
			if !regexp.MustCompile(tc.want).Match(out.Bytes()) {
				t.Errorf("printed %q, want %s", &out, tc.want)
			}
		})
	}
}

func TestErrors(t *testing.T) {
	url := start(t)
	for name, tc := range map[string]struct {
		args []string
		want string
	}{
		"no URL":      {nil, "want one URL"},
		"grpc status": {[]string{"-grpc", url + "/broken"}, `status "7"`},
		"grpc http/1": {[]string{"-grpc", "-http1", url}, "wants HTTP/2"},
		"no socket":   {[]string{"-ws", url + "/hello"}, "expected handshake"},
	} {
		t.Run(name, func(t *testing.T) {
			if err := run(t.Context(), tc.args, io.Discard); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("ended with %v, want %q", err, tc.want)
			}
		})
	}
}
