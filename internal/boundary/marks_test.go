package boundary

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"

	"creel/internal/audit/event"
	"creel/internal/boundary/credential"
	"creel/internal/boundary/netstack/netstacktest"
	"creel/internal/policy"
	"creel/internal/secret"
)

// tap keeps everything that servers outside get.
type tap struct {
	mu  sync.Mutex
	got bytes.Buffer
}

func (t *tap) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.got.Write(p)
}

func (t *tap) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.got.String()
}

// socketServer answers any request as a WebSocket, and keeps what comes.
func (j *journal) socketServer(t testing.TB, keep io.Writer) string {
	return j.serve(t, func(c net.Conn) {
		br := bufio.NewReader(io.TeeReader(c, keep))
		if _, err := http.ReadRequest(br); err != nil {
			return
		}
		io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
		io.Copy(io.Discard, br)
		j.note("end")
	})
}

// markRig has destinations of every protocol, all of which keep what they get.
func markRig(t *testing.T) (*rig, *tap) {
	j, keep := newJournal(), new(tap)
	opaque := j.serve(t, func(c net.Conn) { io.Copy(keep, c); j.note("end") })
	plain := j.web(t, "", func(w http.ResponseWriter, r *http.Request) {
		r.Write(keep)
		j.note("whole")
	})
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 65536)
		for {
			n, from, err := udp.ReadFrom(buf)
			if err != nil {
				return
			}
			keep.Write(buf[:n])
			udp.WriteTo([]byte("ok"), from)
		}
	}()
	t.Cleanup(func() { udp.Close(); <-done })
	web := "- {allow: %s, ports: 80, upstream: {address: %q}%s}\n"
	r := j.open(t, rules(allow("tcp.test", opaque), udpRule("udp.test", udp.LocalAddr().String()), "- {allow: \"**.wild.test\"}\n",
		fmt.Sprintf(web, "web.test", plain, ""), fmt.Sprintf(web, "socket.test", j.socketServer(t, keep), ""),
		fmt.Sprintf(web, "api.test", plain, ", secret: key")), withWallet(wallet(t, secret.AsStandIn, plain)))
	return r, keep
}

func TestMarksDoNotLeave(t *testing.T) {
	web := func(change func(*http.Request)) func(*rig) {
		return func(r *rig) {
			req, err := http.NewRequest("POST", "http://web.test/x", strings.NewReader("harmless"))
			if err != nil {
				r.t.Fatal(err)
			}
			change(req)
			res, err := r.client("").Do(req)
			if err != nil {
				return // a body is broken off
			}
			defer res.Body.Close()
			if res.StatusCode != http.StatusForbidden {
				r.t.Errorf("status %d", res.StatusCode)
			}
		}
	}
	tests := map[string]struct {
		where, host string
		act         func(*rig, string)
	}{
		"name": {"name", "", func(r *rig, mark string) {
			if _, err := r.guest.Resolve(r.t, mark+".wild.test"); !errors.Is(err, netstacktest.ErrNoName) {
				r.t.Errorf("the name resolves: %v", err)
			}
		}},
		"stream": {"stream", "tcp.test", func(r *rig, mark string) {
			c := r.dial("tcp.test", 7000)
			io.WriteString(c, "begin "+mark[:len(mark)/2])
			io.WriteString(c, mark[len(mark)/2:]+" end")
			wantBroken(r.t, c)
		}},
		"datagram": {"stream", "udp.test", func(r *rig, mark string) {
			r.guest.DialUDP(r.t, r.to("udp.test", 7000)).Write([]byte("begin " + mark))
		}},
		"header": {"header", "web.test", func(r *rig, mark string) {
			web(func(q *http.Request) { q.Header.Set("X-Odd", "a "+mark) })(r)
		}},
		"path": {"path", "web.test", func(r *rig, mark string) {
			web(func(q *http.Request) { q.URL.Path = "/a/" + mark })(r)
		}},
		"query": {"query", "web.test", func(r *rig, mark string) {
			web(func(q *http.Request) { q.URL.RawQuery = "a=" + mark })(r)
		}},
		"body": {"body", "web.test", func(r *rig, mark string) {
			web(func(q *http.Request) {
				q.Body = io.NopCloser(io.MultiReader(strings.NewReader("begin "+mark[:9]), strings.NewReader(mark[9:]+" end")))
				q.ContentLength = -1
			})(r)
		}},
		"WebSocket": {"body", "socket.test", func(r *rig, mark string) {
			c := r.guest.MustDial(r.t, r.to("socket.test", 80))
			io.WriteString(c, "GET / HTTP/1.1\r\nHost: socket.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
			if res, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil || res.StatusCode != 101 {
				r.t.Fatalf("upgrade: %v, %v", res, err)
			}
			for i, part := range []string{mark[:9], mark[9:]} { // fragments of one text, masked with nothing
				c.Write(append([]byte{[]byte{0x01, 0x80}[i], 0x80 | byte(len(part)), 0, 0, 0, 0}, part...))
			}
			io.Copy(io.Discard, c)
		}},
	}
	for name, test := range tests {
		for kind, mark := range map[string]string{"canary": canary, "stand-in": standIn} {
			t.Run(name+" "+kind, func(t *testing.T) {
				r, keep := markRig(t)
				test.act(r, mark)
				r.await(t, "record alert", 1)
				r.edge.Close() // all are told by then
				r.mu.Lock()
				alerts := r.alerts
				r.mu.Unlock()
				if len(alerts) != 1 || alerts[0].Alert != kind || alerts[0].Where != test.where || test.host != "" && alerts[0].Host != test.host {
					t.Errorf("alerts: %+v", alerts)
				}
				if strings.Contains(keep.String(), mark) || strings.Contains(keep.String(), " end") {
					t.Errorf("outside was seen: %q", keep.String())
				}
			})
		}
	}
}

// A stand-in is harmless at the host that its secret is for: it is swapped in
// its place, and passes elsewhere in the request. A canary is nowhere harmless.
func TestStandInAtHome(t *testing.T) {
	r, keep := markRig(t)
	send := func(body string) int {
		req, err := http.NewRequest("POST", "http://api.test/?note="+standIn, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+standIn)
		res, err := r.client("").Do(req)
		if err != nil {
			return 0
		}
		res.Body.Close()
		return res.StatusCode
	}
	if status := send("about " + standIn); status != 200 {
		t.Errorf("status %d", status)
	}
	got := keep.String()
	if !strings.Contains(got, "Bearer "+value) || strings.Count(got, standIn) != 2 || strings.Count(got, value) != 1 {
		t.Errorf("the server got %q", got)
	}
	if n := r.count("record alert"); n != 0 {
		t.Errorf("%d alerts", n)
	}
	if status := send("about " + canary); status == 200 {
		t.Error("a canary passed")
	}
	if r.await(t, "record alert", 1); strings.Contains(keep.String(), canary) {
		t.Error("the server got a canary")
	}
}

// A guest can bring alerts about at will: the record has the first of each
// kind one by one, whoever listens hears of all.
func TestAlertsAreBounded(t *testing.T) {
	r, _ := markRig(t)
	const many = 2000
	for i := range many {
		host := fmt.Sprintf("n%d.example.com", i%1000)
		r.edge.alert(policy.Decision{Request: policy.Request{Op: policy.Resolve, Host: host}}, credential.Found{Mark: "canary git", Where: "name"})
	}
	if n := r.count("record alert"); n != maxAlerts {
		t.Errorf("%d alerts on record, want the first %d", n, maxAlerts)
	}
	if list, total := r.edge.Denials(); len(list) != maxAlerts+1 || list[maxAlerts].Count != many*(1000-maxAlerts)/1000 || total != many {
		t.Errorf("%d lines for people, %d in all, %+v", len(list), total, list)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.alerts) != many || len(r.told) != maxAlerts+1 {
		t.Errorf("told of %d alerts and %d denials", len(r.alerts), len(r.told))
	}
}

// No mark's alerts, and no denials, hide another mark's: it has an alert on
// record, is told of before them, and what comes again is counted under its name.
func TestNoMarkHidesAnother(t *testing.T) {
	r := open(t, "")
	send := func(mark, host string) {
		r.edge.alert(policy.Decision{Request: policy.Request{Op: policy.Resolve, Host: host}}, credential.Found{Mark: mark, Where: "name"})
	}
	for i := range 2 * maxDenials {
		r.edge.mayResolve(fmt.Sprintf("www.n%d-example.com", i))
	}
	for i := range 3000 {
		send("canary npm", fmt.Sprintf("x%d.test", i))
	}
	for i := range 3000 {
		send("stand-in prod-key", fmt.Sprintf("thief%d.example", i))
	}
	list, _ := r.edge.Denials()
	if len(list) < 2 || !strings.Contains(list[0].Reason, `"npm"`) || list[1].Target != "thief0.example" || !strings.Contains(list[1].Reason, `"prod-key"`) {
		t.Errorf("told first is %+v", list[:min(3, len(list))])
	}
	alerts := map[string]int{}
	for _, a := range of[event.Alert](r.journal) {
		alerts[a.Name]++
	}
	r.edge.Close()
	counted, names := map[string]int64{}, 0
	for _, c := range of[event.Tally](r.journal) {
		counted[c.Name] += c.Count
		if c.Name != "" {
			names++
		}
	}
	for _, name := range []string{"npm", "prod-key"} {
		if alerts[name] != maxAlerts || counted[name] != 3000-maxAlerts {
			t.Errorf("of %s %d alerts are on record and %d are counted", name, alerts[name], counted[name])
		}
	}
	if names > 2*1024 {
		t.Errorf("%d records count alerts", names)
	}
}

// Whether an alert ends the task is for the rules in force to say.
func TestEndOnAlert(t *testing.T) {
	r := open(t, "")
	for text, want := range map[string]bool{"": false, "rules: []\n": false, "on_alert: end\nrules: []\n": true} {
		r.setRules(text)
		if got := r.edge.EndOnAlert(); got != want {
			t.Errorf("%q: %v", text, got)
		}
	}
}
