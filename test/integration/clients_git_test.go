package integration

import (
	"net/http"
	"net/http/cgi"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// serveGit puts a repository with one commit at /CLIENT/repo.git of the world.
// It is guarded by what guard says.
func serveGit(t *testing.T, w *world) (dir string) {
	t.Helper()
	dir = t.TempDir()
	git(t, "", "init", "-q", "--bare", "-b", "main", filepath.Join(dir, "repo.git"))
	git(t, dir, "--git-dir=repo.git", "config", "http.receivepack", "true")
	work := filepath.Join(dir, "work")
	git(t, "", "init", "-q", "-b", "main", work)
	if err := os.WriteFile(filepath.Join(work, "file"), []byte("of the repository\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	git(t, work, "add", ".")
	git(t, work, "-c", "user.name=A", "-c", "user.email=a@example.com", "commit", "-qm", "first")
	git(t, work, "push", "-q", "../repo.git", "main")
	backend := strings.TrimSpace(git(t, "", "--exec-path")) + "/git-http-backend"
	w.mux.HandleFunc("/{client}/repo.git/", func(rw http.ResponseWriter, r *http.Request) {
		handler := cgi.Handler{
			Path: backend, Root: "/" + r.PathValue("client"), InheritEnv: []string{"PATH"},
			Env: []string{"GIT_PROJECT_ROOT=" + dir, "GIT_HTTP_EXPORT_ALL=1"}, Stderr: t.Output(),
		}
		handler.ServeHTTP(rw, r)
	})
	return dir
}

// git runs a command of this machine's git, without its user's settings.
func git(t *testing.T, dir string, args ...string) string {
	t.Helper()
	cmd := exec.Command("git", args...)
	cmd.Dir = dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null"}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("git %q: %v: %s", args, err, out)
	}
	return string(out)
}
