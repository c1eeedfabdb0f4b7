package engine

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"creel/internal/image"
	"creel/internal/sandbox"

	"golang.org/x/sys/unix"
)

// processFor merges a Spec with its image's configuration as Docker does: an
// entrypoint of the Spec discards the image's command, a command of the Spec
// replaces it, and the Spec's variables win over the image's.
func processFor(spec sandbox.Spec, cfg image.Config) (sandbox.Process, error) {
	entrypoint, command := cfg.Entrypoint, cfg.Cmd
	if spec.Entrypoint != nil {
		entrypoint, command = spec.Entrypoint, nil
	}
	if len(spec.Command) > 0 {
		command = spec.Command
	}
	args := append(append([]string{}, entrypoint...), command...)
	if len(args) == 0 {
		return sandbox.Process{}, errors.New("no command: the image names none; give one after the image")
	}
	return sandbox.Process{
		Args: args, Env: mergeEnv(cfg.Env, spec.Env),
		Dir:  firstOf(spec.Workdir, cfg.WorkingDir),
		User: firstOf(spec.User, cfg.User),
		TTY:  spec.TTY, Interactive: spec.Interactive,
	}, nil
}

func firstOf(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// mergeEnv keeps the last value of each name, at the name's first place.
func mergeEnv(lists ...[]string) []string {
	var out []string
	at := map[string]int{}
	for _, list := range lists {
		for _, entry := range list {
			name, _, _ := strings.Cut(entry, "=")
			if i, seen := at[name]; seen {
				out[i] = entry
				continue
			}
			at[name] = len(out)
			out = append(out, entry)
		}
	}
	return out
}

// stopSignal reads "SIGTERM", "TERM" or "15"; empty is SIGTERM.
func stopSignal(s string) (int, error) {
	if s == "" {
		return int(unix.SIGTERM), nil
	}
	return ParseSignal(s)
}

// ParseSignal reads a signal's name, with or without SIG, or its number.
func ParseSignal(s string) (int, error) {
	if n, err := strconv.Atoi(s); err == nil && n >= 1 && n <= 64 {
		return n, nil
	}
	name := strings.ToUpper(s)
	if n := unix.SignalNum(name); n != 0 {
		return int(n), nil
	}
	if n := unix.SignalNum("SIG" + name); n != 0 {
		return int(n), nil
	}
	return 0, fmt.Errorf("signal %q is not known; want a name such as TERM, or 1 to 64", s)
}
