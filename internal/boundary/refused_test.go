package boundary

import (
	"bufio"
	"io"
	"net/http"
	"strings"
	"testing"
)

// Requests that policy is not asked about are no mystery either.
func TestRefusedRequestsAreTold(t *testing.T) {
	j := newJournal()
	upstream := j.web(t, "", func(http.ResponseWriter, *http.Request) { t.Error("the upstream was asked") })
	r := j.open(t, rules("- {allow: a.test, protocol: http, upstream: {address: \""+upstream+"\"}}\n"))
	told := int64(0)
	for sent, want := range map[string]string{
		"GET / HTTP/1.1\r\nHost: b.test\r\n\r\n":                                                    "the request is for \"b.test\"",
		"GET / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n": "malformed: content-length together with transfer-encoding",
	} {
		c := r.dial("a.test", 80)
		io.WriteString(c, sent)
		res, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil || res.StatusCode < 400 {
			t.Fatalf("%v, %v", res, err)
		}
		c.Close()
		told++
		if list := r.awaitDenials(told); !strings.Contains(list[len(list)-1].Reason, want) {
			t.Errorf("told %q, want %q", list[len(list)-1].Reason, want)
		}
	}
}
