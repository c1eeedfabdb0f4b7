package scrub

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
)

// secrets are n values of the shapes that keys have.
func secrets(n int) []string {
	var values []string
	for i := range n {
		sum := sha256.Sum256(fmt.Append(nil, i))
		key := base64.RawURLEncoding.EncodeToString(sum[:])
		values = append(values, []string{"sk-ant-api03-", "ghp_", "AKIA", "", "xoxb-"}[i%5]+key)
	}
	return values
}

func BenchmarkStream(b *testing.B) {
	r := rand.New(rand.NewPCG(1, 1))
	random := make([]byte, 1<<20)
	for i := range random {
		random[i] = byte(r.Uint32())
	}
	words := strings.Fields("the of data a to in model is event value for content text that message delta stop type {\"index\": on, with it\n as")
	var text strings.Builder
	for text.Len() < 1<<20 {
		text.WriteString(words[r.IntN(len(words))] + " ")
	}
	values := secrets(50)
	inputs := []struct {
		name string
		data []byte
	}{
		{"text", []byte(text.String())},
		{"base64", []byte(base64.StdEncoding.EncodeToString(random))},
		{"hex", []byte(hex.EncodeToString(random))},
		{"random", random},
		{"percents", []byte(strings.Repeat("%", 1<<20))},
		{"escapes", []byte(strings.Repeat(`\"a\u0041%41&quot;`, 1<<16))},
		{"matches", []byte(strings.Repeat(values[0]+" ", 1<<14))},
		{"beginnings", []byte(strings.Repeat(values[0][:20], 1<<15))},
		{"escaped matches", []byte(strings.Repeat(escapeEach(values[0], `\u%04x`)+" ", 1<<12))},
	}
	for _, n := range []int{1, 10, 50} {
		named := map[string]string{}
		for i, v := range values[:n] {
			named[fmt.Sprint(i)] = v
		}
		s, err := CompileParts(named, nil)
		if err != nil {
			b.Fatal(err)
		}
		for _, in := range inputs {
			b.Run(fmt.Sprintf("values=%d/%s", n, in.name), func(b *testing.B) {
				b.SetBytes(int64(len(in.data)))
				b.ReportAllocs()
				var out []byte
				st := s.Stream()
				for b.Loop() {
					for rest := in.data; len(rest) > 0; {
						n := min(32<<10, len(rest))
						out, rest = st.Write(out[:0], rest[:n]), rest[n:]
					}
				}
			})
		}
	}
}

// BenchmarkEvents is many small writes, as of server-sent events.
func BenchmarkEvents(b *testing.B) {
	event := []byte("event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"delta\":{\"text\":\"Hello\"}}\n\n")
	st := compile(b, secrets(50)...).Stream()
	var out []byte
	b.SetBytes(int64(len(event)))
	for b.Loop() {
		out = st.Write(out[:0], event)
	}
}

func BenchmarkText(b *testing.B) {
	s := compile(b, secrets(50)...)
	for b.Loop() {
		s.Text("application/json; charset=utf-8")
	}
}

func BenchmarkCompile(b *testing.B) {
	values := make(map[string]string)
	for i, v := range secrets(50) {
		values[fmt.Sprint(i)] = v
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Compile(values); err != nil {
			b.Fatal(err)
		}
	}
}
