package policy_test

import (
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"

	. "creel/internal/policy"
)

// allocated are the bytes that a function allocates, which says how much it
// does on any machine.
func allocated(do func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	do()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// No path costs much, whatever is in it: a guest can send many at once, and the
// end of its run waits for what is being decided.
func TestWhatAPathCosts(t *testing.T) {
	p := must(t, `
  - {allow: a.test, ports: 80, protocol: http, paths: /v1/**}
  - {deny: a.test, paths: /v1/**/admin/**/x}`)
	paths := []string{
		"/v1/" + strings.Repeat("a", 16000), "/v1/" + strings.Repeat("%E4%B8%80", 1800), "/v1/" + strings.Repeat("%EF%B7%BA", 1800),
		"/v1/" + strings.Repeat("\ufdfa", 5400), "/v1/" + strings.Repeat("%EF%B7%BA", 400), "/v1/a" + strings.Repeat("%CC%80%CC%A3", 1300),
		"/v1/a" + strings.Repeat("\u0300\u0323", 4000), "/v1" + strings.Repeat("/a", 8000), "/v1" + strings.Repeat("/a", 3000) + strings.Repeat(".a", 30),
		"/v1/" + strings.Repeat("\u4e00", 5400), "/v1" + strings.Repeat("/", 16000),
	}
	parts := []string{"/", "//", ";", "%2f", "%3b", "%2e%2e", "..", ".", "%3f", "a", "/b", "%ef%b7%ba", ";a=b"}
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		path := "/v1/"
		for range 2 + rnd.IntN(8) {
			path += parts[rnd.IntN(len(parts))]
		}
		paths = append(paths, path+"/"+strings.Repeat("%ef%b7%ba", rnd.IntN(200)))
	}
	for _, path := range paths {
		n := allocated(func() {
			p.Decide(Request{Op: Ask, Host: "a.test", Port: 80, Method: "GET", Path: path})
		})
		if n > 4<<20 {
			t.Errorf("%d bytes, %.60q...: %d KiB allocated", len(path), path, n>>10)
		}
	}
}

// A format behind the last name, and there may be many, does not have all of the
// path matched again.
func TestMatchingLooksAtSegmentsOnce(t *testing.T) {
	p := must(t, `
  - {allow: a.test, ports: 80, protocol: http, paths: /v1/**}
  - {deny: a.test, paths: /v1/**/admin/**/x}`)
	cost := func(last string) uint64 {
		path := "/v1" + strings.Repeat("/a", 1000) + "/" + last
		return allocated(func() {
			if d := p.Decide(Request{Op: Ask, Host: "a.test", Port: 80, Method: "GET", Path: path}); !d.Allow {
				t.Errorf("%s is denied: %s", last, d.Reason())
			}
		})
	}
	cost("a")
	if one, many := cost("a"), cost("a"+strings.Repeat(".a", 30)); many > 2*one {
		t.Errorf("%d bytes for a name with 30 formats, %d for one without", many, one)
	}
}

// Both ways to match a pattern find the same.
func TestBothMatchesAgree(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	pick := func(from ...string) (out []string) {
		for range 1 + rnd.IntN(5) {
			out = append(out, from[rnd.IntN(len(from))])
		}
		return out
	}
	matched := 0
	for range 20_000 {
		pattern, segs := "/"+strings.Join(pick("**", "**", "*", "a", "b", "a*", ""), "/"), pick("a", "a", "b", "ab", "")
		got := MatchPlaces(pattern, segs)
		if got != MatchPath(pattern, segs) {
			t.Fatalf("%s on %q: %v", pattern, segs, got)
		}
		if got {
			matched++
		}
	}
	if matched < 1000 {
		t.Errorf("only %d match", matched)
	}
}
