package web

import (
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"creel/internal/boundary/scrub"
	"creel/internal/boundary/wsframe"

	"golang.org/x/net/http/httpguts"
)

// switched puts filters into both directions of a WebSocket.
func switched(x *exchange, res *http.Response) error {
	upstream, ok := res.Body.(io.ReadWriteCloser)
	strict := linkOf(res.Request.Context()).strict
	if !ok || strict == nil || !toWebSocket(res.Request.Header) || !toWebSocket(res.Header) {
		return errUnreadable{"switched to a protocol that was not asked for, and"}
	}
	if res.Header.Get("Sec-Websocket-Extensions") != "" {
		return errUnreadable{"uses extensions of WebSocket that were not offered, and"}
	}
	values, marks := x.pass.Values.Stream(), x.pass.Marks.Detector()
	s := &socket{upstream: upstream, x: x, values: values, marks: marks}
	down := wsframe.New(wsframe.FromServer, values, func(p []byte) []byte { return []byte(x.text(string(p))) })
	s.down = newSearched(upstream, down, linkOf(res.Request.Context()))
	s.up = wsframe.New(wsframe.FromClient, marks, func(p []byte) []byte { return s.control(p) })
	res.Body = s
	// What follows goes to the guest by a way of its own.
	res.Status = ""
	res.Header.Del("Alt-Svc")
	x.clean(res.Header)
	strict.PassThrough()
	return nil
}

func toWebSocket(h http.Header) bool {
	up := h.Values("Upgrade")
	return len(up) == 1 && strings.EqualFold(up[0], "websocket") && httpguts.HeaderValuesContainsToken(h.Values("Connection"), "upgrade")
}

// socket is the upstream's end of a WebSocket.
type socket struct {
	upstream      io.ReadWriteCloser
	x             *exchange
	values, marks *scrub.Stream
	counted       int64 // matches in what was read, as far as they are told of
	down          *searched

	mu    sync.Mutex
	up    *wsframe.Filter
	timer *time.Timer // releases what is held of what the guest sent
	err   error
}

func (s *socket) Read(p []byte) (int, error) {
	n, err := s.down.Read(p)
	found := s.values.Found()
	s.x.note(func(r *Result) {
		r.BytesIn += int64(n)
		r.Scrubbed += found - s.counted
	})
	s.counted = found
	return n, err
}

func (s *socket) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.timer != nil {
		s.timer.Stop()
		s.timer = nil
	}
	if s.err != nil {
		return 0, s.err
	}
	out, err := s.up.Write(nil, p)
	if s.marks.Found() > 0 {
		s.x.markFound(s.marks.Names())
		err = errMark
	}
	if err == nil {
		err = s.err // a control frame's payload was searched on the way
	}
	if err == nil {
		err = s.send(out)
	}
	if err != nil {
		s.err = err
		s.upstream.Close()
		return 0, err
	}
	if s.up.Pending() > 0 {
		s.timer = time.AfterFunc(hold(s.up.Pending()), s.release)
	}
	return len(p), nil
}

// send writes to the upstream, with mu held: the frames of a socket are in
// order.
func (s *socket) send(p []byte) error {
	if len(p) == 0 {
		return nil
	}
	n, err := s.upstream.Write(p)
	s.x.note(func(r *Result) { r.BytesOut += int64(n) })
	return err
}

func (s *socket) release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.err = s.send(s.up.Release(nil))
	}
}

// control searches a ping, a pong or the reason of a close, with mu held.
func (s *socket) control(p []byte) []byte {
	if _, found := s.x.pass.Marks.Text(string(p)); len(found) > 0 {
		s.x.markFound(found)
		s.err = errMark
	}
	return p
}

func (s *socket) Close() error {
	err := s.upstream.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.timer != nil {
		s.timer.Stop()
	}
	if s.err == nil {
		s.err = errClosed
	}
	return err
}
