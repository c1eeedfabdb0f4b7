package web

import (
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// h2specFailures are net/http's, and of no consequence: it answers 400 or
// closes where the suite wants a certain error, and it sends larger frames than
// one check allows for.
var h2specFailures = []string{
	"4.2. 3: Sends a large size HEADERS frame that exceeds the SETTINGS_MAX_FRAME_SIZE",
	"6.5.3. 1: Sends multiple values of SETTINGS_INITIAL_WINDOW_SIZE",
	"8.1.2.2. 1: Sends a HEADERS frame that contains the connection-specific header field",
	`8.1.2.2. 2: Sends a HEADERS frame that contains the TE header field with any value other than "trailers"`,
}

// TestH2Spec needs the program that scripts/h2spec builds.
func TestH2Spec(t *testing.T) {
	program := os.Getenv("CREEL_H2SPEC")
	if program == "" {
		t.Skip("run scripts/h2spec")
	}
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		io.WriteString(w, strings.Repeat("answer ", 100))
	})
	w := newWorld(t, tlsHTTP2, serveHTTP(t, tlsHTTP1, h))
	name, port, err := net.SplitHostPort(w.addr)
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		t.Fatal(err)
	}
	w.host, w.port = name, uint16(n)
	out, _ := exec.CommandContext(t.Context(), program, "-h", name, "-p", port, "-t", "-k").CombinedOutput()
	_, failed, _ := strings.Cut(string(out), "Failures:")
	var failures []string
	section := ""
	for line := range strings.Lines(failed) {
		line = strings.TrimSpace(line)
		switch number, _, _ := strings.Cut(line, " "); {
		case strings.HasSuffix(number, "."):
			section = number
		case strings.HasPrefix(line, "×"):
			failures = append(failures, section+" "+strings.TrimPrefix(line, "× "))
		}
	}
	if d := cmp.Diff(h2specFailures, failures); d != "" {
		t.Errorf("failures: %s", d)
	}
	if !strings.Contains(string(out), " passed") {
		t.Errorf("h2spec said: %s", out)
	}
	t.Logf("%s", out[max(0, len(out)-200):])
}
