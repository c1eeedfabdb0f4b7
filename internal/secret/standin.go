package secret

import (
	"crypto/rand"
	"math"
	"strings"
)

// standInBits is the least entropy of a stand-in: nobody comes upon one by
// guessing or by accident, so that one that turns up elsewhere was taken there.
const standInBits = 64

// minShapeBits is the entropy of eight digits, below which a shape is no use.
const minShapeBits = 26

// prefixes are how services mark their keys, and what clients check before they
// use one. Only these stay in a stand-in: of any other beginning, nobody knows
// whether it is part of the secret.
var prefixes = []string{
	"sk-ant-api03-", "sk-ant-oat01-", "sk-ant-", "sk-proj-", "sk-svcacct-", "sk-admin-", "sk-or-v1-", "sk-",
	"github_pat_", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "glpat-", "gldt-", "glrt-",
	"xoxb-", "xoxp-", "xapp-", "sk_live_", "sk_test_", "rk_live_", "rk_test_", "whsec_",
	"npm_", "pypi-", "hf_", "dckr_pat_", "dckr_oat_", "hvs.", "hvb.", "dop_v1_", "doo_v1_", "dor_v1_",
	"AKIA", "ASIA", "AIza", "SG.", "gsk_", "xai-", "pplx-", "r8_", "tvly-", "lin_api_", "ntn_", "secret_",
}

// Characters that a random one is drawn from, by what it stands for.
const (
	digits = "0123456789"
	lower  = "abcdefghijklmnopqrstuvwxyz"
	upper  = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
)

// StandIn draws a random stand-in of the value's shape. It is as long; a prefix
// that services are known for stays; a digit becomes a digit, a letter one of
// its case; other characters stay. It has at least 64 bits of entropy: where
// the value's letters and digits are too few for that, its shape is repeated
// until they are enough, and where there are hardly any, it is of letters. It
// never holds the value. What it gives away is the value's length, and of which
// kind each character is.
func StandIn(v Value) string {
	value := v.Reveal()
	keep := knownPrefix(value)
	shape := value[len(keep):]
	if entropy(shape) < minShapeBits {
		shape = strings.Repeat("a", max(len(shape), MinBytes))
	}
	shape = strings.Repeat(shape, int(math.Ceil(standInBits/entropy(shape))))
	for {
		if s := keep + draw(shape); !strings.Contains(s, value) {
			return s
		}
	}
}

// knownPrefix is how the service begins its keys, "" where it is not known.
func knownPrefix(value string) (prefix string) {
	for _, p := range prefixes {
		if strings.HasPrefix(value, p) && len(p) > len(prefix) && len(value) >= len(p)+MinBytes {
			prefix = p
		}
	}
	return prefix
}

// Public is how many bytes at the beginning of a value are no secret: the prefix
// of a service's keys, or the header of a JSON Web Token, which many have.
func (v Value) Public() int {
	value := v.Reveal()
	if header, rest, ok := strings.Cut(value, "."); ok && strings.HasPrefix(header, "eyJ") && strings.Contains(rest, ".") && len(rest) > MinBytes {
		return len(header) + 1
	}
	return len(knownPrefix(value))
}

// alphabet is what a character is drawn from; "" where it stays.
func alphabet(c byte) string {
	for _, a := range []string{digits, lower, upper} {
		if strings.IndexByte(a, c) >= 0 {
			return a
		}
	}
	return ""
}

// entropy is that of what draw makes of a shape, in bits.
func entropy(shape string) (bits float64) {
	for i := range len(shape) {
		if a := alphabet(shape[i]); a != "" {
			bits += math.Log2(float64(len(a)))
		}
	}
	return bits
}

func draw(shape string) string {
	out := []byte(shape)
	for i, c := range out {
		if a := alphabet(c); a != "" {
			out[i] = pick(a)
		}
	}
	return string(out)
}

// pick draws each character of an alphabet as often as every other.
func pick(alphabet string) byte {
	var b [1]byte
	for {
		rand.Read(b[:]) // never fails
		if n := len(alphabet); int(b[0]) < 256/n*n {
			return alphabet[int(b[0])%n]
		}
	}
}
