package tier

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"creel/internal/policy"
	"creel/internal/policy/syntax"
)

func rules(t *testing.T, text string) *policy.Policy {
	t.Helper()
	p, _, err := syntax.Parse([]byte("version: 1\n"+text), syntax.Inputs{})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// small is a wish that every tier admits.
func small() Wish {
	return Wish{MemoryBytes: 512 << 20, CPUs: 1, DiskBytes: 10 << 30, PIDs: 100, Lifetime: time.Minute}
}

func TestAdmit(t *testing.T) {
	yes := "untrusted restricted trusted"
	budget := "budget: {bytes_out: 1MiB}\n"
	for _, c := range []struct {
		what string
		wish func(*Wish)
		in   string // the tiers that admit it
		text string // of the others' fault
	}{
		{"a small one", func(*Wish) {}, yes, ""},
		{"an empty policy", func(w *Wish) { w.Policy = rules(t, "") }, yes, ""},
		{"memory", func(w *Wish) { w.MemoryBytes = 4 << 30 }, "restricted trusted", "memory: 4GiB, at most 2GiB"},
		{"memory without limit", func(w *Wish) { w.MemoryBytes = 0 }, "trusted", "memory: no limit"},
		{"cpus", func(w *Wish) { w.CPUs = 4 }, "restricted trusted", "cpus: 4, at most 2"},
		{"disk", func(w *Wish) { w.DiskBytes = 64 << 30 }, "trusted", "disk: 64GiB"},
		{"pids", func(w *Wish) { w.PIDs = 0 }, "trusted", "--pids-limit"},
		{"lifetime", func(w *Wish) { w.Lifetime = 2 * time.Hour }, "restricted trusted", "give --timeout 1h0m0s or less"},
		{"no lifetime", func(w *Wish) { w.Lifetime = 0 }, "trusted", "timeout: no limit"},
		{"confinement", func(w *Wish) { w.Reduced = true }, "trusted", "confinement"},
		{"writable mount", func(w *Wish) { w.WritableMounts = []string{"/src"} }, "restricted trusted", "mount /src"},
		{"port on loopback", func(w *Wish) { w.Publish = []Port{{"8080:80", true}} }, "restricted trusted", "-p 8080:80"},
		{"port", func(w *Wish) { w.Publish = []Port{{"0.0.0.0:8080:80", false}} }, "trusted", "ports in"},
		{"secrets", func(w *Wish) { w.Secrets = []string{"a", "b", "b", "c"} }, "restricted trusted", "3 are used, at most 2"},
		{"tls", func(w *Wish) { w.Policy = rules(t, budget+"rules: [{allow: a.test}]") }, yes, ""},
		{"no budget", func(w *Wish) { w.Policy = rules(t, "rules: [{allow: a.test}]") }, "restricted trusted", "bytes_out: no limit"},
		{"http", func(w *Wish) { w.Policy = rules(t, budget+"rules: [{allow: a.test, ports: 80}]") }, "restricted trusted", "protocol http"},
		{"tcp in a range", func(w *Wish) { w.Policy = rules(t, budget+"rules: [{allow: a.test, ports: 443-450}]") }, "restricted trusted", "protocol tcp"},
		{"udp", func(w *Wish) { w.Policy = rules(t, budget+"rules: [{allow: a.test, ports: 53, protocol: udp}]") }, "trusted", "protocol udp"},
		{"wildcard", func(w *Wish) { w.Policy = rules(t, budget+"rules: [{allow: '*.a.test'}]") }, "restricted trusted", "a wildcard"},
		{"deep wildcard", func(w *Wish) { w.Policy = rules(t, budget+"rules: [{allow: '**.a.test'}]") }, "trusted", "a wildcard"},
		{"denied wildcard", func(w *Wish) { w.Policy = rules(t, budget+"rules: [{allow: a.b.test}, {deny: '**.a.test'}]") }, yes, ""},
		{"address", func(w *Wish) { w.Policy = rules(t, budget+"rules: [{allow: 1.1.1.1}]") }, "trusted", "by address"},
		{"private", func(w *Wish) { w.Policy = rules(t, budget+"rules: [{allow: a.test, allow_private: true}]") }, "trusted", "private addresses"},
		{"upstream", func(w *Wish) { w.Policy = rules(t, budget+"rules: [{allow: a.test, upstream: {address: 'b.test:1'}}]") }, "restricted trusted", "an upstream"},
		{"private upstream", func(w *Wish) {
			w.Policy = rules(t, budget+"rules: [{allow: a.test, upstream: {address: '127.0.0.1:1'}}]")
		}, "trusted", "private"},
		{"ech", func(w *Wish) { w.Policy = rules(t, budget+"rules: [{allow: a.test, ech: allow}]") }, "trusted", "ClientHello"},
		{"host port", func(w *Wish) { w.Policy = rules(t, budget+"rules: [{allow: host.creel.internal, ports: 1}]") }, "restricted trusted", "a port of the host"},
	} {
		for name, ceiling := range Default() {
			w := small()
			c.wish(&w)
			faults, _ := ceiling.Admit(w)
			switch {
			case strings.Contains(" "+c.in+" ", " "+name+" ") != (len(faults) == 0):
				t.Errorf("%s: %s: %v", name, c.what, faults)
			case len(faults) > 0 && !strings.Contains(faults.Error(), c.text):
				t.Errorf("%s: %s: %v does not say %q", name, c.what, faults, c.text)
			}
		}
	}
}

func TestEveryFaultIsListed(t *testing.T) {
	faults, _ := Default()[Untrusted].Admit(Wish{Reduced: true, WritableMounts: []string{"/a"}, Publish: []Port{{Text: "1:1"}}})
	if len(faults) != 8 { // memory, disk, cpus, pids, timeout, mount, port, confinement
		t.Errorf("%d faults:\n%v", len(faults), faults)
	}
	if faults, _ := Tiers(nil)["x"].Admit(small()); len(faults) == 0 {
		t.Error("an unknown tier admits")
	}
}

// fakeTokens have the shape of secrets, put together here so that scanners do
// not take this file for a leak.
func fakeTokens() map[string]string {
	x := func(n int) string { return strings.Repeat("aB3x", n)[:n] }
	return map[string]string{
		"a private key": "-----BEGIN OPENSSH " + "PRIVATE KEY-----\nx", "an AWS access key": "AK" + "IA" + strings.Repeat("ABCD", 4),
		"a GitHub token": "gh" + "p_" + x(36), "a GitLab token": "glp" + "at-" + x(20), "a Slack token": "xox" + "b-" + x(20),
		"an Anthropic key": "sk-" + "ant-api03-" + x(40), "an OpenAI key": "sk-" + "proj-" + x(40), "a Google API key": "AI" + "za" + x(35),
		"a Stripe key": "sk_" + "live_" + x(24), "an npm token": "np" + "m_" + x(36), "a PyPI token": "py" + "pi-" + x(60),
		"a JSON Web Token": "ey" + "J" + x(20) + ".ey" + "J" + x(20) + "." + x(10), "a Hugging Face token": "h" + "f_" + x(34),
		"a URL with a password": "postgres://user:" + x(12) + "@db.test/x", "a Docker token": "dckr" + "_pat_" + x(24),
		"a Slack webhook": "https://hooks.slack" + ".com/services/" + x(24), "an OpenRouter key": "sk-or" + "-v1-" + strings.Repeat("0a", 32),
		"a Google OAuth token": "ya" + "29." + x(24), "a Vault token": "hv" + "s." + x(24),
		"a DigitalOcean token": "dop" + "_v1_" + strings.Repeat("0a", 32), "a SendGrid key": "S" + "G." + x(20) + "." + x(24),
	}
}

func TestSecretShapedEnv(t *testing.T) {
	for kind, value := range fakeTokens() {
		for name, ceiling := range Default() {
			w := small()
			w.Env = []string{"TOKEN=" + value, "JSON={\"key\": \"" + value + "\"}", "OK=hello"}
			faults, warnings := ceiling.Admit(w)
			got, other := faults, warnings
			if name == Trusted {
				got, other = warnings, faults
			}
			if len(got) != 2 || len(other) != 0 || !strings.Contains(got.Error(), "-e TOKEN: the value looks like "+kind) {
				t.Errorf("%s: %s: %v %v", name, kind, faults, warnings)
			}
			if strings.Contains(got.Error()+fmt.Sprintf("%#v", got), value) {
				t.Errorf("%s: %s: the value is printed", name, kind)
			}
		}
	}
	for _, harmless := range []string{"", "hello", "/usr/bin:/bin", "sk-short", "https://example.com/a:b@c", "ghp_short", "debian:12",
		"3f786850e387550fdab836ed7e6dc881de23001b", "npm_config_cache", "task-force-of-the-kind-that-has-a-long-name"} {
		if kind := SecretShape(harmless); kind != "" {
			t.Errorf("%q is taken for %s", harmless, kind)
		}
	}
}

func TestParseFaults(t *testing.T) {
	text := string(DefaultText())
	for _, c := range []struct{ old, new, want string }{
		{"version: 1", "version: 2", "version 2 is not known"},
		{"  trusted:", "  root:", "want exactly restricted, trusted, untrusted"},
		{"memory: 2GiB", "memory: 2G", "size"},
		{"pids: 512", "pids: -1", "untrusted: a number is negative"},
		{"pids: 512", "pidss: 512", "pidss"},
		{"wildcards: none", "wildcards: some", "wildcards"},
		{"protocols: [tls] ", "protocols: [quic] ", "protocol \"quic\""},
		{"secret_env: refuse ", "secret_env: drop ", "secret_env"},
		{"publish: none ", "publish: all ", "publish"},
		{"lifetime: 1h", "lifetime: soon", "soon"},
		{"pids: 512", "pids: 512\n    pids: 1", "already defined"},
	} {
		changed := strings.Replace(text, c.old, c.new, 1)
		if changed == text {
			t.Fatalf("%q is not in the file", c.old)
		}
		if _, err := Parse([]byte(changed)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %s", c.new, err, c.want)
		}
	}
	if _, err := Parse(nil); err == nil {
		t.Error("an empty file is taken")
	}
}

func TestEveryShapeIsTested(t *testing.T) {
	for _, s := range shapes {
		if fakeTokens()[s.kind] == "" {
			t.Errorf("%s has no example", s.kind)
		}
	}
}

func TestHide(t *testing.T) {
	for kind, value := range fakeTokens() {
		got := HideAll([]string{"curl", "-H", "Authorization: Bearer " + value + " beside-it"})
		want := []string{"curl", "-H", "[hidden: it looks like " + kind + "]"}
		if !slices.Equal(got, want) {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func FuzzSecretShape(f *testing.F) {
	for _, v := range fakeTokens() {
		f.Add(v)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if kind := SecretShape(s); len(s) > 60 && strings.Contains(kind, s) {
			t.Fatal("the value is given back")
		}
	})
}
