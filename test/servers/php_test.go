package servers

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"
)

// queries are an attacker's, always the same: half of them spell a parameter
// _method in a particular way, half are made of parts.
func queries() (out []string) {
	out = []string{"_method=DELETE", "%5Fmethod=DELETE", "+_method=DELETE", "%20_method=DELETE", "%20+_method=DELETE", "_method%00=DELETE", "_method%00x=DELETE",
		".method=DELETE", "+method=DELETE", "[method=DELETE", "_method[]=DELETE", "_method[x]=DELETE", "_method[%zz]=DELETE", "_method%5B%5D=DELETE", "a=1;_method=DELETE",
		"a=1&_method", "%00_method=DELETE", "%09_method=DELETE", "_method%20=DELETE", "_method]=DELETE", "[_method]=DELETE", "a%zz&_method=DELETE", "%zz&.method=DELETE"}
	parts := []string{"_method", "_method", "%5Fmethod", "method", "_", ".", "+", "%20", "%00", "%0a", "[", "]", "[]", "[x]", "%5B", "%5d", "&", ";", "=", "%zz", "%", "x", "a=b"}
	rnd := rand.New(rand.NewPCG(4, 6))
	for range 300 {
		query := ""
		for range 1 + rnd.IntN(6) {
			query += parts[rnd.IntN(len(parts))]
		}
		out = append(out, query)
	}
	return out
}

// No query that a policy with methods allows has PHP choose another method.
func TestPHPReadsNoMethodFromAQuery(t *testing.T) {
	programs, _ := filepath.Glob("../../build/servers/usr/bin/php[0-9]*")
	if len(programs) == 0 {
		t.Skip("php is not there; run scripts/servers")
	}
	program, err := filepath.Abs(programs[0])
	if err != nil {
		t.Fatal(err)
	}
	script := write(t, t.TempDir(), "index.php", fmt.Sprintf("<?php echo isset($_GET['_method']) ? '%s' : '%s';", forbidden, allowed))
	port := freePorts(t, 1)[0]
	run(t, false, libraries(t), program, "-n", "-S", at(port), script).await(t, port)
	e := newEdge(t, server{address: at(port)})
	fooled, passed := 0, 0
	for _, query := range queries() {
		request := get("/v1/items/x?" + query)
		plain, err := direct(t.Context(), at(port), request)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(plain, forbidden) {
			fooled++
		}
		answer, err := e.send(t.Context(), request)
		switch {
		case err != nil:
			t.Fatal(err)
		case strings.Contains(answer, forbidden):
			t.Errorf("%q has a _method", query)
		case strings.Contains(answer, allowed):
			passed++
		}
	}
	t.Logf("%d queries have a _method where nobody decides; %d pass", fooled, passed)
	if fooled < 30 || passed < 50 {
		t.Error("the test shows little")
	}
}
