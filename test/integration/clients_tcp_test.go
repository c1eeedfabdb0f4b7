package integration

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"

	"creel/internal/audit/event"
)

const opaquePolicy = `
rules:
  - {allow: cache.example.com, ports: 6379, upstream: {address: %[1]q}}
  - {allow: mail.example.com, ports: 25, upstream: {address: %[2]q}}
  - {allow: time.example.com, ports: 123, protocol: udp, upstream: {address: %[3]q}}
  - {allow: host.creel.internal, ports: %[4]s}
`

// Protocols that nobody looks into are bound by name: one where the client
// speaks first (redis), one where the server does and the client never (a
// banner, as SMTP has), datagrams, and ports of the host itself. What is beside
// them is refused at once, and in that TCP no client byte is waited for.
func TestClientsOpaque(t *testing.T) {
	r, image := clients(t)
	w := newWorld(t)
	text := fmt.Sprintf(opaquePolicy, serveStreams(t, cache()), serveStreams(t, banner), serveDatagrams(t), portIn(w.plain))
	script := `
		redis-cli -h cache.example.com SET fruit plum; redis-cli -h cache.example.com GET fruit
		redis-cli -h cache.example.com -p 6380 PING 2>&1
		nc -d mail.example.com 25
		nc -d mail.example.com 26; echo "nc $?"
		python3 - <<-"EOF"
			import socket
			s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
			s.settimeout(60)
			s.connect(("time.example.com", 123))
			s.send(b"what time"); print(s.recv(100).decode())
			s.connect((socket.gethostbyname("time.example.com"), 124))
			try: s.send(b"what time"); print(s.recv(100))
			except ConnectionRefusedError as e: print("udp:", e.strerror)
		EOF
		curl -sS http://host.creel.internal:` + portIn(w.plain) + `/guest/hello
		curl -sS http://host.creel.internal:` + portIn(w.secure) + `/ 2>&1; echo "curl $?"
		curl -sS http://127.0.0.1:` + portIn(w.plain) + `/ 2>&1; echo "curl $?"`
	got := r.Run(t, "run", "--name", "opaque", "--policy", w.policy(t, text), image, "sh", "-c", script)
	for _, want := range []string{
		"OK\nplum\n", "Could not connect to Redis at cache.example.com:6380: Connection refused\n", "220 no byte was waited for\nnc 1\n",
		"it is: what time\nudp: Connection refused\n", "hello guest, your key is <>\ncurl: (7)", "curl 7\ncurl: (7)", "curl 7\n",
	} {
		if !strings.Contains(got.Out, want) {
			t.Errorf("the task did not print %q", want)
		}
	}
	if t.Failed() {
		t.Logf("the task printed %s and %s", got.Out, got.Err)
	}
	reached := map[string]bool{}
	for _, c := range recordsOf[event.Connection](t, r, "opaque", "connection") {
		reached[fmt.Sprintf("%s %s:%d", c.Protocol, c.Host, c.Port)] = true
	}
	for _, want := range []string{"tcp cache.example.com:6379", "tcp mail.example.com:25", "udp time.example.com:123", "tcp host.creel.internal:" + portIn(w.plain)} {
		if !reached[want] {
			t.Errorf("not on record: %s; it has %v", want, reached)
		}
	}
	if len(reached) != 4 {
		t.Errorf("more is on record than was allowed: %v", reached)
	}
}

// banner speaks first, and waits for nothing.
func banner(c net.Conn) error {
	_, err := io.WriteString(c, "220 no byte was waited for\n")
	return err
}

// cache is a server that knows SET and GET of redis' protocol.
func cache() func(net.Conn) error {
	var mu sync.Mutex
	values := map[string]string{}
	return func(c net.Conn) error {
		in := bufio.NewReader(c)
		for {
			words, err := redisCommand(in)
			if err != nil {
				return err
			}
			answer := "-ERR unknown command\r\n"
			mu.Lock()
			switch {
			case len(words) == 3 && strings.EqualFold(words[0], "SET"):
				values[words[1]] = words[2]
				answer = "+OK\r\n"
			case len(words) == 2 && strings.EqualFold(words[0], "GET"):
				answer = fmt.Sprintf("$%d\r\n%s\r\n", len(values[words[1]]), values[words[1]])
			}
			mu.Unlock()
			if _, err := io.WriteString(c, answer); err != nil {
				return err
			}
		}
	}
}

// redisCommand reads one array of bulk strings.
func redisCommand(in *bufio.Reader) (words []string, err error) {
	count, err := redisNumber(in, '*')
	for ; count > 0 && err == nil; count-- {
		var size int
		if size, err = redisNumber(in, '$'); err == nil {
			word := make([]byte, size+2) // CR LF
			_, err = io.ReadFull(in, word)
			words = append(words, string(word[:size]))
		}
	}
	return words, err
}

func redisNumber(in *bufio.Reader, kind byte) (int, error) {
	line, err := in.ReadString('\n')
	if err != nil {
		return 0, err
	}
	if line[0] != kind {
		return 0, fmt.Errorf("%q begins with no %q", line, kind)
	}
	n, err := strconv.Atoi(strings.TrimSpace(line[1:]))
	if n < 0 || n > 1024 {
		return 0, fmt.Errorf("%q is out of bounds", line)
	}
	return n, err
}

// serveDatagrams answers each one; the end of the test stops it.
func serveDatagrams(t *testing.T) (address string) {
	t.Helper()
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 2048)
		for {
			n, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			c.WriteTo(append([]byte("it is: "), buf[:n]...), from)
		}
	}()
	t.Cleanup(func() {
		c.Close()
		<-done
	})
	return c.LocalAddr().String()
}

// An upload ends where its budget does, and so does what comes after it.
func TestClientsBudget(t *testing.T) {
	r, image := clients(t)
	w := newWorld(t)
	arrived := make(chan int64, 2)
	w.mux.HandleFunc("PUT /up", func(rw http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		if err == nil {
			t.Error("the upload came whole")
		}
		arrived <- n
	})
	text := `
rules:
  - {allow: up.example.com, protocol: http, name: up, upstream: PLAIN, budget: {bytes_out: 64KiB}}
  - {allow: other.example.com, protocol: http, upstream: PLAIN}`
	script := `head -c 1M /dev/zero | curl -sS -T - http://up.example.com/up; echo "curl $?"
		curl -sS --fail http://up.example.com/again/hello; echo "curl $?"
		curl -sS http://other.example.com/other/hello`
	got := r.Run(t, "run", "--name", "budget", "--policy", w.policy(t, text), image, "sh", "-c", script)
	if n := receive(t, arrived); n == 0 || n > 64<<10 {
		t.Errorf("%d bytes were let out, want some and at most 64 KiB", n)
	}
	if !strings.HasSuffix(got.Out, "hello other, your key is <>\n") || strings.Contains(got.Out, "curl 0\n") || strings.Contains(got.Out, "hello again") {
		t.Errorf("the task printed %q and %q", got.Out, got.Err)
	}
	if !strings.Contains(got.Err, "up.example.com") || !strings.Contains(got.Err, "bytes_out") {
		t.Errorf("at its end the run says %q", got.Err)
	}
	spent := recordsOf[event.Budget](t, r, "budget", "budget")
	if len(spent) == 0 || spent[0].Limit != "bytes_out" || spent[0].Rule != "up" || spent[0].Host != "up.example.com" {
		t.Errorf("on record are %+v", spent)
	}
}
