package chain

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

func TestTreeIsRFC6962(t *testing.T) {
	var tree Tree
	var stored []tlog.Hash
	reader := tlog.HashReaderFunc(func(at []int64) ([]tlog.Hash, error) {
		var out []tlog.Hash
		for _, i := range at {
			out = append(out, stored[i])
		}
		return out, nil
	})
	for n := range int64(300) {
		want, err := tlog.TreeHash(n, reader)
		if err != nil {
			t.Fatal(err)
		}
		if got := tree.Root(); got != want || !tree.WellFormed() {
			t.Fatalf("root of %d leaves: %v, want %v", n, got, want)
		}
		leaf := fmt.Appendf(nil, "leaf %d", n)
		more, err := tlog.StoredHashes(n, leaf, reader)
		if err != nil {
			t.Fatal(err)
		}
		stored = append(stored, more...)
		tree.Add(leaf)
	}
}

// sample is a small file of n commits.
func sample(t testing.TB, n int) []byte {
	private, _, err := note.GenerateKey(rand.Reader, "creel/log/aa/00")
	if err != nil {
		t.Fatal(err)
	}
	signer, err := note.NewSigner(private)
	if err != nil {
		t.Fatal(err)
	}
	s := Sealer{Origin: "creel/log/aa/00", Signers: []note.Signer{signer}, Peaks: true}
	var tree Tree
	var out []byte
	for i := range n {
		e, err := Encode("exec", "aa", map[string]any{"i": i, "text": "<&>\u2028\n\x00é"})
		if err != nil {
			t.Fatal(err)
		}
		c, err := s.Seal(&tree, []Entry{e, {Kind: "exit"}}, time.Unix(1, 0).UTC())
		if err != nil {
			t.Fatal(err)
		}
		out, tree = append(out, c.Bytes...), c.Tree
	}
	return out
}

// The quick way is taken for what is written, and only where it reads the same.
func TestQuickParsing(t *testing.T) {
	quick := 0
	for raw := range bytes.Lines(sample(t, 4)) {
		if _, ok := parsePlain(raw[:len(raw)-1]); ok {
			quick++
		}
	}
	if quick != 8 { // of a ledger all but its checkpoints, which have peaks
		t.Errorf("%d lines of 12 are read quickly", quick)
	}
	for _, raw := range []string{
		`{"v":1,"seq":0,"time":"2026-01-02T03:04:05Z","kind":"x","data":{"a":"\u0000\\"}}`,
		`{"v":1,"seq":0,"time":"2026-01-02T03:04:05Z","kind":"x","data":{} }`,
		`{"v":1,"seq":0,"time":"2026-01-02T03:04:05Z","kind":"x","data":{},"kind":"y"}`,
		`{"v":1,"seq":0,"time":"2026-01-02T03:04:05Z","kind":"x","data":{}}}`,
		`{"v":1,"seq":0,"time":"2026-01-02T03:04:05Z","kind":"","sandbox":""}`,
		`{"v":1,"seq":0,"time":"2026-01-02T03:04:05Z","kind":"x","data":{"a":}}`,
		`{"v":1,"seq":01,"time":"2026-01-02T03:04:05Z","kind":"x"}`,
		`{"v":1,"seq":-1,"time":"2026-01-02T03:04:05Z","kind":"x"}`,
		`{"v":1,"seq":+1,"time":"2026-01-02T03:04:05Z","kind":"x"}`,
		`{"v":1,"seq":9223372036854775808,"time":"2026-01-02T03:04:05Z","kind":"x"}`,
		`{"v":1,"seq":1,"time":"2026-01-02T3:04:05Z","kind":"x"}`,
		`{"v":1,"seq":1,"time":"0001-01-01T00:00:00Z","kind":"x"}`,
		`{"v":1,"seq":1,"time":"2026-01-02T03:04:05Z","kind":"é"}`,
		`{"v":1,"seq":1,"checkpoint":""}`, `{"v":1,"seq":1,"checkpoint":"a\\n"}`, `{"v":1,"seq":1,"checkpoint":"a\"}`,
		`{"v":1,"seq":1,"checkpoint":"a\"}"}`, "{\"v\":1,\"seq\":1,\"checkpoint\":\"\xff\"}", "{\"v\":1,\"seq\":1,\"checkpoint\":\"a\nb\"}",
		`{"v":1,"seq":1,"checkpoint":"a","peaks":[]}`, `{"v":1,"seq":1`, `{"v":1,"seq":1,"time":"`,
	} {
		got, ok := parsePlain([]byte(raw))
		if want, err := parseAny([]byte(raw)); ok && (err != nil || !cmp.Equal(want, got)) {
			t.Errorf("%s: the quick way reads %+v, the other %+v, %v", raw, got, want, err)
		}
	}
}

// Records are written as encoding/json would write them, and read back the same.
func TestLinesAreAsJSONHasThem(t *testing.T) {
	for _, e := range []Entry{
		{Kind: "exec"},
		{Kind: "exec", Sandbox: "a-b_c.D9"},
		{Kind: "exec", Data: json.RawMessage(`{"text":"<&>\u2028\n\\\"é"}`)},
		{Kind: "exec", Sandbox: "aa", Data: json.RawMessage(`{}`)},
	} {
		for _, now := range []time.Time{time.Unix(1, 0).UTC(), time.Unix(1<<31, 120_000_000).UTC(), time.Unix(0, 1).UTC()} {
			for _, seq := range []int64{0, 1 << 62} {
				want, err := encodeJSON(Line{V: Version, Seq: seq, Time: now, Kind: e.Kind, Sandbox: e.Sandbox, Data: e.Data})
				if err != nil {
					t.Fatal(err)
				}
				got := e.appendLine([]byte("before"), seq, now)
				if string(got) != "before"+string(want) {
					t.Errorf("%s, want %s behind what was there", got, want)
				}
				back, err := Parse(want)
				if r := back.Record(); err != nil || back.Seq != seq || !r.Time.Equal(now) || !cmp.Equal(e, Entry{r.Kind, r.Sandbox, r.Data}) {
					t.Errorf("read back: %+v, %v", back, err)
				}
			}
		}
	}
}

func TestIsName(t *testing.T) {
	for name, want := range map[string]bool{
		"a": true, "Z9": true, "0.1_2-3": true, strings.Repeat("a", 128): true,
		"": false, ".a": false, "_a": false, "-a": false, "a b": false, "a/b": false, "a\n": false, "é": false, strings.Repeat("a", 129): false,
	} {
		if IsName(name) != want {
			t.Errorf("%q: %v", name, !want)
		}
	}
}

func TestTornIsOneCommit(t *testing.T) {
	data := sample(t, 2)
	lines := slices.Collect(bytes.Lines(data))
	record, checkpoint := lines[len(lines)-2], lines[len(lines)-1]
	holed := bytes.Clone(record)
	clear(holed[10:40])
	for name, c := range map[string]struct {
		tail [][]byte
		want bool
	}{
		"a record":                             {[][]byte{record}, true},
		"a commit":                             {[][]byte{record, checkpoint}, false},
		"a commit without its newline":         {[][]byte{record, checkpoint[:len(checkpoint)-1]}, true},
		"a commit with a hole":                 {[][]byte{holed, checkpoint}, true},
		"a commit with a hole, and more":       {[][]byte{holed, checkpoint, record}, false},
		"a commit with a hole, and a second":   {[][]byte{holed, checkpoint, record, checkpoint}, false},
		"a commit with other bytes, no hole":   {[][]byte{record[5:], checkpoint}, false},
		"zeros where the beginning was":        {[][]byte{make([]byte, 100), record[5:], checkpoint}, true},
		"more than a crash leaves, zeros only": {[][]byte{make([]byte, MaxTorn+1)}, false},
	} {
		if got := Torn(bytes.Join(c.tail, nil)); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestParseIsStrict(t *testing.T) {
	for raw, ok := range map[string]bool{
		`{"v":1,"seq":0,"time":"2026-01-02T03:04:05Z","kind":"x"}`:                  true,
		`{"v":1,"seq":0,"time":"2026-01-02T03:04:05Z","kind":"x","data":{"a":1}}`:   true,
		`{"v":2,"seq":0,"time":"2026-01-02T03:04:05Z","kind":"x"}`:                  false,
		`{"v":1,"seq":0,"time":"2026-01-02T03:04:05Z","kind":"x","more":1}`:         false,
		`{"v":1,"seq":0,"time":"2026-01-02T03:04:05Z","kind":"x"} `:                 false,
		`{"v":1,"seq":0,"time":"2026-01-02T03:04:05Z","kind":"x"}{}`:                false,
		`{"v":1,"seq":0,"time":"2026-01-02T03:04:05Z"}`:                             false,
		`{"v":1,"seq":0,"kind":"x"}`:                                                false,
		`{"v":1,"seq":0,"time":"2026-01-02T03:04:05Z","kind":"x","data":[1]}`:       false,
		`{"v":1,"seq":0,"time":"2026-01-02T03:04:05Z","kind":"x","data":null}`:      false,
		`{"v":1,"seq":0,"time":"2026-01-02T03:04:05Z","kind":"x","checkpoint":"x"}`: false,
		`{"v":1,"seq":0,"checkpoint":"x"}`:                                          true,
		``:                                                                          false,
	} {
		if _, err := Parse([]byte(raw)); (err == nil) != ok {
			t.Errorf("%s: %v", raw, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	for raw := range bytes.Lines(sample(f, 2)) {
		f.Add(raw[:len(raw)-1])
	}
	f.Add([]byte(`{"v":1,"seq":0,"time":"2026-01-02T03:04:05Z","kind":"x","data":{}}`))
	f.Add([]byte(`{"v":1,"seq":10,"checkpoint":"a\n1\nb\n\n— c\n"}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		l, err := parseAny(raw)
		if quick, ok := parsePlain(raw); ok && (err != nil || !cmp.Equal(l, quick)) {
			t.Errorf("%s: the quick way reads %+v, the other %+v, %v", raw, quick, l, err)
		}
		if err != nil {
			return
		}
		again, err := json.Marshal(l)
		if err != nil {
			t.Fatalf("%s cannot be written: %v", raw, err)
		}
		if _, err := Parse(again); err != nil {
			t.Errorf("%s was written as %s: %v", raw, again, err)
		}
	})
}

func FuzzParseCheckpoint(f *testing.F) {
	f.Add("creel/log/aa/00\n7\nAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n\n— creel/log/aa/00 AAAA\n")
	f.Fuzz(func(t *testing.T, signed string) {
		h, err := ParseCheckpoint(signed)
		if err == nil && h.Text()+"\n" != signed[:len(h.Text())+1] {
			t.Errorf("%q was read as %+v", signed, h)
		}
	})
}

func FuzzScan(f *testing.F) {
	whole := sample(f, 3)
	f.Add(whole)
	f.Add(whole[:len(whole)-7])
	f.Fuzz(func(t *testing.T, data []byte) {
		s := Scanner{}
		err := s.Scan(context.Background(), bytes.NewReader(data))
		if s.End > int64(len(data)) || s.Last.Size > s.Committed.Size || !s.Committed.WellFormed() {
			t.Errorf("end %d of %d, last %+v", s.End, len(data), s.Last)
		}
		if err == nil && s.End != int64(len(data)) {
			t.Errorf("%d bytes at the end went unnoticed", int64(len(data))-s.End)
		}
		Torn(data)
	})
}
