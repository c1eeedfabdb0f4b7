package cli

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"creel/internal/engine"
	"creel/internal/standby"
)

// A refill that cannot be started is said, and is no fault of the task that has
// ended.
func TestRefillThatFailsIsAWarning(t *testing.T) {
	dir := t.TempDir()
	e := engine.New(engine.Options{
		Dir: dir, Standby: &standby.Pool{Dir: filepath.Join(dir, "standby"), Size: 1, Command: []string{filepath.Join(dir, "nothing")}},
		Log: slog.New(slog.DiscardHandler),
	})
	said, err := os.Create(filepath.Join(dir, "said"))
	if err != nil {
		t.Fatal(err)
	}
	defer said.Close()
	refill(Env{Streams: Streams{Err: said}}, &App{Engine: e}, &engine.Sandbox{})
	text, err := os.ReadFile(said.Name())
	if err != nil || !strings.Contains(string(text), "creel: warning: no VM will wait for the next task: start a waiting VM") {
		t.Errorf("it says %q, %v", text, err)
	}
}
