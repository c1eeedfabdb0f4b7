package hello

import (
	"golang.org/x/crypto/cryptobyte"
)

// Extensions, by their numbers.
const (
	extServerName = 0
	extALPN       = 16
	extECH        = 0xfe0d // RFC 9849
	extESNI       = 0xffce // its forerunner, encrypted_server_name
)

// parse reads the body of a ClientHello, RFC 8446 section 4.1.2, which has the
// same form in all versions from SSL 3 on. Nothing may be left over anywhere,
// so that no server reads another name in the same bytes.
func parse(message cryptobyte.String) (h Hello, ok bool) {
	var session, suites, methods, extensions cryptobyte.String
	if !message.Skip(2+32) || // version and random
		!message.ReadUint8LengthPrefixed(&session) || len(session) > 32 ||
		!message.ReadUint16LengthPrefixed(&suites) || len(suites) == 0 || len(suites)%2 != 0 ||
		!message.ReadUint8LengthPrefixed(&methods) || methods.Empty() {
		return Hello{}, false
	}
	if message.Empty() { // old clients send no extensions
		return Hello{}, true
	}
	if !message.ReadUint16LengthPrefixed(&extensions) || !message.Empty() {
		return Hello{}, false
	}
	seen := map[uint16]bool{}
	for !extensions.Empty() {
		var kind uint16
		var data cryptobyte.String
		if !extensions.ReadUint16(&kind) || !extensions.ReadUint16LengthPrefixed(&data) || seen[kind] {
			return Hello{}, false
		}
		seen[kind] = true
		if !h.extension(kind, data) {
			return Hello{}, false
		}
	}
	return h, true
}

func (h *Hello) extension(kind uint16, data cryptobyte.String) (ok bool) {
	switch kind {
	case extServerName:
		h.ServerName, ok = serverName(data)
		return ok
	case extALPN:
		h.ALPN, ok = protocols(data)
		return ok
	case extECH, extESNI:
		h.ECH = true
	}
	return true
}

// serverName reads the extension of RFC 6066 section 3. It is a list, but of
// one entry: there is only one type of name, and at most one of each.
func serverName(data cryptobyte.String) (string, bool) {
	var list, name cryptobyte.String
	var kind uint8
	if !data.ReadUint16LengthPrefixed(&list) || !data.Empty() ||
		!list.ReadUint8(&kind) || kind != 0 ||
		!list.ReadUint16LengthPrefixed(&name) || !list.Empty() || !visible(name) {
		return "", false
	}
	return string(name), true
}

// protocols reads the extension of RFC 7301 section 3.1.
func protocols(data cryptobyte.String) (names []string, ok bool) {
	var list cryptobyte.String
	if !data.ReadUint16LengthPrefixed(&list) || !data.Empty() || list.Empty() {
		return nil, false
	}
	for !list.Empty() {
		var name cryptobyte.String
		if !list.ReadUint8LengthPrefixed(&name) || name.Empty() {
			return nil, false
		}
		names = append(names, string(name))
	}
	return names, true
}
