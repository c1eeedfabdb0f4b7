package wsframe

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// relay carries one connection to upstream through filters, from behind the
// handshake on.
func relay(t *testing.T, client net.Conn, upstream string) {
	server, err := net.Dial("tcp", upstream)
	if err != nil {
		t.Error(err)
		return
	}
	var both sync.WaitGroup
	one := func(d Direction, dst, src net.Conn) {
		defer dst.Close()
		s := &stars{word: "secret"}
		f := New(d, s, s.text)
		buf := make([]byte, 1000)
		var head []byte
		for shaken := false; ; {
			n, err := src.Read(buf)
			if err != nil {
				dst.Write(f.Flush(nil))
				return
			}
			part := buf[:n]
			if !shaken {
				head = append(head, part...)
				end := bytes.Index(head, []byte("\r\n\r\n"))
				if end < 0 {
					continue
				}
				shaken = true
				dst.Write(head[:end+4])
				part = head[end+4:]
			}
			out, err := f.Write(nil, part)
			if err != nil {
				t.Errorf("direction %d: %v", d, err)
				return
			}
			dst.Write(f.Release(out))
		}
	}
	both.Go(func() { one(FromClient, server, client) })
	both.Go(func() { one(FromServer, client, server) })
	both.Wait()
}

// A real client and a real server agree on what passes through.
func TestSocket(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(w, r, nil)
		if err != nil {
			t.Error(err)
			return
		}
		c.SetReadLimit(1 << 20)
		for {
			kind, p, err := c.Read(r.Context())
			if err != nil {
				return
			}
			if string(p) == "bye" {
				c.Close(websocket.StatusNormalClosure, "a secret reason")
				return
			}
			c.Write(r.Context(), kind, append(p, " secret"...))
		}
	}))
	defer upstream.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if c, err := l.Accept(); err == nil {
			relay(t, c, upstream.Listener.Addr().String())
		}
	}()
	defer func() { l.Close(); <-done }()

	c, _, err := websocket.Dial(ctx, "ws://"+l.Addr().String(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.CloseNow()
	c.SetReadLimit(1 << 20)
	for _, sent := range []string{"hello", "a secret", strings.Repeat("x", 100_000) + "secret", ""} {
		w, err := c.Writer(ctx, websocket.MessageText) // a frame for each part
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(w, sent[:len(sent)/2])
		io.WriteString(w, sent[len(sent)/2:])
		w.Close()
		_, got, err := c.Read(ctx)
		if want := strings.ReplaceAll(sent+" secret", "secret", "******"); err != nil || string(got) != want {
			t.Fatalf("got %.40q: %v, want %.40q", got, err, want)
		}
	}
	closed := make(chan error)
	go func() {
		_, _, err := c.Read(ctx)
		closed <- err
	}()
	if err := c.Ping(ctx); err != nil {
		t.Errorf("ping: %v", err)
	}
	c.Write(ctx, websocket.MessageText, []byte("bye"))
	err = <-closed
	if websocket.CloseStatus(err) != websocket.StatusNormalClosure || !strings.Contains(err.Error(), "a ****** reason") {
		t.Errorf("closed with %v", err)
	}
}
