package web

import (
	"net/http"
	"net/url"
	"strings"
)

// ambiguous holds a request of HTTP/2 against what package framing holds one of
// HTTP/1 against, as far as net/http does not: where the upstream speaks HTTP/1,
// it must read what was decided on.
func ambiguous(r *http.Request) (reason string) {
	target := r.RequestURI
	if !strings.HasPrefix(target, "/") && !(target == "*" && r.Method == http.MethodOptions) {
		return "a target that is no path"
	}
	for _, c := range []byte(target) {
		if c <= ' ' || c == 0x7f || c == '#' {
			return "a target with a byte that cannot be in one"
		}
	}
	for name := range r.Header {
		switch strings.ToLower(strings.ReplaceAll(name, "_", "-")) {
		case "host", "content-length", "transfer-encoding", "expect", "upgrade":
			if strings.Contains(name, "_") {
				return "a name that some servers read as another"
			}
		}
	}
	return ""
}

// spell keeps a path as it was written, but for bytes that cannot be in one.
// Where there is such a byte, net/url would spell all of it anew, and what was
// %2F would become a slash.
func spell(u *url.URL) {
	if u.RawPath == "" || u.EscapedPath() == u.RawPath {
		return
	}
	var b strings.Builder
	for _, c := range []byte(u.RawPath) {
		if pathByte(c) {
			b.WriteByte(c)
		} else {
			const digits = "0123456789ABCDEF"
			b.Write([]byte{'%', digits[c>>4], digits[c&15]})
		}
	}
	u.RawPath = b.String()
}

// pathByte is what net/url leaves as it is in a path that was escaped already.
func pathByte(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("/%-_.~!$&'()*+,;=:@[]", c) >= 0
}
