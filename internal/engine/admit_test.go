package engine

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"creel/internal/audit"
	"creel/internal/audit/event"
	"creel/internal/audit/query"
	"creel/internal/diskroom"
	"creel/internal/engine/store"
	"creel/internal/image"
	"creel/internal/policy/syntax"
	"creel/internal/policy/tier"
	"creel/internal/sandbox"
	"creel/internal/secret"
	"creel/internal/standby"
)

// noImages ends a Create at the first thing that it does once it is admitted.
type noImages struct{ asked *bool }

var errNoImages = errors.New("no images here")

func (n noImages) Resolve(context.Context, string) (image.Image, error) {
	*n.asked = true
	return image.Image{}, errNoImages
}

func (n noImages) RootFS(context.Context, image.Image) (image.RootFS, error) {
	return image.RootFS{}, errNoImages
}

// admitting is an engine of which only the admission matters.
func admitting(t *testing.T) (e *Engine, dir string, asked *bool) {
	t.Helper()
	dir = t.TempDir()
	ledger, err := audit.OpenLedger(filepath.Join(dir, "audit"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ledger.Close() })
	asked = new(bool)
	e = New(Options{
		Dir: dir, Ledger: ledger, AuditDir: filepath.Join(dir, "audit"), Tiers: tier.Default(), Images: noImages{asked},
		Standby: &standby.Pool{}, Log: slog.New(slog.DiscardHandler),
	})
	return e, dir, asked
}

// modest passes under every tier.
func modest(name string) sandbox.Spec {
	return sandbox.Spec{
		ID: sandbox.NewID(), Name: "web", Image: "debian", Tier: name, Timeout: time.Minute,
		Resources: sandbox.Resources{PIDs: 64}, Confinement: sandbox.ConfinementFull, Accel: sandbox.AccelAuto,
	}
}

func policyOf(t *testing.T, allow ...string) string {
	t.Helper()
	p, _, err := syntax.FromFlags(nil, syntax.Flags{Allow: allow}, syntax.Inputs{})
	if err != nil {
		t.Fatal(err)
	}
	return string(syntax.Text(p))
}

func records(t *testing.T, e *Engine) (out []audit.Record) {
	t.Helper()
	kinds := []audit.Kind{audit.KindAdmitted, audit.KindRefused}
	for r, err := range query.Records(t.Context(), e.opts.AuditDir, query.Filter{Kinds: kinds}) {
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, r)
	}
	return out
}

func TestEachTierRefusesWhatIsOverItsCeiling(t *testing.T) {
	token := "gh" + "p_" + strings.Repeat("aB3x", 9)
	greedy := func(name string) sandbox.Spec {
		s := modest(name)
		s.Policy = policyOf(t, "**.example.com", "db.test:5432", "10.0.0.1:22")
		s.Env = []string{"TOKEN=" + token}
		s.Timeout, s.Resources = 0, sandbox.Resources{CPUs: 4, MemoryBytes: 8 << 30, DiskBytes: 64 << 30}
		s.Confinement = sandbox.ConfinementReduced
		return s
	}
	for name, want := range map[string][]string{
		tier.Untrusted: {
			"memory: 8GiB, at most 2GiB", "disk: 64GiB, at most 10GiB", "cpus: 4, at most 2", "pids-limit: no limit", "timeout: no limit",
			`rule "--allow **.example.com": a wildcard`, `rule "--allow db.test:5432": protocol tcp`, `rule "--allow 10.0.0.1:22": protocol tcp`,
			`rule "--allow 10.0.0.1:22": a destination by address`, `rule "--allow 10.0.0.1:22": private addresses`,
			"policy: budget bytes_out: no limit", "confinement: reduced", "-e TOKEN: the value looks like a GitHub token",
		},
		tier.Restricted: {
			"disk: 64GiB, at most 32GiB", "pids-limit: no limit", "timeout: no limit", `rule "--allow **.example.com": a wildcard of any depth`,
			`rule "--allow 10.0.0.1:22": a destination by address`, `rule "--allow 10.0.0.1:22": private addresses`, "confinement: reduced",
			"-e TOKEN: the value looks like a GitHub token",
		},
		tier.Trusted: nil,
	} {
		t.Run(name, func(t *testing.T) {
			e, _, asked := admitting(t)
			var said []string
			_, err := e.Create(t.Context(), greedy(name), func(s string) { said = append(said, s) }, nil)
			got := records(t, e)
			if len(got) != 1 {
				t.Fatalf("%d records", len(got))
			}
			var about event.Admitted
			if err := json.Unmarshal(got[0].Data, &about); err != nil {
				t.Fatal(err)
			}
			if strings.Contains(string(got[0].Data)+strings.Join(said, ""), token) || err != nil && strings.Contains(err.Error(), token) {
				t.Error("the token is on record or on the terminal")
			}
			if want == nil {
				if !errors.Is(err, errNoImages) || got[0].Kind != audit.KindAdmitted || len(said) != 1 || !strings.Contains(said[0], "-e TOKEN") {
					t.Errorf("%v, %s, %q", err, got[0].Kind, said)
				}
				return
			}
			refused, ok := errors.AsType[*Refused](err)
			if !ok || got[0].Kind != audit.KindRefused || *asked {
				t.Fatalf("%v, %s, image asked for: %v", err, got[0].Kind, *asked)
			}
			if diff := cmp.Diff(refused.Faults, about.Faults); diff != "" {
				t.Error(diff)
			}
			for i, fault := range refused.Faults {
				if i >= len(want) || !strings.HasPrefix(fault, want[i]) {
					t.Errorf("fault %d: %s", i, fault)
				}
			}
			if len(refused.Faults) != len(want) {
				t.Errorf("%d faults, want %d", len(refused.Faults), len(want))
			}
		})
	}
}

func TestAdmittedIsRecordedBeforeAnythingIsDone(t *testing.T) {
	for _, name := range []string{tier.Untrusted, tier.Restricted, tier.Trusted} {
		e, _, _ := admitting(t)
		spec := modest(name)
		fetched := false
		_, err := e.Create(t.Context(), spec, func(string) {}, func(context.Context) error {
			fetched = len(records(t, e)) == 1
			return nil
		})
		if !errors.Is(err, errNoImages) || !fetched {
			t.Errorf("%s: %v, on record when the image was fetched: %v", name, err, fetched)
		}
		var got event.Admitted
		if err := json.Unmarshal(records(t, e)[0].Data, &got); err != nil {
			t.Fatal(err)
		}
		want := event.Admitted{Name: "web", Image: "debian", Tier: name, Policy: syntax.Digest(string(syntax.Text(nil)))}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
	}
}

func TestFaultsOfEveryKindComeAtOnce(t *testing.T) {
	e, _, _ := admitting(t)
	spec := modest("root")
	spec.Hostname, spec.Policy = "-x", "version: 1\nrules:\n  - {alow: a.test}\n  - {allow: a..test}\n"
	_, err := e.Create(t.Context(), spec, func(string) {}, nil)
	for _, want := range []string{"4 faults", `hostname "-x"`, "policy: line 3: unknown key", "policy: line 4", "tier: not known"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not say %q", err, want)
		}
	}
	spec = modest(tier.Trusted)
	spec.Policy = "version: 1\nrules: [{allow: a.test}]\n"
	if _, err := e.Create(t.Context(), spec, func(string) {}, nil); err == nil || !strings.Contains(err.Error(), "canonical") {
		t.Errorf("a policy that is not canonical: %v", err)
	}
}

// brokenLedger cannot be written to.
type brokenLedger struct{ Ledger }

func (brokenLedger) Append(context.Context, ...audit.Event) error { return errors.New("disk full") }

func TestWithoutARecordNothingHappens(t *testing.T) {
	e, dir, asked := admitting(t)
	e.opts.Ledger = brokenLedger{e.opts.Ledger}
	_, err := e.Create(t.Context(), modest(tier.Trusted), func(string) {}, func(context.Context) error {
		t.Error("an image was fetched")
		return nil
	})
	if err == nil || !strings.Contains(err.Error(), "disk full") || *asked {
		t.Errorf("%v, image asked for: %v", err, *asked)
	}
	if left, _ := os.ReadDir(filepath.Join(dir, "sandboxes")); len(left) > 0 {
		t.Errorf("there is %v", left)
	}
}

func TestTheTierHoldsForOneMoreProcess(t *testing.T) {
	token := "gh" + "p_" + strings.Repeat("aB3x", 9)
	for name, refused := range map[string]bool{tier.Untrusted: true, tier.Restricted: true, tier.Trusted: false} {
		e, _, _ := admitting(t)
		var said string
		f := Found{Record: store.Record{}}
		f.Record.Config.Spec = modest(name)
		_, err := e.PlanExec(t.Context(), f, sandbox.Process{Env: []string{"A=b", "TOKEN=" + token}}, func(s string) { said += s })
		got := records(t, e)
		if (err != nil) != refused || (len(got) == 1) != refused || refused == strings.Contains(said, "-e TOKEN") {
			t.Errorf("%s: %v, %q, %d records", name, err, said, len(got))
		}
		for _, r := range got {
			if strings.Contains(string(r.Data), token) || !strings.Contains(string(r.Data), "-e TOKEN") {
				t.Errorf("%s: on record is %s", name, r.Data)
			}
		}
		f.Record.Config.Process = sandbox.Process{Args: []string{"task"}, Env: []string{"A=a", "C=d"}, User: "nobody", Dir: "/srv"}
		p, err := e.PlanExec(t.Context(), f, sandbox.Process{Args: []string{"id"}, Env: []string{"A=b"}, Dir: "/"}, func(s string) { t.Error(s) })
		want := sandbox.Process{Args: []string{"id"}, Env: []string{"A=a", "C=d", "A=b"}, User: "nobody", Dir: "/"}
		if diff := cmp.Diff(want, p); err != nil || diff != "" {
			t.Errorf("%s: harmless: %v %s", name, err, diff)
		}
	}
}

// A receipt has the limits from the ledger: the policy itself is not kept.
func TestTheBudgetIsOnTheLedger(t *testing.T) {
	e, _, _ := admitting(t)
	p, _, err := syntax.Parse([]byte("version: 1\nbudget: {bytes_out: 1MiB, requests: 7}\nrules:\n  - {allow: api.example.com}\n"), syntax.Inputs{})
	if err != nil {
		t.Fatal(err)
	}
	s := modest(tier.Untrusted)
	s.Policy = string(syntax.Text(p))
	if _, err := e.Create(t.Context(), s, func(string) {}, nil); !errors.Is(err, errNoImages) {
		t.Fatal(err)
	}
	var about event.Admitted
	if err := json.Unmarshal(records(t, e)[0].Data, &about); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]int64{"bytes_out": 1 << 20, "requests": 7}, about.Budget); diff != "" || about.Rules != 1 {
		t.Errorf("%d rules, budget %s", about.Rules, diff)
	}
}

// Nothing is started on a disk that is nearly full, and the refusal is on record
// with what to do.
func TestFullDiskIsRefused(t *testing.T) {
	const mib = 1 << 20
	for _, c := range []struct {
		free, size int64
		refused    bool
	}{
		{1 << 40, 1 << 41, false}, {1 << 30, 1 << 41, false}, {1<<30 - 1, 1 << 41, true},
		{10 * mib, 200 * mib, false}, {10*mib - 1, 200 * mib, true}, {0, 200 * mib, true},
	} {
		e, _, asked := admitting(t)
		e.room = func(string) (diskroom.Room, error) { return diskroom.Room{Free: c.free, Size: c.size}, nil }
		_, err := e.Create(t.Context(), modest("trusted"), func(string) {}, nil)
		_, refused := errors.AsType[*Refused](err)
		if refused != c.refused || *asked == c.refused {
			t.Errorf("%d of %d bytes are free: %v", c.free, c.size, err)
		}
		if c.refused && !strings.Contains(err.Error(), "free some space") {
			t.Errorf("%v does not say what to do", err)
		}
		if got := records(t, e); len(got) != 1 || (got[0].Kind == audit.KindRefused) != c.refused {
			t.Errorf("on record: %+v", got)
		}
	}
}

// bindings are secrets by name.
type bindings map[string]secret.Binding

func (b bindings) Binding(name string) (secret.Binding, error) { return b[name], nil }

func (b bindings) Resolve(context.Context, []string) ([]secret.Grant, error) { return nil, nil }

// Where a policy sends a secret is held against its binding.
func TestPoliciesSendSecretsOnlyWhereTheyAreBoundTo(t *testing.T) {
	const pem = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
	binding := func(change func(*secret.Binding)) secret.Binding {
		b := secret.Binding{Hosts: []string{"api.test"}, Use: secret.Use{As: secret.AsBearer}}
		change(&b)
		return b
	}
	e, _, _ := admitting(t)
	e.opts.Secrets = bindings{
		"plain": binding(func(*secret.Binding) {}),
		"up":    binding(func(b *secret.Binding) { b.Upstreams = []string{"Gateway.test:8443", "10.0.0.1:80"} }),
		"ca":    binding(func(b *secret.Binding) { b.Upstreams, b.CA = []string{"gateway.test:8443"}, pem }),
		"clear": binding(func(b *secret.Binding) { b.Upstreams, b.Clear = []string{"10.0.0.1:80"}, true }),
	}
	gateway := "upstream: {address: 'gateway.test:8443'"
	ca, otherCA := ", ca: "+strconv.Quote(pem), ", ca: "+strconv.Quote(strings.Replace(pem, "AAAA", "BBBB", 1))
	for rule, want := range map[string]string{
		"secret: plain":                                                     "",
		"secret: up":                                                        "",
		"secret: plain, " + gateway + "}":                                   "--upstream gateway.test:8443",
		"secret: up, " + gateway + "}":                                      "",
		"secret: up, " + gateway + ca + "}":                                 "--upstream-ca",
		"secret: ca, " + gateway + ca + "}":                                 "",
		"secret: ca, " + gateway + "}":                                      "`ca:`",
		"secret: ca, " + gateway + otherCA + "}":                            "--upstream-ca",
		"secret: up, upstream: {address: 'gateway.test:443'}":               "--upstream gateway.test:443",
		"secret: plain, protocol: http":                                     "--clear",
		"secret: plain, ports: [80, 443]":                                   "--clear",
		"secret: clear, protocol: http":                                     "",
		"secret: up, protocol: http, upstream: {address: '10.0.0.1:80'}":    "--clear",
		"secret: clear, protocol: http, upstream: {address: '10.0.0.1:80'}": "",
		"secret: clear, upstream: {address: '169.254.169.254:80'}":          "--upstream 169.254.169.254:80",
	} {
		p, _, err := syntax.Parse([]byte("version: 1\nrules:\n  - {allow: api.test, "+rule+"}\n"), syntax.Inputs{})
		if err != nil {
			t.Fatal(rule, err)
		}
		spec := modest(tier.Trusted)
		spec.Policy = string(syntax.Text(p))
		_, faults, _ := e.judge(&spec)
		if want == "" && len(faults) > 0 || want != "" && (len(faults) != 1 || !strings.Contains(faults[0], want)) {
			t.Errorf("%s: %q, want %q", rule, faults, want)
		}
	}
}
