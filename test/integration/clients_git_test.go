package integration

import (
	"crypto/ed25519"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/cgi"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"creel/internal/audit/event"

	"golang.org/x/crypto/ssh"
)

// What a task may do with repositories, by path: both ways begin with GET
// …/info/refs, and what is behind its '?' is no part of a path. So reading and
// the beginning of a push are allowed everywhere, and what a push then sends
// only to one repository.
const gitPolicy = `
rules:
  - allow: git.example.com
    name: read
    paths: ["/*/repo.git/info/refs", "/*/repo.git/git-upload-pack"]
    secret: git-key
    upstream: UPSTREAM
  - allow: git.example.com
    name: push
    methods: POST
    paths: "/mine/repo.git/git-receive-pack"
    secret: git-key
    upstream: UPSTREAM
  - allow: git.example.com
    name: ssh
    ports: 22
    upstream: {address: %q}
`

// git clones, fetches and pushes with a credential that it does not have, and
// pushes only where a rule lets it; over ssh it is known by name as well.
func TestClientsGit(t *testing.T) {
	r, image := clients(t)
	w := newWorld(t)
	dir := serveGit(t, w)
	key := keepSecret(t, r, w, "git-key", "--host", "git.example.com", "--as", "basic:x-access-token")
	w.guard = func(r *http.Request) bool {
		user, password, ok := r.BasicAuth()
		return ok && user == "x-access-token" && password == key
	}
	address, hostKey := serveSSH(t, dir)
	script := `set -e
		export GIT_TERMINAL_PROMPT=0
		git config --global user.name A; git config --global user.email a@example.com
		mkdir -p /root/.ssh; echo "git.example.com ` + hostKey + `" >/root/.ssh/known_hosts
		git clone -q https://git.example.com/mine/repo.git work; cd work; cat file
		echo more >>file; git commit -qam second
		git push -q https://git.example.com/theirs/repo.git main 2>&1 && echo PUSHED || echo "theirs: $?"
		git push -q origin main && echo "mine: $?"
		git fetch -q https://git.example.com/theirs/repo.git main; git log --format=%s FETCH_HEAD
		git clone -q git@git.example.com:repo.git ../by-ssh; cat ../by-ssh/file
		! git clone -q https://other.example.com/mine/repo.git ../other 2>&1`
	got := r.Run(t, "run", "--name", "git", "--policy", w.policy(t, fmt.Sprintf(gitPolicy, address)), image, "sh", "-c", script)
	t.Logf("%s%s", got.Out, got.Err)
	if got.Code != 0 {
		t.Fatalf("exit code %d", got.Code)
	}
	for _, want := range []string{
		"of the repository\n", "The requested URL returned error: 403", "theirs: 1\n", "mine: 0\n", "second\nfirst\n",
		"of the repository\nmore\n", "Could not resolve host: other.example.com",
	} {
		if !strings.Contains(got.Out, want) {
			t.Errorf("the task did not print %q", want)
		}
	}
	if subjects := git(t, filepath.Join(dir, "repo.git"), "log", "--format=%s", "main"); subjects != "second\nfirst\n" {
		t.Errorf("the repository has %q", subjects)
	}
	if strings.Contains(got.Out+got.Err, key) {
		t.Error("the task was shown the key")
	}
	if want := `"POST" git.example.com:443 "/theirs/repo.git/git-receive-pack"`; !strings.Contains(got.Err, want) {
		t.Errorf("at its end the run does not tell of %q", want)
	}
	if all := w.arrived("git.example.com", "/theirs/repo.git/git-receive-pack"); len(all) > 0 {
		t.Errorf("the denied push arrived: %v", all)
	}
	uses := recordsOf[event.Secret](t, r, "git", "secret")
	if all := w.arrived("git.example.com", "/"); len(uses) != len(all) || len(uses) == 0 {
		t.Errorf("%d uses of the key are on record, %d requests arrived", len(uses), len(all))
	}
}

// serveGit puts a repository with one commit at /CLIENT/repo.git of the world,
// whoever the client.
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

// serveSSH gives repo.git to whoever comes; the end of the test stops it.
func serveSSH(t *testing.T, dir string) (address, hostKey string) {
	t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(private)
	if err != nil {
		t.Fatal(err)
	}
	config := &ssh.ServerConfig{NoClientAuth: true}
	config.AddHostKey(signer)
	address = serveStreams(t, func(c net.Conn) error { return sshSession(c, config, filepath.Join(dir, "repo.git")) })
	return address, strings.TrimSpace(string(ssh.MarshalAuthorizedKey(signer.PublicKey())))
}

// sshSession runs git-upload-pack, and nothing else that might be asked for.
func sshSession(c net.Conn, config *ssh.ServerConfig, repository string) error {
	_, channels, requests, err := ssh.NewServerConn(c, config)
	if err != nil {
		return err
	}
	go ssh.DiscardRequests(requests) // ends with the connection
	for wanted := range channels {
		channel, asked, err := wanted.Accept()
		if err != nil {
			return err
		}
		for r := range asked {
			upload := r.Type == "exec" && strings.Contains(string(r.Payload), "git-upload-pack 'repo.git'")
			if r.WantReply {
				r.Reply(upload, nil)
			}
			if !upload {
				continue
			}
			cmd := exec.Command("git", "upload-pack", repository)
			cmd.Stdin, cmd.Stdout, cmd.Stderr = channel, channel, channel.Stderr()
			if err := cmd.Run(); err != nil {
				return err
			}
			channel.SendRequest("exit-status", false, ssh.Marshal(struct{ Code uint32 }{0}))
			channel.Close()
		}
	}
	return nil
}

// serveStreams serves TCP connections on the loopback, each in a goroutine of
// its own; the end of the test ends them. A fault of theirs fails the test, but
// for one that a client brings about by leaving.
func serveStreams(t *testing.T, serve func(net.Conn) error) (address string) {
	t.Helper()
	l := listenLoopback(t)
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer c.Close()
				if err := serve(c); err != nil && err != io.EOF {
					t.Logf("the server on %s ended with %v", l.Addr(), err)
				}
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		serving.Wait()
	})
	return l.Addr().String()
}
