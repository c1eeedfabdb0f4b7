// Command demoapi is what the demo's agent talks to, on the loopback: a service
// that wants a key and, like some real ones, tells it back, and another where
// anybody may leave and read notes; and an image registry for the tour. It
// writes its authority's certificate to a file, prints the ports of the services
// and of the registry, and ends with its standard input. It must not be of use
// for anything but the demo and the tour.
package main

import (
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"time"

	"creel/internal/boundary/intercept"

	"github.com/google/go-containerregistry/pkg/registry"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: demoapi KEY CA-FILE")
		os.Exit(2)
	}
	if err := serve(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "demoapi:", err)
		os.Exit(1)
	}
}

func serve(key, caFile string) error {
	authority, err := intercept.New("demo", time.Now())
	if err != nil {
		return err
	}
	if err := os.WriteFile(caFile, []byte(authority.PEM()), 0o600); err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	config := &tls.Config{GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		return authority.Config(h.ServerName), nil
	}}
	server := &http.Server{TLSConfig: config, ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
		if err != nil {
			return
		}
		got := r.Header.Get("X-Api-Key")
		if r.Host != "api.example.com" {
			fmt.Fprintf(w, "kept for everybody to read: %s", body)
			return
		}
		if got != key {
			http.Error(w, "the key is wrong", http.StatusUnauthorized)
			return
		}
		fmt.Fprintf(w, "the key is right; you sent %d bytes with the key %s", len(body), got)
	})}
	images, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	shelf := &http.Server{Handler: registry.New(registry.Logger(log.New(io.Discard, "", 0))), ReadHeaderTimeout: time.Minute}
	go shelf.Serve(images)
	fmt.Println(l.Addr().(*net.TCPAddr).Port, images.Addr().(*net.TCPAddr).Port)
	go func() {
		io.Copy(io.Discard, os.Stdin)
		shelf.Close()
		server.Close()
	}()
	if err := server.ServeTLS(l, "", ""); err != http.ErrServerClosed {
		return err
	}
	return nil
}
