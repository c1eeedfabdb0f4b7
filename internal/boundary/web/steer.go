package web

import (
	"net/http"
	"strings"
)

// steering are headers by which servers, or proxies before them, take another
// method, path or host than the request line and Host have.
var steering = set(
	"x-http-method", "x-method", "x-original-method", "x-forwarded",
	"x-original-url", "x-original-uri", "x-original-path", "x-original-host", "x-original-request-uri",
	"x-rewrite-url", "x-rewrite-uri", "x-rewrite-path", "x-override-url", "x-override-uri", "x-override-path",
	"x-url", "x-uri", "x-path", "x-path-info", "x-request-url", "x-request-uri", "x-request-path", "x-script-name", "x-real-url", "x-real-uri",
	"x-proxy-url", "x-proxy-uri", "x-proxy-host", "x-host", "x-http-host", "x-http-host-override", "x-host-override", "x-backend-host",
	"x-envoy-original-path", "x-envoy-original-dst-host", "x-ms-original-url", "x-waws-unencoded-url",
	"forwarded", "path-info", "request-uri", "script-name",
)

func set(names ...string) map[string]bool {
	m := map[string]bool{}
	for _, name := range names {
		m[name] = true
	}
	return m
}

// steers reports whether a header may choose another method, path or host.
// Names are compared as CGI folds them, where X_HTTP_METHOD and X-Http-Method
// are one.
func steers(name string) bool {
	key := strings.Map(func(c rune) rune {
		if 'A' <= c && c <= 'Z' {
			return c | 0x20
		}
		if 'a' <= c && c <= 'z' || '0' <= c && c <= '9' {
			return c
		}
		return '-'
	}, name)
	if kind, ok := strings.CutPrefix(key, "x-forwarded-"); ok {
		// These say how the client came, not where it goes.
		return kind != "for" && kind != "by" && kind != "proto" && kind != "port"
	}
	return steering[key] || strings.Contains(key, "method-override") || strings.Contains(key, "override-method")
}

// straighten removes what steers, so that the server reads the request that was
// decided on.
func straighten(h http.Header) {
	for name := range h {
		if steers(name) {
			delete(h, name)
		}
	}
}
