// Package canary makes credentials that open nothing, in the places where
// attackers look: whoever uses one has searched for what is not theirs. [Make]
// gives a set that no other sandbox has. The package must not plant them or
// watch for them.
package canary

import (
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"path"
	"strings"
)

// Canary is one planted credential.
type Canary struct {
	Name  string // for records
	Value string // what must not be seen anywhere; long and random
	Env   string // the variable that holds it; "": none
	Path  string // the file that holds it; "": none
	Text  string // the file's content
}

const (
	upper  = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
	lower  = "abcdefghijklmnopqrstuvwxyz"
	digits = "0123456789"
	base32 = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
)

// Make gives canaries for a home directory. Each value has at least 100 bits
// of its own.
func Make(home string) []Canary {
	aws, git, npm, word := random(upper+lower+digits, 40), random(upper+lower+digits, 36), random(upper+lower+digits, 36), random(lower, 32)
	key := privateKey()
	at := func(name string) string { return path.Join(home, name) }
	return []Canary{
		{Name: "cloud", Value: aws, Path: at(".aws/credentials"), Text: fmt.Sprintf(
			"[default]\naws_access_key_id = AKIA%s\naws_secret_access_key = %s\n", random(base32, 16), aws)},
		{Name: "git", Value: "ghp_" + git, Path: at(".git-credentials"), Text: fmt.Sprintf("https://deploy:ghp_%s@github.com\n", git)},
		{Name: "npm", Value: "npm_" + npm, Env: "NPM_TOKEN"},
		{Name: "ssh", Value: sample(key), Path: at(".ssh/id_ed25519"), Text: key},
		{Name: "wallet", Value: word, Path: at(".config/wallet/seed.json"), Text: fmt.Sprintf("{\"version\":3,\"seed\":%q}\n", word)},
	}
}

func random(alphabet string, n int) string {
	out := make([]byte, 0, n)
	most := 256 - 256%len(alphabet) // above, some letters would be likelier
	for len(out) < n {
		b := make([]byte, n)
		rand.Read(b) // never fails: crypto/rand ends the process instead
		for _, c := range b {
			if int(c) < most && len(out) < n {
				out = append(out, alphabet[int(c)%len(alphabet)])
			}
		}
	}
	return string(out)
}

// privateKey looks like an OpenSSH private key, and is none.
func privateKey() string {
	b := make([]byte, 280)
	rand.Read(b)
	text := base64.StdEncoding.EncodeToString(append([]byte("openssh-key-v1\x00\x00\x00\x00\x04none\x00\x00\x00\x04none"), b...))
	var lines strings.Builder
	lines.WriteString("-----BEGIN OPENSSH PRIVATE KEY-----\n")
	for len(text) > 70 {
		lines.WriteString(text[:70] + "\n")
		text = text[70:]
	}
	return lines.String() + text + "\n-----END OPENSSH PRIVATE KEY-----\n"
}

// sample is the line of a key that is watched for: whoever sends the key on
// sends that too.
func sample(key string) string { return strings.Split(key, "\n")[3] }
