package host

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"creel/internal/guest/api"
	"creel/internal/sandbox"
	"creel/internal/wire"
)

// lying is a guest that answers every operation with the same messages.
func lying(t *testing.T, messages ...any) *Client {
	t.Helper()
	ours, theirs := net.Pipe()
	guest := wire.NewConn(theirs, wire.Options{Handler: func(ctx context.Context, s *wire.Stream) {
		for _, m := range messages {
			s.Send(ctx, m)
		}
	}})
	c := New(ours)
	t.Cleanup(func() { c.Close(); guest.Close() })
	return c
}

type anything map[string]any

func TestNonsenseIsRefused(t *testing.T) {
	long := strings.Repeat("x", maxText+1)
	exec := func(c *Client) error {
		x, err := c.Exec(t.Context(), sandbox.Process{})
		if err == nil {
			_, err = x.Wait(t.Context())
		}
		return err
	}
	stat := func(c *Client) error { _, err := c.Stat(t.Context(), "/"); return err }
	hello := func(c *Client) error { _, err := c.Hello(t.Context()); return err }
	freeze := func(c *Client) error { return c.Freeze(t.Context(), api.FreezeRequest{}) }
	for name, tc := range map[string]struct {
		says []any
		do   func(*Client) error
		want string
	}{
		"process number":   {[]any{anything{"pid": -1}}, exec, "makes no sense"},
		"exit code":        {[]any{anything{"pid": 1}, anything{"code": 256}}, exec, "makes no sense"},
		"signal":           {[]any{anything{"pid": 1}, anything{"code": 1, "signal": 65}}, exec, "makes no sense"},
		"no exit":          {[]any{anything{"pid": 1}}, exec, "closed by the peer"},
		"unknown key":      {[]any{anything{"pid": 1, "x": 1}}, exec, "unknown field"},
		"other type":       {[]any{anything{"pid": "1"}}, exec, "decode message"},
		"nothing":          {nil, exec, "EOF"},
		"size":             {[]any{anything{"size": -1}}, stat, "makes no sense"},
		"long name":        {[]any{anything{"name": long}}, stat, "at most"},
		"long kernel":      {[]any{anything{"version": api.Version, "kernel": long}}, hello, "at most"},
		"version":          {[]any{anything{"version": api.Version + 1}}, hello, "rebuild the template"},
		"freeze goes on":   {[]any{anything{}, anything{}}, freeze, "more than one reply"},
		"code not known":   {[]any{anything{"error": anything{"code": "own", "message": "m"}}}, freeze, "m"},
		"terminal control": {[]any{anything{"error": anything{"message": "a\x1b[2Jb\u009bc\nd"}}}, freeze, `a\u001b[2Jb\u009bc\u000ad`},
	} {
		t.Run(name, func(t *testing.T) {
			err := tc.do(lying(t, tc.says...))
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("got %v", err)
			}
			if e, ok := errors.AsType[*api.Error](err); ok && e.Code != api.CodeInternal {
				t.Fatalf("code %q was believed", e.Code)
			}
		})
	}
}

func TestUsageIsBounded(t *testing.T) {
	u, err := lying(t, anything{"memoryBytes": -5, "diskWrittenBytes": int64(1<<63 - 1)}).Usage(t.Context())
	if err != nil || u.MemoryBytes != 0 || u.DiskWrittenBytes < 0 || u.DiskWrittenBytes == 1<<63-1 {
		t.Fatalf("got %+v, %v", u, err)
	}
}

func TestCutOffTarIsAnError(t *testing.T) {
	tar, err := lying(t, anything{}).CopyOut(t.Context(), "/")
	if err != nil {
		t.Fatal(err)
	}
	defer tar.Close()
	if _, err := io.Copy(io.Discard, tar); !errors.Is(err, wire.ErrPeerClosed) {
		t.Fatalf("got %v", err)
	}
}

func TestGuestThatTakesNothingIsGivenUp(t *testing.T) {
	ours, theirs := net.Pipe() // nobody reads
	defer theirs.Close()
	c := New(ours)
	defer c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := c.Identity(ctx, api.Identity{}); err == nil {
		t.Fatal("no error")
	}
	<-c.Done()
}

func TestGuestCannotOpenStreams(t *testing.T) {
	ours, theirs := net.Pipe()
	c := New(ours)
	defer c.Close()
	guest := wire.NewConn(theirs, wire.Options{})
	defer guest.Close()
	guest.Open(t.Context(), "exec", nil)
	<-c.Done()
	if err := c.Err(); !strings.Contains(err.Error(), "may not") {
		t.Fatalf("got %v", err)
	}
}
