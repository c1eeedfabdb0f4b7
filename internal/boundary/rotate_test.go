package boundary

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"

	"creel/internal/boundary/credential"
	"creel/internal/secret"
)

// holding is a wallet with one secret, for a host that is reached in clear at
// upstreams.
func holding(t testing.TB, as, host, value string, upstreams ...string) *credential.Wallet {
	t.Helper()
	v, err := secret.NewValue(value)
	if err != nil {
		t.Fatal(err)
	}
	g := secret.Grant{Name: "key", Value: v, Binding: secret.Binding{
		Hosts: []string{host}, Upstreams: upstreams, Clear: true, Use: secret.Use{As: as},
	}}
	if as == secret.AsStandIn {
		g.StandIn, g.Binding.Use.Env = standIn, "KEY"
	}
	w, err := credential.New([]secret.Grant{g}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func (r *rig) setWallet(w *credential.Wallet) {
	r.t.Helper()
	if err := r.edge.SetWallet(r.t.Context(), w, []string{"key"}); err != nil {
		r.t.Fatal(err)
	}
}

// eventRig has an upstream that sends, as it is told, and tells of a header. What
// is held there at first depends on its address.
func eventRig(t *testing.T, held func(address string) *credential.Wallet) (r *rig, say chan string, address string) {
	j := newJournal()
	say = make(chan string)
	address = j.web(t, "", func(w http.ResponseWriter, r *http.Request) {
		flush := func() { http.NewResponseController(w).Flush() }
		if flush(); r.URL.Path != "/events" {
			fmt.Fprintln(w, r.Header.Get("Authorization"))
			return
		}
		for {
			select {
			case text := <-say:
				io.WriteString(w, text)
				flush()
			case <-r.Context().Done():
				return
			}
		}
	})
	web := "- {allow: %s, ports: 80, upstream: {address: %q}%s}\n"
	return j.open(t, rules(fmt.Sprintf(web, "api.test", address, ", secret: key"), fmt.Sprintf(web, "free.test", address, "")),
		func(c *Config) { c.Wallet = held(address) }), say, address
}

// events are those of one request.
func (r *rig) events(host string) *bufio.Reader {
	r.t.Helper()
	res, err := r.client("").Get("http://" + host + "/events")
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { res.Body.Close() })
	return bufio.NewReader(res.Body)
}

// line is what the guest gets of one.
func line(t testing.TB, events *bufio.Reader) string {
	t.Helper()
	got, err := events.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSuffix(got, "\n")
}

// wantEnded wants no patience: the edge ends the stream, and not the client.
func wantEnded(t testing.TB, events *bufio.Reader) {
	t.Helper()
	if got, err := events.ReadString('\n'); err == nil || os.IsTimeout(err) {
		t.Errorf("it went on: %q, %v", got, err)
	}
}

func TestRotatedValuesAreSearchedFor(t *testing.T) {
	values := []string{"sk-live-old-f3a9c1e0", "sk-live-new-7b52d846", "sk-live-end-0c1d2e3f"}
	all, stars := strings.Join(values, " ")+"\n", strings.Repeat("*", len(values[0]))
	bearing := func(i int, address string) *credential.Wallet {
		return holding(t, secret.AsBearer, "api.test", values[i], address)
	}
	r, say, address := eventRig(t, func(address string) *credential.Wallet { return bearing(0, address) })
	open := r.events("free.test")
	say <- all
	if got := line(t, open); got != stars+" "+values[1]+" "+values[2] {
		t.Fatalf("before: %q", got)
	}
	// In the middle of a value, which is held back.
	say <- "begun\n" + values[0][:12]
	line(t, open)
	r.setWallet(bearing(1, address))
	say <- values[0][12:] + " " + values[1] + "\n"
	if got := line(t, open); got != stars+" "+stars {
		t.Errorf("around the change: %q", got)
	}
	for i, want := range []string{stars + " " + stars + " " + values[2], stars + " " + stars + " " + stars, stars + " " + stars + " " + stars} {
		switch i {
		case 1:
			r.setWallet(bearing(2, address))
		case 2:
			r.setWallet(nil) // it is taken back
		}
		say <- all
		if got := line(t, open); got != want {
			t.Errorf("after change %d, on what was open: %q, want %q", i+1, got, want)
		}
		if i < 2 {
			if _, got := r.get(r.client(""), "http://api.test/x"); got != "Bearer "+stars+"\n" {
				t.Errorf("after change %d, echoed: %q", i+1, got)
			}
		}
	}
	// And on what is opened afterwards.
	open = r.events("free.test")
	other := make(chan string)
	go func() { other <- line(t, open) }()
	var got string
	for got == "" { // the upstream serves two
		select {
		case say <- all:
		case got = <-other:
		}
	}
	if got != stars+" "+stars+" "+stars {
		t.Errorf("on what was opened after: %q", got)
	}
}

// What was not searched, since there was nothing to search for, is ended.
func TestTheFirstSecretEndsWhatIsNotSearched(t *testing.T) {
	r, _, address := eventRig(t, func(string) *credential.Wallet { return nil })
	open := r.events("free.test")
	r.setWallet(holding(t, secret.AsBearer, "api.test", value, address))
	wantEnded(t, open)
	if _, got := r.get(r.client(""), "http://api.test/x"); got != "Bearer "+strings.Repeat("*", len(value))+"\n" {
		t.Errorf("echoed: %q", got)
	}
}

// A stand-in that was harmless for a host is not any more.
func TestAnotherBindingEndsWhatLetStandInsPass(t *testing.T) {
	r, say, _ := eventRig(t, func(string) *credential.Wallet { return holding(t, secret.AsStandIn, "free.test", value) })
	open := r.events("free.test")
	r.setWallet(holding(t, secret.AsStandIn, "free.test", "sk-live-another-value"))
	say <- "goes on\n"
	line(t, open)
	r.setWallet(holding(t, secret.AsStandIn, "api.test", "sk-live-another-value"))
	wantEnded(t, open)
}
