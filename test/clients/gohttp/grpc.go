package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

const largestMessage = 4 << 20 // as gRPC's own limit

// grpc makes one call with one message, then one with messages in both
// directions in turn. Messages are text: what frames them does not care.
func (c *client) grpc(ctx context.Context, url string) error {
	url = strings.TrimSuffix(url, "/") + "/echo.Echo/"
	if err := c.call(ctx, url+"Unary", 1); err != nil {
		return fmt.Errorf("unary: %w", err)
	}
	if err := c.call(ctx, url+"Chat", c.count); err != nil {
		return fmt.Errorf("bidirectional: %w", err)
	}
	return nil
}

func (c *client) call(ctx context.Context, url string, count int) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	read, write := io.Pipe()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, url, read)
	if err != nil {
		return err
	}
	request.Header = c.headers.Clone()
	request.Header.Set("Content-Type", "application/grpc")
	request.Header.Set("TE", "trailers")
	next := make(chan struct{}, 1)
	sent := make(chan error, 1)
	go func() { sent <- send(ctx, write, next, count) }()
	defer func() {
		read.CloseWithError(context.Canceled)
		cancel()
		<-sent
	}()
	next <- struct{}{} // the first goes out before the server has said anything
	response, err := c.http.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	fmt.Fprintf(c.out, "%s %s %s\n", response.Proto, response.Status, response.Header.Get("Content-Type"))
	if response.ProtoMajor != 2 {
		return errors.New("gRPC wants HTTP/2")
	}
	for range count {
		begin := time.Now()
		message, err := readMessage(response.Body)
		if err != nil {
			break // the trailers tell why
		}
		fmt.Fprintf(c.out, "after %dus: %s\n", time.Since(begin).Microseconds(), message)
		next <- struct{}{}
	}
	rest, err := io.Copy(io.Discard, response.Body)
	if err != nil {
		return err
	}
	status := response.Trailer.Get("Grpc-Status")
	if status == "" { // an answer that is only headers
		status = response.Header.Get("Grpc-Status")
	}
	fmt.Fprintf(c.out, "grpc-status %q, %q, %d bytes more\n", status, response.Trailer.Get("Grpc-Message"), rest)
	if status != "0" {
		return fmt.Errorf("the call ended with status %q", status)
	}
	return nil
}

// send sends one message each time that next says so.
func send(ctx context.Context, w *io.PipeWriter, next <-chan struct{}, count int) error {
	defer w.Close()
	for i := range count {
		select {
		case <-next:
		case <-ctx.Done():
			return ctx.Err()
		}
		if err := writeMessage(w, fmt.Appendf(nil, "message %d", i)); err != nil {
			return err
		}
	}
	return nil
}

func writeMessage(w io.Writer, message []byte) error {
	b := append([]byte{0}, binary.BigEndian.AppendUint32(nil, uint32(len(message)))...) // not compressed
	_, err := w.Write(append(b, message...))
	return err
}

func readMessage(r io.Reader) ([]byte, error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(head[1:])
	if head[0] != 0 || n > largestMessage {
		return nil, fmt.Errorf("message of %d bytes with flags %d", n, head[0])
	}
	message := make([]byte, n)
	_, err := io.ReadFull(r, message)
	return message, err
}
