package network

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	crowd     = 64 // connections at once
	largeBody = 256 << 10
	loadTime  = time.Second
)

// load is one request that is made over and over, without a client that costs
// more than what it measures.
type load struct{ path string }

// perSecond is how many requests a peer answers in a second, and megabytes how
// much of bodies passes.
func (l load) perSecond(ctx context.Context, p *peer) (float64, error) {
	requests, _, took, err := l.run(ctx, p)
	return float64(requests) / took.Seconds(), err
}

func (l load) megabytes(ctx context.Context, p *peer) (float64, error) {
	_, size, took, err := l.run(ctx, p)
	return float64(size) / 1e6 / took.Seconds(), err
}

// run keeps a crowd of connections busy for a while. Each is warm when the
// clock starts; what has begun by the end is finished and counts.
func (l load) run(ctx context.Context, p *peer) (requests, size int64, took time.Duration, err error) {
	crowded := make([]*asking, crowd)
	defer func() {
		for _, a := range crowded {
			if a != nil {
				a.conn.Close()
			}
		}
	}()
	errs := make([]error, crowd)
	each := func(do func(i int)) {
		var all sync.WaitGroup
		for i := range crowd {
			all.Go(func() { do(i) })
		}
		all.Wait()
	}
	each(func(i int) {
		if crowded[i], errs[i] = p.dial(ctx); errs[i] == nil {
			_, errs[i] = crowded[i].ask(l.path)
		}
	})
	if err := errors.Join(errs...); err != nil {
		return 0, 0, 1, err
	}
	var count, bytes atomic.Int64
	began := time.Now()
	each(func(i int) {
		for errs[i] == nil && time.Since(began) < loadTime {
			var n int64
			n, errs[i] = crowded[i].ask(l.path)
			count.Add(1)
			bytes.Add(n)
		}
	})
	return count.Load(), bytes.Load(), time.Since(began), errors.Join(errs...)
}

// asking is one connection of a client.
type asking struct {
	peer *peer
	conn *tls.Conn
	in   *bufio.Reader
}

func (p *peer) dial(ctx context.Context) (*asking, error) {
	c, err := (&tls.Dialer{Config: p.config}).DialContext(ctx, "tcp", p.address)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", p.label, err)
	}
	return &asking{p, c.(*tls.Conn), bufio.NewReaderSize(c, 64<<10)}, nil
}

// ask makes one request and reads the answer.
func (a *asking) ask(path string) (int64, error) {
	res, err := a.send(path)
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	return io.Copy(io.Discard, res.Body)
}

func (a *asking) send(path string) (*http.Response, error) {
	if _, err := fmt.Fprintf(a.conn, "GET %s HTTP/1.1\r\nHost: %s:%d\r\n\r\n", path, edgeHost, a.peer.port); err != nil {
		return nil, fmt.Errorf("ask %s: %w", a.peer.label, err)
	}
	res, err := http.ReadResponse(a.in, nil)
	if err != nil {
		return nil, fmt.Errorf("ask %s: %w", a.peer.label, err)
	}
	if res.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(io.LimitReader(res.Body, 1<<10))
		return nil, fmt.Errorf("ask %s: %s: %s", a.peer.label, res.Status, body)
	}
	return res, nil
}

// eventDelay is the milliseconds that a peer adds to a server-sent event at the
// median, over the upstream itself asked at the same time.
func (b *Bench) eventDelay(ctx context.Context, p *peer) (float64, error) {
	direct := &peer{label: "upstream", address: fmt.Sprintf("127.0.0.1:%d", b.served.secure), config: trusting(b.served.authority.PEM()), port: b.served.secure}
	through, err := p.events(ctx)
	if err != nil {
		return 0, err
	}
	without, err := direct.events(ctx)
	return through - without, err
}

// events is the median delay of events, in milliseconds.
func (p *peer) events(ctx context.Context) (float64, error) {
	a, err := p.dial(ctx)
	if err != nil {
		return 0, err
	}
	defer a.conn.Close()
	res, err := a.send("/events")
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	var delays []float64
	for lines := bufio.NewScanner(res.Body); lines.Scan(); {
		data, ok := bytes.CutPrefix(lines.Bytes(), []byte("data: "))
		if !ok {
			continue
		}
		var event struct{ Sent int64 }
		now := time.Now().UnixNano()
		if err := json.Unmarshal(data, &event); err != nil {
			return 0, fmt.Errorf("read event of %s: %w", p.label, err)
		}
		delays = append(delays, float64(now-event.Sent)/1e6)
	}
	if len(delays) != eventCount {
		return 0, fmt.Errorf("%s passed %d of %d events", p.label, len(delays), eventCount)
	}
	return median(delays), nil
}

func median(values []float64) float64 {
	slices.Sort(values)
	return values[len(values)/2]
}
