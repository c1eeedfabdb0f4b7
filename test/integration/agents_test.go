package integration

import (
	"crypto/rand"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"creel/test/images"
	"creel/test/rig"
)

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

// example is a policy of examples/ with its one rule leading to a stand-in.
func example(t *testing.T, name string, s *service) (file string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("../../examples", name))
	if err != nil {
		t.Fatal(err)
	}
	rules, tests, found := strings.Cut(string(text), "tests:\n")
	if !found || strings.Count(rules, "  - allow:") != 1 {
		t.Fatalf("%s has not one rule and tests", name)
	}
	file = filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(file, []byte(rules+s.upstream()+"tests:\n"+tests), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// checkKeyStays wants a secret used so many times, on record, taken out of what
// the task said, and the stand-in, which the task tells last, to look like it.
func checkKeyStays(t *testing.T, r *rig.Rig, name, key string, uses int, got rig.Result) {
	t.Helper()
	used := strings.Count(r.Must(t, "audit", "query", "--sandbox", name, "--kind", "secret", "--json"), `"as":"stand-in"`)
	if used != uses {
		t.Errorf("the secret's use is %d times on record, want %d", used, uses)
	}
	if strings.Contains(got.Out+got.Err, key) {
		t.Error("the task got the key")
	}
	if !strings.Contains(got.Out, "all done with "+strings.Repeat("*", len(key))) {
		t.Error("the key was not taken out of what the service told")
	}
	said := lines(got.Out)
	if standIn := said[len(said)-1]; len(standIn) != len(key) || standIn == key || standIn[:7] != key[:7] {
		t.Errorf("the stand-in is %q", standIn)
	}
}

func claudeWorks(t *testing.T, r *rig.Rig) {
	key := "sk-ant-api03-" + rand.Text() + rand.Text()
	s := serve(t, key, messages("echo written by a tool >/root/proof"))
	setSecret(t, r, "anthropic-key", key, "--host", "api.anthropic.com", "--as", "stand-in", "--env", "ANTHROPIC_API_KEY", "--in", "header:X-Api-Key")
	got := r.RunIn(t, strings.NewReader("write the proof"), "run", "-i", "--name", "claude", "--policy", example(t, "claude.yaml", s),
		"-m", "2g", "--cpus", "2", "-e", "IS_SANDBOX=1", "-e", "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC=1", "agents",
		"sh", "-c", `claude -p --dangerously-skip-permissions --output-format json && cat /root/proof && echo "$ANTHROPIC_API_KEY"`)
	said := lines(got.Out)
	if got.Code != 0 || len(said) != 3 {
		t.Fatalf("exit code %d: %q %s\nasked: %q", got.Code, said, got.Err, s.asked())
	}
	var result struct {
		Subtype string
		Turns   int  `json:"num_turns"`
		IsError bool `json:"is_error"`
	}
	if err := json.Unmarshal([]byte(said[0]), &result); err != nil || result.Turns != 2 || result.IsError || result.Subtype != "success" {
		t.Errorf("it ended with %s (%v)", said[0], err)
	}
	if said[1] != "written by a tool" {
		t.Errorf("the file has %q", said[1])
	}
	turn := "POST api.anthropic.com/v1/messages 200"
	if asked := s.asked(); !slices.Equal(asked, []string{turn, turn}) {
		t.Errorf("the service was asked %q", asked)
	}
	checkKeyStays(t, r, "claude", key, 2, got)
}

// Codex has its first turn over a WebSocket, the second by POST.
func codexWorks(t *testing.T, r *rig.Rig) {
	key := "sk-proj-" + rand.Text() + rand.Text()
	s := serve(t, key, responses("echo written by a tool >/root/proof"))
	setSecret(t, r, "openai-key", key, "--host", "api.openai.com", "--as", "stand-in", "--env", "CODEX_API_KEY", "--in", "header:Authorization")
	got := r.Run(t, "run", "--name", "codex", "--policy", example(t, "codex.yaml", s), "-m", "2g", "--cpus", "2", "agents", "sh", "-c",
		`codex exec --dangerously-bypass-approvals-and-sandbox --skip-git-repo-check 'write the proof' && cat /root/proof && echo "$CODEX_API_KEY"`)
	said := lines(got.Out)
	if got.Code != 0 || len(said) != 3 || said[1] != "written by a tool" {
		t.Errorf("exit code %d: %q %s\nasked: %q", got.Code, said, got.Err, s.asked())
	}
	socket, post := "GET api.openai.com/v1/responses 200 websocket", "POST api.openai.com/v1/responses 200"
	asked := s.asked()
	if len(asked) < 2 || asked[0] != socket || asked[len(asked)-1] != post {
		t.Errorf("the service was asked %q", asked)
	}
	checkKeyStays(t, r, "codex", key, len(asked), got)
}
