package policy

import (
	"errors"
	"fmt"
	"strings"
)

// CleanHost gives a name its one form: lower case, no dot at the end. What is
// not a name of at most 253 characters is an error, and so is whatever some
// resolver would read as an address (2130706433, 0x7f.1, 127.1).
func CleanHost(s string) (string, error) {
	s = strings.TrimSuffix(s, ".")
	if s == "" || len(s) > 253 {
		return "", fmt.Errorf("host of %d characters: want 1 to 253", len(s))
	}
	upper, start := false, 0
	for i := 0; i <= len(s); i++ {
		if i == len(s) || s[i] == '.' {
			if i == start || i-start > 63 || s[start] == '-' || s[i-1] == '-' {
				return "", fmt.Errorf("host %.300q: each label wants 1 to 63 characters, none a '-' at its ends", s)
			}
			if i < len(s) {
				start = i + 1
			}
			continue
		}
		switch c := s[i]; {
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '-', c == '_':
		case 'A' <= c && c <= 'Z':
			upper = true
		case c >= 0x80:
			return "", fmt.Errorf("host %.300q: write it in its xn-- form", s)
		default:
			return "", fmt.Errorf("host %.300q: character %q is not allowed in a name", s, c)
		}
	}
	if upper {
		s = strings.ToLower(s)
	}
	if numeric(s[start:]) {
		return "", fmt.Errorf("host %.300q: it ends in a number, so some resolvers read an address; write the address plainly", s)
	}
	return s, nil
}

// numeric is the URL standard's "ends in a number": decimal, octal or
// hexadecimal.
func numeric(label string) bool {
	if rest, ok := strings.CutPrefix(label, "0x"); ok {
		return strings.Trim(rest, "0123456789abcdef") == ""
	}
	return strings.Trim(label, "0123456789") == ""
}

// CleanPattern is CleanHost for what a rule may name.
func CleanPattern(s string) (string, error) {
	switch s {
	case "**":
		return s, nil
	case "*":
		return "", errors.New("host \"*\": write ** for every name")
	}
	prefix, rest := "", s
	for _, p := range []string{"**.", "*."} {
		if r, ok := strings.CutPrefix(s, p); ok {
			prefix, rest = p, r
			break
		}
	}
	if strings.Contains(rest, "*") {
		return "", fmt.Errorf("host %.300q: a wildcard stands for whole labels at the beginning, as in *.example.com or **.example.com", s)
	}
	host, err := CleanHost(rest)
	if err != nil {
		return "", err
	}
	return prefix + host, nil
}

func wildcard(pattern string) bool { return strings.HasPrefix(pattern, "*") }

// patternMatches is what the index does by lookup, written plainly.
func patternMatches(pattern, host string) bool {
	switch {
	case pattern == "**":
		return host != HostAlias
	case strings.HasPrefix(pattern, "**."):
		return strings.HasSuffix(host, pattern[2:]) && host != HostAlias
	case strings.HasPrefix(pattern, "*."):
		label, ok := strings.CutSuffix(host, pattern[1:])
		return ok && label != "" && !strings.Contains(label, ".") && host != HostAlias
	}
	return pattern == host
}

// Covers reports whether every name that other matches is matched by pattern.
// Both are as [CleanPattern] leaves them; other may be a plain name.
func Covers(pattern, other string) bool {
	if pattern == other {
		return true
	}
	if other == "**" || !wildcard(pattern) {
		return false
	}
	if wildcard(other) {
		below := strings.TrimLeft(other, "*")
		return pattern == "**" || strings.HasPrefix(pattern, "**.") && strings.HasSuffix(below, pattern[2:])
	}
	return patternMatches(pattern, other)
}

// openToAll are destinations where anybody can have a place to write to, so
// that a wildcard over them lets data out to anybody.
var openToAll = []string{
	"amazonaws.com", "storage.googleapis.com", "storage.cloud.google.com", "firebaseio.com", "web.app", "blob.core.windows.net",
	"azurewebsites.net", "r2.cloudflarestorage.com", "r2.dev", "workers.dev", "pages.dev", "digitaloceanspaces.com",
	"backblazeb2.com", "wasabisys.com", "gist.github.com", "gist.githubusercontent.com", "raw.githubusercontent.com",
	"github.io", "gitlab.io", "pastebin.com", "paste.debian.net", "dpaste.com", "hastebin.com", "rentry.co", "ix.io",
	"transfer.sh", "file.io", "0x0.st", "webhook.site", "requestbin.com", "ngrok.io", "ngrok-free.app", "trycloudflare.com",
	"hooks.slack.com", "discord.com", "api.telegram.org", "docs.google.com", "drive.google.com", "dropbox.com", "vercel.app",
	"netlify.app", "herokuapp.com", "oastify.com", "interact.sh",
}

// OpenPlaces are destinations where anybody can have a place to write to, and
// that a wildcard reaches.
func OpenPlaces(pattern string) (found []string) {
	for _, place := range openToAll {
		below := Covers("**."+place, pattern)
		if pattern == "**" || patternMatches(pattern, place) || Covers(pattern, "*."+place) || below {
			found = append(found, place)
		}
	}
	return found
}
