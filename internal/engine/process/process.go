// Package process says what a sandbox's first process is: a Spec and its
// image's configuration, put together as Docker does, with the signal that
// stops it. The package must not know images beyond their configuration, and
// must not start anything.
package process

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"creel/internal/image"
	"creel/internal/sandbox"
)

// For merges a Spec with its image's configuration as Docker does: an
// entrypoint of the Spec discards the image's command, a command of the Spec
// replaces it, and the Spec's variables win over the image's.
func For(spec sandbox.Spec, cfg image.Config) (sandbox.Process, error) {
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
		Dir:  cmp.Or(spec.Workdir, cfg.WorkingDir),
		User: cmp.Or(spec.User, cfg.User),
		TTY:  spec.TTY, Interactive: spec.Interactive,
	}, nil
}

// Beside completes one more process in a sandbox as Docker does: its variables
// win over the task's, and it has the task's user and directory unless it says
// otherwise.
func Beside(task, p sandbox.Process) sandbox.Process {
	p.Env = append(slices.Clone(task.Env), p.Env...)
	p.User = cmp.Or(p.User, task.User)
	p.Dir = cmp.Or(p.Dir, task.Dir)
	return p
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

// StopSignal reads "SIGTERM", "TERM" or "15"; empty is SIGTERM.
func StopSignal(s string) (int, error) {
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
	name := strings.TrimPrefix(strings.ToUpper(s), "SIG")
	if n := unix.SignalNum("SIG" + name); n != 0 {
		return int(n), nil
	}
	if n, ok := realTime(name); ok {
		return n, nil
	}
	return 0, fmt.Errorf("signal %q is not known; want a name such as TERM, or 1 to 64", s)
}

// realTime reads RTMIN, RTMIN+n, RTMAX and RTMAX-n, counted as the C library
// does: images with systemd ask to be stopped by RTMIN+3.
func realTime(name string) (int, bool) {
	const least, most = 34, 64
	base, sign, rest := least, "+", ""
	switch {
	case strings.HasPrefix(name, "RTMIN"):
		rest = name[len("RTMIN"):]
	case strings.HasPrefix(name, "RTMAX"):
		base, sign, rest = most, "-", name[len("RTMAX"):]
	default:
		return 0, false
	}
	if rest == "" {
		return base, true
	}
	offset, err := strconv.ParseUint(strings.TrimPrefix(rest, sign), 10, 8)
	if err != nil || rest[:1] != sign || offset > most-least {
		return 0, false
	}
	if sign == "-" {
		return base - int(offset), true
	}
	return base + int(offset), true
}
