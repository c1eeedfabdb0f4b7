package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"maps"
	"net"
	"regexp"
	"slices"
	"strings"
)

const (
	ordinary = "GET / HTTP/1.1\r\nHost: NAME\r\n\r\n"
	smuggled = "GET /smuggled HTTP/1.1\r\nHost: OTHER\r\n\r\n"
)

// shapes are requests as bytes, with NAME the host that is meant to be allowed,
// OTHER the one that is not, and LEN the length of the body.
func shapes() map[string]string {
	all := destinations()
	maps.Copy(all, borders())
	return all
}

// destinations disagree, or are not plain, about what is asked of whom.
func destinations() map[string]string {
	return map[string]string{
		"plain":    ordinary,
		"pipeline": ordinary + smuggled,

		// Another host than the one that was connected to.
		"other-host":         "GET / HTTP/1.1\r\nHost: OTHER\r\n\r\n",
		"absolute":           "GET http://OTHER/ HTTP/1.1\r\nHost: NAME\r\n\r\n",
		"absolute-both":      "GET http://OTHER/ HTTP/1.1\r\nHost: OTHER\r\n\r\n",
		"absolute-https":     "GET https://OTHER/ HTTP/1.1\r\nHost: NAME\r\n\r\n",
		"absolute-own":       "GET http://NAME/ HTTP/1.1\r\nHost: NAME\r\n\r\n",
		"absolute-userinfo":  "GET http://NAME@OTHER/ HTTP/1.1\r\nHost: NAME\r\n\r\n",
		"connect":            "CONNECT OTHER:443 HTTP/1.1\r\nHost: OTHER:443\r\n\r\n",
		"connect-own":        "CONNECT NAME:443 HTTP/1.1\r\nHost: NAME:443\r\n\r\n",
		"host-twice":         "GET / HTTP/1.1\r\nHost: NAME\r\nHost: OTHER\r\n\r\n",
		"host-list":          "GET / HTTP/1.1\r\nHost: NAME, OTHER\r\n\r\n",
		"host-none":          "GET / HTTP/1.1\r\n\r\n",
		"host-empty":         "GET / HTTP/1.1\r\nHost:\r\n\r\n",
		"host-userinfo":      "GET / HTTP/1.1\r\nHost: NAME@OTHER\r\n\r\n",
		"host-port":          "GET / HTTP/1.1\r\nHost: NAME:22\r\n\r\n",
		"host-dot":           "GET / HTTP/1.1\r\nHost: NAME.\r\n\r\n",
		"host-nul":           "GET / HTTP/1.1\r\nHost: NAME\x00.OTHER\r\n\r\n",
		"host-space":         "GET / HTTP/1.1\r\nHost : OTHER\r\nHost: NAME\r\n\r\n",
		"host-folded":        "GET / HTTP/1.1\r\nHost: NAME\r\n OTHER\r\n\r\n",
		"host-underscore":    "GET / HTTP/1.1\r\nHost: NAME\r\nX-Forwarded-Host: OTHER\r\nX-Original-URL: /admin\r\n\r\n",
		"http10":             "GET / HTTP/1.0\r\n\r\n",
		"http10-other":       "GET / HTTP/1.0\r\nHost: OTHER\r\n\r\n",
		"http09":             "GET /\r\n",
		"http2-preface":      "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00",
		"upgrade-h2c":        "GET / HTTP/1.1\r\nHost: NAME\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n\r\n",
		"upgrade-unknown":    "GET / HTTP/1.1\r\nHost: NAME\r\nConnection: Upgrade\r\nUpgrade: tunnel\r\n\r\n",
		"connection-strips":  "GET / HTTP/1.1\r\nHost: NAME\r\nConnection: close, Host, Authorization\r\n\r\n",
		"options-star":       "OPTIONS * HTTP/1.1\r\nHost: NAME\r\n\r\n",
		"trace":              "TRACE / HTTP/1.1\r\nHost: NAME\r\n\r\n",
		"method-odd":         "GE\tT / HTTP/1.1\r\nHost: NAME\r\n\r\n",
		"method-lower":       "get / HTTP/1.1\r\nHost: NAME\r\n\r\n",
		"version-odd":        "GET / HTTP/1.9\r\nHost: NAME\r\n\r\n",
		"request-line-space": "GET / OTHER HTTP/1.1\r\nHost: NAME\r\n\r\n",
		"not-http":           "SSH-2.0-OpenSSH_9.2\r\n",

		"post":         "POST / HTTP/1.1\r\nHost: NAME\r\nContent-Length: 6\r\n\r\nsecret",
		"path-allowed": "GET /allowed/x HTTP/1.1\r\nHost: NAME\r\n\r\n",
		"path-denied":  "GET /denied HTTP/1.1\r\nHost: NAME\r\n\r\n",

		// One path, written differently, for a rule that has /allowed and not /denied.
		"path-dots":      "GET /allowed/../denied HTTP/1.1\r\nHost: NAME\r\n\r\n",
		"path-coded":     "GET /allowed/%2e%2e/denied HTTP/1.1\r\nHost: NAME\r\n\r\n",
		"path-slash":     "GET /allowed/..%2fdenied HTTP/1.1\r\nHost: NAME\r\n\r\n",
		"path-backslash": "GET /allowed/..\\denied HTTP/1.1\r\nHost: NAME\r\n\r\n",
		"path-double":    "GET //denied HTTP/1.1\r\nHost: NAME\r\n\r\n",
		"path-twice":     "GET /allowed/%252e%252e/denied HTTP/1.1\r\nHost: NAME\r\n\r\n",
		"path-semicolon": "GET /allowed/..;/denied HTTP/1.1\r\nHost: NAME\r\n\r\n",
	}
}

// borders are read differently by two readers: where a line, a header, a body
// or the request ends, or whether it does.
func borders() map[string]string {
	post := func(headers, body string) string {
		return "POST / HTTP/1.1\r\nHost: NAME\r\n" + headers + "\r\n" + body
	}
	const chunked = "0\r\n\r\n" + smuggled
	return map[string]string{
		"cl-te":            post("Content-Length: LEN\r\nTransfer-Encoding: chunked\r\n", chunked),
		"te-cl":            post("Transfer-Encoding: chunked\r\nContent-Length: 3\r\n", "1\r\nx\r\n"+chunked),
		"cl-cl":            post("Content-Length: 0\r\nContent-Length: LEN\r\n", smuggled),
		"cl-list":          post("Content-Length: 0, LEN\r\n", smuggled),
		"cl-plus":          post("Content-Length: +0\r\n", smuggled),
		"cl-negative":      post("Content-Length: -1\r\n", smuggled),
		"cl-huge":          post("Content-Length: 18446744073709551616\r\n", smuggled),
		"cl-space":         post("Content-Length : LEN\r\n", smuggled),
		"cl-get":           "GET / HTTP/1.1\r\nHost: NAME\r\nContent-Length: 0\r\n\r\n" + smuggled,
		"te-te":            post("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", chunked),
		"te-odd":           post("Content-Length: LEN\r\nTransfer-Encoding: xchunked\r\n", chunked),
		"te-tab":           post("Content-Length: LEN\r\nTransfer-Encoding:\tchunked\r\n", chunked),
		"te-vertical":      post("Content-Length: LEN\r\nTransfer-Encoding: \x0bchunked\r\n", chunked),
		"te-space":         post("Content-Length: LEN\r\nTransfer-Encoding : chunked\r\n", chunked),
		"te-folded":        post("Content-Length: LEN\r\nTransfer-Encoding:\r\n chunked\r\n", chunked),
		"te-list":          post("Transfer-Encoding: gzip, chunked\r\n", chunked),
		"te-reverse":       post("Transfer-Encoding: chunked, gzip\r\n", chunked),
		"te-http10":        strings.Replace(post("Content-Length: LEN\r\nTransfer-Encoding: chunked\r\n", chunked), "HTTP/1.1", "HTTP/1.0", 1),
		"te-trailer":       post("Transfer-Encoding: chunked\r\nTrailer: Host\r\n", "0\r\nHost: OTHER\r\nContent-Length: 5\r\n\r\n"),
		"chunk-overflow":   post("Transfer-Encoding: chunked\r\n", "fffffffffffffffff\r\nx\r\n"+chunked),
		"chunk-negative":   post("Transfer-Encoding: chunked\r\n", "-1\r\nx\r\n"+chunked),
		"chunk-hex":        post("Transfer-Encoding: chunked\r\n", "0x0\r\n\r\n"+smuggled),
		"chunk-extension":  post("Transfer-Encoding: chunked\r\n", "0;a=\"\r\n\r\n"+smuggled+"\"\r\n\r\n"),
		"chunk-lf":         post("Transfer-Encoding: chunked\r\n", "0\n\n"+smuggled),
		"bare-lf":          "GET / HTTP/1.1\nHost: NAME\n\n" + smuggled,
		"bare-cr":          "GET / HTTP/1.1\rHost: OTHER\r\nHost: NAME\r\n\r\n",
		"header-cr":        "GET / HTTP/1.1\r\nHost: NAME\r\nX: a\rHost: OTHER\r\n\r\n",
		"header-nul":       "GET / HTTP/1.1\r\nHost: NAME\r\nX: a\x00b\r\n\r\n",
		"header-no-colon":  "GET / HTTP/1.1\r\nHost: NAME\r\nnothing\r\n\r\n",
		"header-space":     "GET / HTTP/1.1\r\n Host: OTHER\r\nHost: NAME\r\n\r\n",
		"header-huge":      "GET / HTTP/1.1\r\nHost: NAME\r\nX: " + strings.Repeat("x", 2<<20) + "\r\n\r\n",
		"header-many":      "GET / HTTP/1.1\r\nHost: NAME\r\n" + strings.Repeat("X: y\r\n", 100000) + "\r\n",
		"request-huge":     "GET /" + strings.Repeat("x", 2<<20) + " HTTP/1.1\r\nHost: NAME\r\n\r\n",
		"expect-body":      post("Expect: 100-continue\r\nContent-Length: LEN\r\n", smuggled),
		"leading-newlines": "\r\n\r\n\r\n" + ordinary,
	}
}

// bytesOf fills a shape in.
func bytesOf(shape, name, other string) string {
	s := strings.NewReplacer("NAME", name, "OTHER", other).Replace(shape)
	_, body, _ := strings.Cut(s, "\r\n\r\n")
	return strings.Replace(s, "LEN", fmt.Sprint(len(body)), 1)
}

var statusLine = regexp.MustCompile(`HTTP/1\.[01] [0-9]{3}[^\r\n]*`)

func httpRaw(ctx context.Context, p *prober, args []string) (result, error) {
	return p.rawRequest(ctx, args, func(c net.Conn) net.Conn { return c })
}

func httpsRaw(ctx context.Context, p *prober, args []string) (result, error) {
	return p.rawRequest(ctx, args, func(c net.Conn) net.Conn {
		return tls.Client(c, &tls.Config{ServerName: args[2], InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}})
	})
}

func (p *prober) rawRequest(ctx context.Context, args []string, within func(net.Conn) net.Conn) (result, error) {
	all := shapes()
	if args[1] == "list" {
		var names []string
		for name := range all {
			names = append(names, name)
		}
		slices.Sort(names)
		return result{Detail: strings.Join(names, " ")}, nil
	}
	shape, ok := all[args[1]]
	if !ok {
		return result{}, fmt.Errorf("there is no shape %q", args[1])
	}
	if len(args) < 3 {
		return result{}, fmt.Errorf("shape %s wants the NAME of a host", args[1])
	}
	other := "other.invalid"
	if len(args) > 3 {
		other = args[3]
	}
	c, err := p.dial(ctx, args[0])
	if err != nil {
		return dialled(err), nil
	}
	c = within(c)
	defer c.Close()
	// A server may answer and close before it has read all.
	wrote := make(chan error, 1)
	go func() {
		_, err := io.WriteString(c, bytesOf(shape, args[2], other))
		wrote <- err
	}()
	b, err := io.ReadAll(io.LimitReader(c, 64<<10))
	c.Close()
	werr := <-wrote
	lines := statusLine.FindAllString(string(b), -1)
	r := result{Sent: true, Reached: slices.ContainsFunc(lines, func(l string) bool { return l[9] == '2' })}
	r.Detail = fmt.Sprintf("%d responses %q; written: %s, read: %s; first bytes %.300q", len(lines), lines, cause(werr), cause(err), b)
	return r, nil
}
