package integration

import (
	"crypto/rand"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"creel/internal/audit/event"
	"creel/test/images"
	"creel/test/rig"

	"github.com/google/go-cmp/cmp"
)

// agentPatience is how long an agent may take: half a minute where it has the
// machine for itself, and agents give up requests on their own clocks.
const agentPatience = 3 * rig.Patience

// TestAgents lets agents as they are published do a task in a MicroVM, with a
// key that they do not have, by the policies and commands of examples/.
func TestAgents(t *testing.T) {
	r := machines(t)
	tar, err := images.Agents(t.Context())
	if err != nil {
		t.Skipf("there is no image of agents: %v", err)
	}
	r.Must(t, "image", "import", tar, "agents")
	t.Cleanup(func() { r.Must(t, "image", "rm", "agents") }) // it is large
	r.Must(t, "template", "build", "-m", "2g", "--cpus", "2", "agents")
	t.Run("claude", func(t *testing.T) { claudeWorks(t, r) })
	t.Run("codex", func(t *testing.T) { codexWorks(t, r) })
}

func claudeWorks(t *testing.T, r *rig.Rig) {
	const host = "api.anthropic.com"
	key := "sk-ant-api03-" + rand.Text() + rand.Text()
	s := serve(t, map[string]string{host: key}, messages("echo written by a tool >/root/proof"))
	s.setSecret(t, r, "anthropic-key", key, "--host", host, "--as", "stand-in", "--env", "ANTHROPIC_API_KEY", "--in", "header:X-Api-Key")
	got := r.RunWithin(t, agentPatience, strings.NewReader("write the proof"), "run", "-i", "--name", "claude", "--policy", example(t, s, "claude.yaml"),
		"-m", "2g", "--cpus", "2", "-e", "IS_SANDBOX=1", "-e", "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC=1", "agents",
		"sh", "-c", `claude -p --dangerously-skip-permissions --output-format json && cat /root/proof && echo "$ANTHROPIC_API_KEY"`)
	said := lines(got.Out)
	if got.Code != 0 || len(said) != 3 {
		t.Fatalf("exit code %d: %q %s", got.Code, said, got.Err)
	}
	var result struct {
		Subtype, Result string
		Turns           int  `json:"num_turns"`
		IsError         bool `json:"is_error"`
	}
	if err := json.Unmarshal([]byte(said[0]), &result); err != nil || result.Turns != 2 || result.IsError || result.Subtype != "success" {
		t.Errorf("it ended with %s (%v)", said[0], err)
	}
	checkWork(t, key, result.Result, said)
	checkRecord(t, r, s, "claude", []string{"POST /v1/messages", "POST /v1/messages"})
}

// Codex has its first turn over a WebSocket, and the second by POST.
func codexWorks(t *testing.T, r *rig.Rig) {
	const host = "api.openai.com"
	key := "sk-proj-" + rand.Text() + rand.Text()
	s := serve(t, map[string]string{host: key}, responses("echo written by a tool >/root/proof"))
	s.setSecret(t, r, "openai-key", key, "--host", host, "--as", "stand-in", "--env", "CODEX_API_KEY", "--in", "header:Authorization")
	got := r.RunWithin(t, agentPatience, nil, "run", "--name", "codex", "--policy", example(t, s, "codex.yaml"), "-m", "2g", "--cpus", "2", "agents", "sh", "-c",
		`codex exec --dangerously-bypass-approvals-and-sandbox --skip-git-repo-check 'write the proof' && cat /root/proof && echo "$CODEX_API_KEY"`)
	said := lines(got.Out)
	if got.Code != 0 || len(said) != 3 || strings.Contains(got.Err, key) {
		t.Fatalf("exit code %d: %q %s", got.Code, said, got.Err)
	}
	checkWork(t, key, said[0], said)
	checkRecord(t, r, s, "codex", []string{"GET /v1/responses websocket", "GET /v1/responses websocket", "POST /v1/responses"})
}

// example is a policy of examples/ with its one rule leading to a stand-in of
// the destination.
func example(t *testing.T, s *service, name string) (file string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("../../examples", name))
	if err != nil {
		t.Fatal(err)
	}
	_, policy, _ := strings.Cut(string(text), "\nversion: 1\n")
	rules, tests, found := strings.Cut(policy, "tests:\n")
	if !found || strings.Count(rules, "- allow:") != 1 {
		t.Fatalf("%s has not one rule and tests", name)
	}
	return s.policy(t, rules+"    upstream: UPSTREAM\ntests:\n"+tests)
}

// checkWork looks at what a task said: the model's last words, the file that
// its tool wrote, and what it has for a key.
func checkWork(t *testing.T, key, words string, said []string) {
	t.Helper()
	if want := "all done with " + strings.Repeat("*", len(key)); words != want {
		t.Errorf("the model's last words are %q, want %q", words, want)
	}
	if said[1] != "written by a tool" {
		t.Errorf("the file has %q", said[1])
	}
	if standIn := said[2]; len(standIn) != len(key) || standIn == key || standIn[:7] != key[:7] {
		t.Errorf("the key in the sandbox is %q", standIn)
	}
	if strings.Contains(strings.Join(said, "\n"), key) {
		t.Error("the task got the key")
	}
}

// checkRecord compares what arrived, each with the one right key, with what
// should have, and with what is on record.
func checkRecord(t *testing.T, r *rig.Rig, s *service, sandbox string, want []string) {
	t.Helper()
	var arrived, recorded []string
	for _, a := range s.arrivals { // the run is over
		if keyIn(a.Header) != s.key(a.Host) {
			t.Errorf("%s %s came with the key %q", a.Method, a.Path, keyIn(a.Header))
		}
		arrived = append(arrived, strings.TrimSpace(a.Method+" "+a.Path+" "+a.Header.Get("Upgrade")))
	}
	if diff := cmp.Diff(want, arrived); diff != "" {
		t.Errorf("what arrived (-want +got):\n%s", diff)
	}
	for _, u := range recordsOf[event.Secret](t, r, sandbox, "secret") {
		recorded = append(recorded, u.As+" of "+u.Host)
	}
	if len(recorded) != len(want) || len(arrived) == 0 || recorded[0] != "stand-in of "+s.arrivals[0].Host {
		t.Errorf("uses of the secret on record: %q", recorded)
	}
}
