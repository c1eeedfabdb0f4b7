package blob

import (
	"strings"
	"testing"
	"testing/fstest"
)

func TestAgent(t *testing.T) {
	t.Run("built", func(t *testing.T) {
		elf, err := agent(fstest.MapFS{"bin/creel-guest": {Data: []byte("\x7fELF")}})
		if err != nil || string(elf) != "\x7fELF" {
			t.Fatalf("agent = %q, %v", elf, err)
		}
	})
	t.Run("not built", func(t *testing.T) {
		elf, err := agent(fstest.MapFS{"bin/.gitignore": {}})
		if elf != nil || err == nil || !strings.Contains(err.Error(), "make build") {
			t.Fatalf("agent = %q, %v, want an error that says what to do", elf, err)
		}
	})
}
