package web

import (
	"net/http"
	"slices"
	"testing"
)

var (
	steeringSent = []string{
		"X-HTTP-Method-Override", "X-Http-Method", "x-method-override", "X_HTTP_METHOD_OVERRIDE", "X-HTTP_Method.Override", "X-Method", "X-Original-URL",
		"X-Rewrite-URL", "X_Original_Url", "X-Original-URI", "X-Forwarded-Path", "X-Forwarded-Prefix", "X-Forwarded-Uri", "X-Forwarded-Method",
		"X_FORWARDED_HOST", "X-Forwarded-Server", "X-Forwarded", "Forwarded", "X-Host", "X-Envoy-Original-Path", "X-Override-URL", "X-Script-Name",
		"Path_Info", "X-WP-Method-Override", "X-Proxy-Url",
	}
	plainSent = []string{
		"X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Port", "X-Request-Id", "X-Methodical", "X-Custom_Header", "Authorization", "X-Api-Key",
		"X-Goog-Api-Client", "Content-Type", "Accept", "X-Amz-Date", "X-Original-Length",
	}
)

// Where methods and paths matter, no header reaches a server that could choose
// others.
func TestSteeringHeaders(t *testing.T) {
	got := make(chan []string, 1)
	h := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		var names []string
		for name := range r.Header {
			names = append(names, name)
		}
		got <- names
	})
	eachWay(t, h, func(t *testing.T, w *world) {
		for _, exact := range []bool{true, false} {
			w.pass.Exact = exact
			r := w.request("POST", "/", nil)
			for _, name := range append(slices.Clone(steeringSent), plainSent...) {
				r.Header[name] = []string{"DELETE"}
			}
			w.do(r)
			names := <-got
			for _, list := range []struct {
				sent []string
				want bool
			}{{steeringSent, !exact}, {plainSent, true}} {
				for _, name := range list.sent {
					// The server sees the name in its canonical form.
					if arrived := slices.Contains(names, http.CanonicalHeaderKey(name)); arrived != list.want {
						t.Errorf("exact %v: %s arrived: %v", exact, name, arrived)
					}
				}
			}
		}
	})
}
