package boundary

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"creel/internal/audit/event"
)

// counting notes how many bytes it got in all, and sends nothing.
func (j *journal) counting(t testing.TB, total *int64) string {
	return j.serve(t, func(c net.Conn) {
		n, _ := io.Copy(io.Discard, c)
		j.set(func(*journal) { *total += n })
		j.note("end")
	})
}

func TestBytesOutBudget(t *testing.T) {
	const limit = 300 << 10
	tests := map[string]string{
		"of a rule":   rules(allow("up.test", "%s", fmt.Sprintf("budget: {bytes_out: %d}", limit))),
		"of the task": fmt.Sprintf("budget: {bytes_out: %d}\n", limit) + rules(allow("up.test", "%s")),
	}
	for name, text := range tests {
		t.Run(name, func(t *testing.T) {
			j := newJournal()
			var total int64
			text := fmt.Sprintf(text, j.counting(t, &total))
			r := j.open(t, text)
			idle := r.dial("up.test", 7000)
			io.WriteString(idle, "x")
			for range 3 { // reconnecting gives nothing back
				c, err := r.guest.Dial(t, r.to("up.test", 7000))
				if err != nil {
					continue
				}
				if _, err := c.Write(make([]byte, 640<<10)); err == nil {
					wantBroken(t, c)
				}
			}
			wantBroken(t, idle)
			r.setRules(text) // nor does the same policy again
			r.wantReset("up.test", 7000)
			r.edge.Close()
			u, _ := r.edge.Used()
			if total > limit || u.BytesOut > limit || u.BytesOut < limit-64<<10 { // a reset drops what is under way
				t.Errorf("%d bytes got out of %d, %d were charged", total, limit, u.BytesOut)
			}
			if n := j.count("record budget"); n != 1 {
				t.Errorf("the end of the budget is on record %d times", n)
			}
			if b := of[event.Budget](j); b[0].Limit != "bytes_out" || b[0].Host != "up.test" {
				t.Errorf("budget: %+v", b)
			}
			for _, d := range of[event.Disconnected](j) {
				if d.Error != errBudget.Error() {
					t.Errorf("disconnected: %+v", d)
				}
			}
			list, _ := r.edge.Denials()
			if len(list) != 1 || !strings.Contains(list[0].Reason, "bytes_out") {
				t.Errorf("denials: %+v", list)
			}
		})
	}
}

// A rule that is rewritten counts anew, also where it keeps its name.
func TestRewrittenRuleIsSpentAnew(t *testing.T) {
	j := newJournal()
	one, two := j.echo(t), j.echo(t)
	rule := func(address string) string {
		return rules(allow("a.test", address, "name: A", "budget: {bytes_out: 10}"))
	}
	r := j.open(t, rule(one))
	for i, address := range []string{one, two} {
		r.setRules(rule(address))
		idle, c := r.dial("a.test", 7000), r.dial("a.test", 7000)
		wantEcho(t, c, "12345")
		io.WriteString(c, "1234567890")
		wantBroken(t, idle)
		j.await(t, "record budget", i+1)
	}
}

func TestBytesInBudget(t *testing.T) {
	const limit = 200 << 10
	j := newJournal()
	address := j.serve(t, func(c net.Conn) { c.Write(make([]byte, 4<<20)) })
	r := j.open(t, rules(allow("down.test", address, fmt.Sprintf("budget: {bytes_in: %d}", limit))))
	c := r.dial("down.test", 7000)
	n, err := io.Copy(io.Discard, c)
	if n > limit || err == nil {
		t.Errorf("%d bytes came in, %v", n, err)
	}
	if u, _ := r.edge.Used(); u.BytesIn < limit-64<<10 || u.BytesIn > limit {
		t.Errorf("used: %+v", u)
	}
	r.wantReset("down.test", 7000)
}

func TestConnectionsAndHostsBudgets(t *testing.T) {
	j := newJournal()
	address := j.echo(t)
	r := j.open(t, "budget: {hosts: 2}\n"+rules(allow("one.test", address, "budget: {connections: 2}"), allow("two.test", address), allow("three.test", address)))
	first := r.dial("one.test", 7000)
	wantEcho(t, first, "a")
	wantEcho(t, r.dial("one.test", 7000), "b")
	r.wantReset("one.test", 7000)
	wantBroken(t, first) // what is open closes with it
	wantEcho(t, r.dial("two.test", 7000), "c")
	r.wantReset("three.test", 7000)
	r.wantReset("two.test", 7000)
	if n := j.count("accept"); n != 3 {
		t.Errorf("%d connections were made", n)
	}
	r.edge.Close()
	if b := of[event.Budget](j); len(b) != 2 || b[0].Limit != "connections" || b[1].Limit != "hosts" {
		t.Errorf("budgets: %+v", b)
	}
}

func TestRequestsBudgets(t *testing.T) {
	for _, limit := range []string{"requests", "requests_per_minute"} {
		t.Run(limit, func(t *testing.T) {
			j := newJournal()
			address := j.web(t, "", func(http.ResponseWriter, *http.Request) {})
			r := j.open(t, rules(fmt.Sprintf("- {allow: web.test, ports: 80, upstream: {address: %q}, budget: {%s: 3}}\n", address, limit)))
			c := r.client("")
			for range 3 {
				if status, body := r.get(c, "http://web.test/"); status != 200 {
					t.Fatalf("status %d: %s", status, body)
				}
			}
			for range 3 {
				res, err := c.Get("http://web.test/")
				if err != nil {
					continue // the connection is reset with the budget
				}
				res.Body.Close()
				if res.StatusCode != http.StatusTooManyRequests {
					t.Errorf("status %d", res.StatusCode)
				}
			}
			if n := j.count("request GET /"); n != 3 {
				t.Errorf("%d requests were made", n)
			}
			r.awaitDenials(1)
			r.edge.Close()
			if n, want := j.count("record budget"), map[string]int{"requests": 1}[limit]; n != want {
				t.Errorf("%d records of the budget", n)
			}
		})
	}
}

// On one connection of HTTP/2, the bytes of a request whose rule is limited
// do not pass for another's.
func TestLimitedRequestHidesBehindNoOther(t *testing.T) {
	const limit = 200 << 10
	j := newJournal()
	var total int64
	address := j.web(t, "api.test", func(w http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		j.set(func(*journal) {
			if r.URL.Path == "/limited" {
				total += n
			}
		})
	})
	more := fmt.Sprintf(", paths: [/limited], name: L, budget: {bytes_out: %d}", limit)
	r := j.open(t, rules(tlsRule("api.test", address, more), tlsRule("api.test", address, ", paths: [/free], name: F")))
	c := r.client(r.edge.CA())
	body, feed := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		res, err := c.Post("https://api.test/limited", "", body)
		if err == nil {
			res.Body.Close()
		}
		body.CloseWithError(io.ErrClosedPipe)
	}()
	feed.Write([]byte("begun"))
	j.await(t, "request POST /limited", 1)
	if status, text := r.get(c, "https://api.test/free"); status != 200 {
		t.Fatalf("status %d: %s", status, text)
	}
	for range 100 {
		if _, err := feed.Write(make([]byte, 16<<10)); err != nil {
			break
		}
	}
	feed.Close()
	<-done
	r.edge.Close()
	j.set(func(*journal) {
		if total > limit {
			t.Errorf("%d bytes of a request got out of %d", total, limit)
		}
	})
}
