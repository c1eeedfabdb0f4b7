package framing

import (
	"bytes"
	"net/netip"
	"strconv"
	"strings"
)

// head is what a request's lines have said so far.
type head struct {
	options bool // the method
	old     bool // HTTP/1.0
	fields  int
	seen    [len(single)]bool
	length  int64
	chunked bool
	h2c     bool // an offer of HTTP/2, which is not taken
}

// single are the fields that a request has at most once. Where they come from
// several places, servers differ in which one they believe.
var single = [...]string{"host", "content-length", "transfer-encoding", "expect", "upgrade"}

const (
	hostField = iota
	lengthField
	encodingField
	expectField
	upgradeField
)

// request judges the request line.
func (h *head) request(line []byte) (reason string) {
	if len(line) == 0 {
		return "an empty line before the request"
	}
	if string(line) == "PRI * HTTP/2.0" {
		return "HTTP/2 without TLS"
	}
	method, rest, _ := bytes.Cut(line, []byte(" "))
	target, version, found := bytes.Cut(rest, []byte(" "))
	if !found || len(target) == 0 || !token(method) || len(method) > maxMethod {
		return "a request line that is none"
	}
	switch string(version) {
	case "HTTP/1.1":
	case "HTTP/1.0":
		h.old = true
	default:
		return "a version other than HTTP/1.1 and HTTP/1.0"
	}
	h.options = string(method) == "OPTIONS"
	if string(method) == "CONNECT" {
		return "CONNECT: connect to the destination itself"
	}
	return h.target(target)
}

// target takes a path and a query, or the star of OPTIONS. What names a
// destination of its own is refused: the connection's was decided on.
func (h *head) target(t []byte) (reason string) {
	switch {
	case string(t) == "*" && h.options:
		return ""
	case t[0] != '/' && bytes.Contains(t, []byte("://")):
		return "a target that names a destination: send the path alone"
	case t[0] != '/':
		return "a target that is no path"
	}
	path := true
	for i, c := range t {
		switch {
		case c <= ' ' || c == 0x7f || c == '#':
			return "a target with a byte that cannot be in one"
		case c == '?':
			path = false
		case c == '%' && path && (i+2 >= len(t) || hexDigit(t[i+1]) < 0 || hexDigit(t[i+2]) < 0):
			return "a path with a broken escape"
		}
	}
	return ""
}

// field judges a line of the header.
func (h *head) field(line []byte) (reason string) {
	h.fields++
	if h.fields > maxFields {
		return "a header with too many lines"
	}
	name, value, reason := split(line)
	if reason != "" {
		return reason
	}
	key, folded := fold(name)
	if key == "connection" || key == "trailer" {
		return nominates(value)
	}
	which := index(key)
	if which < 0 {
		return ""
	}
	if folded {
		return "a name that some servers read as another"
	}
	if h.seen[which] {
		return "several " + single[which] + " fields"
	}
	h.seen[which] = true
	// One space and no more is what clients send; servers differ in the rest.
	value = bytes.TrimPrefix(value, []byte(" "))
	if len(value) > 0 && (blank(value[0]) || blank(value[len(value)-1])) {
		return "blanks around " + single[which]
	}
	return h.apply(which, value)
}

// apply takes and judges the value of one of the fields that decide how a request is
// read.
func (h *head) apply(which int, value []byte) (reason string) {
	switch which {
	case hostField:
		if !validHost(value) {
			return "a host that is no name or address with a port"
		}
	case lengthField:
		n, err := strconv.ParseUint(string(value), 10, 64) // takes no sign
		if err != nil || n > maxLength || len(value) > 1 && value[0] == '0' {
			return "a content-length that is no length"
		}
		h.length = int64(n)
	case encodingField:
		if string(value) != "chunked" {
			return "a transfer-encoding other than chunked"
		}
		h.chunked = true
	case expectField:
		if !strings.EqualFold(string(value), "100-continue") {
			return "an expectation other than 100-continue"
		}
	case upgradeField:
		// An offer of HTTP/2 alone, as Java makes it, is one that may be left.
		if h.h2c = strings.EqualFold(string(value), "h2c"); h.h2c {
			break
		}
		for element := range bytes.SplitSeq(value, []byte(",")) {
			if strings.EqualFold(string(bytes.Trim(element, " \t")), "h2c") {
				return "an upgrade to HTTP/2"
			}
		}
	}
	return ""
}

// end judges the header as a whole.
func (h *head) end() (reason string) {
	length, encoding := h.seen[lengthField], h.seen[encodingField]
	hasBody := h.length > 0 || encoding
	switch {
	case length && encoding:
		return "content-length together with transfer-encoding"
	case encoding && h.old:
		return "transfer-encoding in HTTP/1.0"
	case !h.seen[hostField] && !h.old:
		return "no host"
	case h.seen[expectField] && (h.old || !hasBody):
		return "an expectation without a body or in HTTP/1.0"
	case h.seen[upgradeField] && !h.h2c && (h.old || hasBody):
		return "an upgrade with a body or in HTTP/1.0"
	}
	return ""
}

// trailer judges a line behind the last chunk.
func (h *head) trailer(line []byte) (reason string) {
	name, _, reason := split(line)
	if reason != "" {
		return reason
	}
	if key, _ := fold(name); framing(key) {
		return "a trailer that only a header can have"
	}
	return ""
}

// nominates judges a list of field names: to have a field of the framing
// dropped on the way, or put at the end, changes how the next server reads.
func nominates(value []byte) (reason string) {
	for element := range bytes.SplitSeq(value, []byte(",")) {
		if key, _ := fold(bytes.Trim(element, " \t")); framing(key) && key != "upgrade" {
			return "a list of fields that names one which must stay"
		}
	}
	return ""
}

// framing reports whether a field decides how a request is read.
func framing(key string) bool { return index(key) >= 0 || key == "trailer" || key == "connection" }

func index(key string) int {
	for i, name := range single {
		if key == name {
			return i
		}
	}
	return -1
}

// split takes a field's line apart.
func split(line []byte) (name, value []byte, reason string) {
	name, value, found := bytes.Cut(line, []byte(":"))
	switch {
	case blank(line[0]):
		return nil, nil, "a header line that begins with a blank"
	case !found:
		return nil, nil, "a header line without a colon"
	case !token(name):
		return nil, nil, "a header name that is none"
	}
	for _, c := range value {
		if c < ' ' && c != '\t' || c == 0x7f {
			return nil, nil, "a control byte in a header"
		}
	}
	return name, value, ""
}

// fold makes a name as some servers see it: without case, and with hyphens for
// underscores (as in CGI), which it reports.
func fold(name []byte) (key string, folded bool) {
	if len(name) > len("transfer-encoding") {
		return "", false // none that matters
	}
	var b [len("transfer-encoding")]byte
	for i, c := range name {
		switch {
		case c >= 'A' && c <= 'Z':
			c |= 0x20
		case c == '_':
			c, folded = '-', true
		}
		b[i] = c
	}
	return string(b[:len(name)]), folded
}

// validHost takes a name or an address, and a port where there is one. It
// leaves out much that the grammar has and no client sends.
func validHost(v []byte) bool {
	host := string(v)
	if len(host) > maxHost {
		return false
	}
	if inner, ok := strings.CutPrefix(host, "["); ok {
		addr, port, ok := strings.Cut(inner, "]")
		ip, err := netip.ParseAddr(addr)
		if !ok || err != nil || !ip.Is6() || ip.Zone() != "" {
			return false
		}
		port, ok = strings.CutPrefix(port, ":")
		return !ok && port == "" || ok && validPort(port)
	}
	name, port, ok := strings.Cut(host, ":")
	for _, c := range []byte(name) {
		if !hostByte[c] {
			return false
		}
	}
	return name != "" && (!ok || validPort(port))
}

func validPort(port string) bool {
	_, err := strconv.ParseUint(port, 10, 16)
	return err == nil && port[0] != '0'
}

func blank(c byte) bool { return c == ' ' || c == '\t' }

func token(b []byte) bool {
	for _, c := range b {
		if !tokenByte[c] {
			return false
		}
	}
	return len(b) > 0
}

const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"

var (
	tokenByte = set(letters + "!#$%&'*+-.^_`|~") // RFC 9110, section 5.6.2
	hostByte  = set(letters + "-._")
)

func set(of string) (s [256]bool) {
	for _, c := range []byte(of) {
		s[c] = true
	}
	return s
}
