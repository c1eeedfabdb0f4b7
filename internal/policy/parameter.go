package policy

import (
	"strings"
	"unicode"
)

// ParameterNames are the names that servers may read from one of a query's, as
// it is written, in the form of PHP. It drops blanks before a name, ends it at
// a NUL, and makes underscores of blanks, dots and opening brackets; Rack and
// others leave brackets out, and what is within them. control reports whether
// the name has control characters, which no honest client's has.
func ParameterNames(raw string) (names []string, control bool) {
	plain := unescapeLoosely(raw)
	control = strings.ContainsFunc(plain, unicode.IsControl)
	plain, _, _ = strings.Cut(plain, "\x00")
	plain = strings.TrimFunc(plain, func(c rune) bool { return unicode.IsSpace(c) || unicode.IsControl(c) })
	names = []string{underscores.Replace(plain)}
	if strings.ContainsAny(plain, "[]") {
		bare := strings.TrimLeft(plain, "[]")
		if end := strings.IndexAny(bare, "[]"); end >= 0 {
			bare = bare[:end]
		}
		names = append(names, underscores.Replace(bare))
	}
	return names, control
}

var underscores = strings.NewReplacer(" ", "_", ".", "_", "[", "_")

// unescapeLoosely decodes what can be decoded, as many servers do.
func unescapeLoosely(s string) string {
	if !strings.ContainsAny(s, "%+") {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '+':
			b.WriteByte(' ')
		case s[i] == '%' && i+2 < len(s) && isHex(s[i+1]) && isHex(s[i+2]):
			b.WriteByte(unhex(s[i+1])<<4 | unhex(s[i+2]))
			i += 2
		default:
			b.WriteByte(s[i])
		}
	}
	return b.String()
}
