package keeper

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
)

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

type brokenWriter struct{}

func (brokenWriter) Write([]byte) (int, error) { return 0, errors.New("gone") }

func TestHubDropsAClientThatIsGoneAndServesTheOthers(t *testing.T) {
	h := newHub()
	var got bytes.Buffer
	gone := h.attach(map[int]io.WriteCloser{1: nopCloser{brokenWriter{}}}, nil)
	h.attach(map[int]io.WriteCloser{1: nopCloser{&got}}, nil)
	h.carry(1, strings.NewReader("hello"))
	<-gone.gone
	if got.String() != "hello" {
		t.Errorf("the other client got %q", got.String())
	}
}

func TestHubLetsLateClientsGoAtOnce(t *testing.T) {
	h := newHub()
	early := h.attach(nil, nil)
	h.end()
	<-early.gone
	<-h.attach(nil, nil).gone
}

func TestHubKeepsServingWhenTheLogFails(t *testing.T) {
	reported := 0
	h := newHub()
	h.log = func(int, []byte) error { return errors.New("disk full") }
	h.logError = func(error) { reported++ }
	var got bytes.Buffer
	h.attach(map[int]io.WriteCloser{1: nopCloser{&got}}, nil)
	h.send(1, []byte("a"))
	h.send(1, []byte("b"))
	if got.String() != "ab" || reported != 1 {
		t.Errorf("got %q, the log's error was reported %d times", got.String(), reported)
	}
}
