package web

import (
	"errors"
	"io"
	"net/http"
	"strings"

	"creel/internal/boundary/decode"
	"creel/internal/boundary/scrub"
)

var errMark = errors.New("a credential that is not for this destination was about to leave")

// requestBody is what the guest sends. A mark in it breaks the request off,
// before the mark has left.
type requestBody struct {
	io.ReadCloser
	x      *exchange
	search *searched // nil: there are no marks
}

func newRequestBody(body io.ReadCloser, x *exchange) *requestBody {
	b := &requestBody{ReadCloser: body, x: x}
	if !x.pass.Marks.Empty() {
		stream := x.pass.Marks.Stream()
		b.search = newSearched(body, stopping{plain{stream}, stream, x.markFound})
	}
	return b
}

func (b *requestBody) Read(p []byte) (n int, err error) {
	if b.search == nil {
		n, err = b.ReadCloser.Read(p)
	} else {
		n, err = b.search.Read(p)
	}
	b.x.note(func(r *Result) { r.BytesOut += int64(n) })
	return n, err
}

func (b *requestBody) Close() error {
	err := b.ReadCloser.Close()
	if b.search != nil {
		b.search.settle()
	}
	return err
}

// markFound tells of it once.
func (x *exchange) markFound(names []string) {
	x.mu.Lock()
	first := !x.found
	x.found = true
	x.mu.Unlock()
	if first && x.pass.Found != nil {
		x.pass.Found(names)
	}
}

// responseBody is what the upstream sends, without values.
type responseBody struct {
	body    io.ReadCloser
	x       *exchange
	trailer func() http.Header

	stream *scrub.Stream
	search *searched
	counts int64 // matches that were reported
}

// searchable puts the search into a response's body, behind its encoding.
func searchable(x *exchange, res *http.Response, b *responseBody) error {
	if coding := res.Header.Get("Grpc-Encoding"); coding != "" && coding != "identity" && !x.pass.Unreadable {
		return errUnreadable{"has gRPC messages in the encoding " + coding + ", which"}
	}
	if x.pass.Whole && res.StatusCode == http.StatusPartialContent && !x.pass.Unreadable {
		return errUnreadable{"is a part, though the whole was asked for, and"}
	}
	coding := strings.Join(res.Header.Values("Content-Encoding"), ",")
	if bodiless(res) {
		return nil
	}
	decoded, err := decode.New(coding, b.body)
	switch {
	case err != nil && x.pass.Unreadable:
		return nil
	case err != nil:
		return errUnreadable{"has the encoding " + x.text(coding) + " and"}
	}
	if coding != "" && !strings.EqualFold(coding, "identity") {
		for _, h := range []string{"Content-Encoding", "Content-Length", "Content-Md5", "Digest", "Etag"} {
			res.Header.Del(h) // they are of the encoded body
		}
		res.ContentLength = -1
	}
	b.body = decoded
	b.stream = x.pass.Values.Stream()
	b.search = newSearched(decoded, plain{b.stream})
	return nil
}

func bodiless(res *http.Response) bool {
	return res.Request.Method == http.MethodHead || res.StatusCode == http.StatusNoContent || res.StatusCode == http.StatusNotModified
}

func (b *responseBody) Read(p []byte) (n int, err error) {
	if b.search == nil {
		n, err = b.body.Read(p)
	} else {
		n, err = b.search.Read(p)
	}
	b.x.note(func(r *Result) {
		r.BytesIn += int64(n)
		if err != nil && err != io.EOF {
			r.Err = err
		}
		if b.stream != nil {
			r.Scrubbed += b.stream.Found() - b.counts
			b.counts = b.stream.Found()
		}
	})
	if err == io.EOF {
		b.x.clean(b.trailer())
	}
	return n, err
}

func (b *responseBody) Close() error {
	err := b.body.Close()
	if b.search != nil {
		b.search.settle()
	}
	return err
}
