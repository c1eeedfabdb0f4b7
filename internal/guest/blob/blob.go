// Package blob carries the guest agent's binary, which `make build` puts beside
// it before it compiles creel. [Agent] gives it out. The package must not hold
// anything that is committed in the agent's place: a stand-in could be booted
// by mistake.
package blob

import (
	"embed"
	"errors"
	"fmt"
	"io/fs"
)

// The directory, and not the file, is embedded so that a fresh checkout passes
// `go vet` before anything is built.
//
//go:embed all:bin
var files embed.FS

// Agent is the static ELF that runs as PID 1 in every VM. It errs in a binary
// that was compiled without it.
func Agent() ([]byte, error) { return agent(files) }

func agent(from fs.FS) ([]byte, error) {
	elf, err := fs.ReadFile(from, "bin/creel-guest")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errors.New("this creel was compiled without its guest agent; build it with `make build`")
	}
	if err != nil {
		return nil, fmt.Errorf("read embedded guest agent: %w", err)
	}
	return elf, nil
}
