// Command gohttp is a Go program that speaks HTTP as Go programs do: requests
// over what the server offers, WebSocket, server-sent events, and gRPC made by
// hand. It finds proxies and certificates where Go finds them and knows nothing
// of sandboxes.
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/coder/websocket"
)

// client is one call of the program.
type client struct {
	http    *http.Client
	method  string
	body    string
	headers http.Header
	show    bool // response headers too
	count   int  // of messages
	out     io.Writer
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "gohttp:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out io.Writer) error {
	c := &client{headers: http.Header{}, out: out}
	flags := flag.NewFlagSet("gohttp", flag.ContinueOnError)
	flags.StringVar(&c.method, "X", http.MethodGet, "`method`")
	flags.StringVar(&c.body, "d", "", "`body` of the request, @FILE for a file's, @- for what stdin has")
	flags.BoolVar(&c.show, "i", false, "print response headers and trailers too")
	flags.IntVar(&c.count, "n", 3, "how many `messages` go each way, for ws and grpc")
	flags.Func("H", "a `NAME: VALUE` header, any number of them", func(s string) error {
		name, value, ok := strings.Cut(s, ":")
		if !ok {
			return errors.New("there is no colon")
		}
		c.headers.Add(name, strings.TrimSpace(value))
		return nil
	})
	old := flags.Bool("http1", false, "do not speak HTTP/2")
	limit := flags.Duration("limit", 2*time.Minute, "give up after this `duration`")
	ws := flags.Bool("ws", false, "open a WebSocket and send messages, each answered by an echo")
	sse := flags.Bool("sse", false, "print server-sent events as they come")
	grpc := flags.Bool("grpc", false, "call /echo.Echo/Unary and /echo.Echo/Chat below the URL")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() != 1 {
		return errors.New("want one URL; -help prints the flags")
	}
	ctx, cancel := context.WithTimeout(ctx, *limit)
	defer cancel()
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(!*old)
	transport := &http.Transport{Proxy: http.ProxyFromEnvironment, Protocols: protocols}
	defer transport.CloseIdleConnections()
	c.http = &http.Client{Transport: transport}
	url := flags.Arg(0)
	switch {
	case *ws:
		return c.webSocket(ctx, url)
	case *sse:
		return c.events(ctx, url)
	case *grpc:
		return c.grpc(ctx, url)
	}
	return c.get(ctx, url)
}

// open sends the request and prints the first line of the answer.
func (c *client) open(ctx context.Context, url string) (*http.Response, error) {
	var body io.Reader
	switch file, ok := strings.CutPrefix(c.body, "@"); {
	case ok && file == "-":
		body = os.Stdin
	case ok:
		f, err := os.Open(file)
		if err != nil {
			return nil, err
		}
		body = f // the transport closes it
	case c.body != "":
		body = strings.NewReader(c.body)
	}
	request, err := http.NewRequestWithContext(ctx, c.method, url, body)
	if err != nil {
		return nil, err
	}
	request.Header = c.headers
	response, err := c.http.Do(request)
	if err != nil {
		return nil, err
	}
	fmt.Fprintf(c.out, "%s %s\n", response.Proto, response.Status)
	if c.show {
		c.printHeaders(response.Header)
	}
	return response, nil
}

func (c *client) printHeaders(h http.Header) {
	var lines []string
	for name, values := range h {
		for _, v := range values {
			lines = append(lines, name+": "+v)
		}
	}
	slices.Sort(lines)
	for _, l := range lines {
		fmt.Fprintln(c.out, l)
	}
}

func (c *client) get(ctx context.Context, url string) error {
	response, err := c.open(ctx, url)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if _, err := io.Copy(c.out, response.Body); err != nil {
		return err
	}
	fmt.Fprintln(c.out)
	if c.show {
		c.printHeaders(response.Trailer)
	}
	return nil
}

// events prints, for each event, when it came in Unix microseconds, the delay
// since the one before, and its data.
func (c *client) events(ctx context.Context, url string) error {
	c.headers.Set("Accept", "text/event-stream")
	response, err := c.open(ctx, url)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	before := time.Now()
	lines := bufio.NewScanner(response.Body)
	for lines.Scan() {
		data, ok := strings.CutPrefix(lines.Text(), "data:")
		if !ok {
			continue
		}
		now := time.Now()
		fmt.Fprintf(c.out, "%d +%dus %s\n", now.UnixMicro(), now.Sub(before).Microseconds(), strings.TrimPrefix(data, " "))
		before = now
	}
	return lines.Err()
}

// webSocket sends text and binary messages in turn, each after the echo of the
// one before.
func (c *client) webSocket(ctx context.Context, url string) error {
	socket, _, err := websocket.Dial(ctx, url, &websocket.DialOptions{HTTPClient: c.http, HTTPHeader: c.headers})
	if err != nil {
		return err
	}
	defer socket.CloseNow()
	for i := range c.count {
		kind, message := websocket.MessageText, fmt.Sprintf("message %d", i)
		if i%2 == 1 {
			kind = websocket.MessageBinary
		}
		if c.body != "" {
			message = c.body
		}
		sent := time.Now()
		if err := socket.Write(ctx, kind, []byte(message)); err != nil {
			return err
		}
		got, echo, err := socket.Read(ctx)
		if err != nil {
			return err
		}
		fmt.Fprintf(c.out, "%s after %dus: %s\n", got, time.Since(sent).Microseconds(), echo)
	}
	return socket.Close(websocket.StatusNormalClosure, "")
}
