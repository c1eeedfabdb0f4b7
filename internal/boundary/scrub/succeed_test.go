package scrub

import (
	"bytes"
	"encoding/base64"
	"math/rand/v2"
	"strings"
	"testing"
)

// TestSucceed replaces a stream's set at each place of what is written.
func TestSucceed(t *testing.T) {
	const old, fresh = "the-old-value-0123", "a-fresh-value-4567"
	both := base64.StdEncoding.EncodeToString([]byte(".." + fresh))
	in := "<" + old + "><" + fresh + ">" + old + fresh + " " + both + " end"
	for cut := range len(in) {
		for _, inPlace := range []bool{false, true} {
			first := compile(t, old)
			st := first.Stream()
			before := st.Write(nil, []byte(in[:cut]))
			first.Succeed(compile(t, old, fresh))
			var after []byte
			if rest := []byte(in[cut:]); inPlace && st.Pending() == 0 {
				after = st.Filter(rest)
			} else {
				after = st.Write(nil, rest)
			}
			got := string(st.Flush(append(before, after...)))
			if len(got) != len(in) || st.Pending() != 0 {
				t.Fatalf("after %d: %d bytes came of %d", cut, len(got), len(in))
			}
			if strings.Contains(got, old) {
				t.Errorf("after %d: the old value is in %q", cut, got)
			}
			if at := strings.Index(got, fresh); at >= 0 && cut <= 1+len(old)+2 {
				t.Errorf("after %d: the new value is in %q", cut, got)
			}
			if cut < len(in)-len(both)-4 && strings.Contains(got, both[4:24]) {
				t.Errorf("after %d: the new value is encoded in %q", cut, got)
			}
		}
	}
	if s := compile(t, old); s.Empty() {
		t.Error("a set of one value is empty")
	}
}

// Whatever the cuts and however often the set changes, what every set has is
// found as if there had been one.
func TestSucceedAtRandom(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 11))
	for range 100 {
		values := randomValues(r)
		in := []byte(somewhere(r, values) + somewhere(r, values))
		whole := compile(t, values...).Stream()
		want := whole.Flush(whole.Write(nil, in))
		set := compile(t, values...)
		st := set.Stream()
		var got []byte
		for rest := in; len(rest) > 0; {
			n := min(1+r.IntN(20), len(rest))
			got = st.Write(got, rest[:n])
			rest = rest[n:]
			if r.IntN(3) == 0 {
				next := compile(t, append(values, "something-else-0")...)
				set.Succeed(next)
				set = next
			}
		}
		if got = st.Flush(got); !bytes.Equal(got, want) {
			t.Fatalf("of %q with %q came\n%q, want\n%q", in, values, got, want)
		}
		if st.Found() < whole.Found() {
			t.Errorf("%d were found, want %d", st.Found(), whole.Found())
		}
	}
}
