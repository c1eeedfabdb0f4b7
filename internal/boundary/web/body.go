package web

import (
	"context"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"creel/internal/boundary/decode"
	"creel/internal/boundary/scrub"
)

var errMark = errors.New("a credential that is not for this destination was about to leave")

// requestBody is what the guest sends. A mark in it breaks the request off,
// before the mark has left.
type requestBody struct {
	io.ReadCloser
	x    *exchange
	from io.Reader   // the body, searched where there are marks
	over atomic.Bool // the guest has sent all of it
}

func newRequestBody(body io.ReadCloser, x *exchange) *requestBody {
	b := &requestBody{ReadCloser: body, x: x, from: body}
	if !x.pass.Marks.Empty() {
		stream := x.pass.Marks.Detector()
		b.from = newSearched(body, stopping{plain{stream}, stream, x.markFound}, x.link)
	}
	return b
}

func (b *requestBody) Read(p []byte) (int, error) {
	n, err := b.from.Read(p)
	if err == io.EOF {
		b.over.Store(true)
	}
	b.x.note(func(r *Result) { r.BytesOut += int64(n) })
	return n, err
}

// endGrace is how long a guest of HTTP/1 may take to send more of a body that
// nobody wants any more.
const endGrace = 100 * time.Millisecond

// endRequest ends the request, whose response has ended, so that nothing waits
// for a guest that waits for the response's end itself. What is returned must be
// called when nothing waits.
func (x *exchange) endRequest() (stop func() bool) {
	stop = func() bool { return true }
	if x.body == nil || x.body.over.Load() {
		return stop
	}
	interrupt := func() { http.NewResponseController(x.w).SetReadDeadline(time.Now()) }
	if x.link.strict != nil { // its connection ends with this
		return time.AfterFunc(endGrace, interrupt).Stop
	}
	interrupt()
	return stop
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
	io.Closer
	from io.Reader // the body, searched where there are values
	x    *exchange
	res  *http.Response

	stream *scrub.Stream // nil: it is not searched
	counts int64         // matches that were reported
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
	if slices.Contains(decode.Codings(coding), "br") && !x.brotli {
		if x.pass.Unreadable {
			return nil
		}
		return errUnreadable{"has the encoding br, which was not asked for, and"}
	}
	ctx, cancel := context.WithTimeout(res.Request.Context(), x.link.decoderWait)
	defer cancel()
	decoded, err := x.link.decoders.Open(ctx, coding, struct {
		io.Reader
		io.Closer
	}{b.from, b.Closer})
	switch {
	case errors.Is(err, decode.ErrBudget):
		return err
	case err != nil && x.pass.Unreadable:
		return nil
	case err != nil:
		return errUnreadable{"has the encoding " + x.text(coding) + " and"}
	}
	if coding != "" && !strings.EqualFold(coding, "identity") {
		for _, h := range []string{"Content-Encoding", "Content-Length", "Content-Md5", "Digest", "Content-Digest"} {
			res.Header.Del(h) // they are of the encoded body
		}
		if tag := res.Header.Get("Etag"); strings.HasPrefix(tag, `"`) {
			res.Header.Set("Etag", "W/"+tag) // the same content, in other bytes
		}
		res.ContentLength = -1
	}
	b.Closer = decoded
	b.stream = x.pass.Values.Stream()
	b.from = newSearched(decoded, plain{b.stream}, x.link)
	return nil
}

func bodiless(res *http.Response) bool {
	return res.Request.Method == http.MethodHead || res.StatusCode == http.StatusNoContent || res.StatusCode == http.StatusNotModified
}

func (b *responseBody) Read(p []byte) (int, error) {
	n, err := b.from.Read(p)
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
	return n, err
}

// Close also prepares the trailers, which are sent after it.
func (b *responseBody) Close() error {
	defer b.x.endRequest()()
	err := b.Closer.Close()
	b.x.clean(b.res.Trailer)
	return err
}
