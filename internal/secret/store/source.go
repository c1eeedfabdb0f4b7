package store

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
	"unicode"

	"creel/internal/secret"

	"github.com/zalando/go-keyring"
)

// Kinds of sources.
const (
	Age     = "age"     // the entry itself holds the value, encrypted
	Env     = "env"     // a variable of the process that starts the sandbox
	File    = "file"    // a file of the host
	Command = "command" // what a program prints
	Keyring = "keyring" // the desktop's
)

const (
	commandTime  = 30 * time.Second
	commandGrace = time.Second // for what a killed program leaves running and writing
	keyringTime  = 60 * time.Second
	maxSaid      = 2 << 10 // bytes of standard error in an error
	maxRefBytes  = 4 << 10
)

// Source says where a value comes from.
type Source struct {
	Kind string `json:"kind"`
	// Ref is a variable, an absolute path, or SERVICE/USER of a keyring.
	Ref  string   `json:"ref,omitempty"`
	Args []string `json:"args,omitempty"` // of a command: program and arguments; no shell
}

// ParseSource reads what people write: age, env:NAME, file:PATH,
// keyring:SERVICE/USER, or command: with either words apart by blanks or a
// JSON list of words.
func ParseSource(text string) (Source, error) {
	kind, ref, _ := strings.Cut(text, ":")
	s := Source{Kind: kind, Ref: ref}
	if kind == Command {
		s = Source{Kind: kind, Args: strings.Fields(ref)}
		if strings.HasPrefix(ref, "[") {
			s.Args = nil
			if err := json.Unmarshal([]byte(ref), &s.Args); err != nil {
				return Source{}, fmt.Errorf("source command: a list that begins with [ is one in JSON, such as [\"op\", \"read\", \"op://a vault/key\"]: %w", err)
			}
		}
	}
	return s, s.Validate()
}

// String is the source as ParseSource reads it.
func (s Source) String() string {
	switch {
	case s.Kind == Command:
		line := strings.Join(s.Args, " ")
		if strings.Join(strings.Fields(line), " ") != line || len(strings.Fields(line)) != len(s.Args) || strings.HasPrefix(line, "[") {
			list, _ := json.Marshal(s.Args) // strings cannot fail
			line = string(list)
		}
		return Command + ":" + line
	case s.Ref == "":
		return s.Kind
	}
	return s.Kind + ":" + s.Ref
}

// Validate says what is wrong with a source, without asking it.
func (s Source) Validate() error {
	fault := func(want string) error { return fmt.Errorf("source %.200q: want %s", s.String(), want) }
	service, user, keyring := strings.Cut(s.Ref, "/")
	length := len(s.Ref)
	for _, a := range s.Args {
		length += len(a)
	}
	switch {
	case length > maxRefBytes || strings.Contains(s.Ref+strings.Join(s.Args, ""), "\x00"):
		return fmt.Errorf("source %s: want at most %d bytes and no NUL", s.Kind, maxRefBytes)
	case s.Kind != Command && len(s.Args) > 0 || s.Kind == Command && s.Ref != "":
		return fault("arguments for a command, and only for one")
	case s.Kind == Age && s.Ref != "":
		return fault("nothing after age: the value comes from standard input")
	case s.Kind == Env && (s.Ref == "" || strings.Contains(s.Ref, "=")):
		return fault("env:NAME")
	case s.Kind == File && (!filepath.IsAbs(s.Ref) || filepath.Clean(s.Ref) != s.Ref):
		return fault("file: and an absolute path")
	case s.Kind == Command && (len(s.Args) == 0 || s.Args[0] == ""):
		return fault("command: and a program with its arguments")
	case s.Kind == Keyring && (!keyring || service == "" || user == ""):
		return fault("keyring:SERVICE/USER")
	}
	switch s.Kind {
	case Age, Env, File, Command, Keyring:
		return nil
	}
	return fault("age, env:NAME, file:PATH, command:PROGRAM… or keyring:SERVICE/USER")
}

// value asks an entry's source.
func (s *Store) value(ctx context.Context, e Entry) (secret.Value, error) {
	var text string
	var err error
	switch e.Source.Kind {
	case Age:
		text, err = s.unseal(e.sealed)
		if err != nil {
			return secret.Value{}, err
		}
		return secret.NewValue(text)
	case Env:
		text = os.Getenv(e.Source.Ref)
		if text == "" {
			err = fmt.Errorf("the variable %s is not set here; set it, or choose another source", e.Source.Ref)
		}
	case File:
		var data []byte
		data, err = readFile(e.Source.Ref, secret.MaxBytes+int64(len("\r\n")))
		text = string(data)
	case Command:
		text, err = run(ctx, e.Source.Args)
	case Keyring:
		text, err = ring(ctx, e.Source.Ref)
	}
	if err != nil {
		return secret.Value{}, fmt.Errorf("get it from %s: %w", e.Source.Kind, err)
	}
	return secret.NewValue(CutNewline(text))
}

// CutNewline removes one newline from the end, which editors and programs add.
func CutNewline(text string) string {
	return strings.TrimSuffix(strings.TrimSuffix(text, "\n"), "\r")
}

// run is what a program prints. Its errors have what it said on standard error,
// and nothing of what it printed.
func run(ctx context.Context, args []string) (string, error) {
	ctx, stop := context.WithTimeoutCause(ctx, commandTime, fmt.Errorf("it took longer than %s", commandTime))
	defer stop()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	tooMuch := fmt.Errorf("it printed more than %d bytes, and should print the value alone", secret.MaxBytes)
	out := &bounded{limit: secret.MaxBytes + len("\r\n"), over: func() { cancel(tooMuch) }}
	said := &bounded{limit: maxSaid + out.limit, over: func() {}} // a value in it is in it whole
	// In the user's own process group, so that it can ask on the terminal.
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr, cmd.WaitDelay = out, said, commandGrace
	err := cmd.Run()
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		return "", fmt.Errorf("run %s: %w%s; run it by hand to see", args[0], err, quoted(said.kept.String(), out.kept.String()))
	}
	return out.kept.String(), nil
}

// quoted is what a program said, on one line, without what it printed.
func quoted(said, printed string) string {
	for _, part := range append([]string{strings.TrimSpace(printed)}, strings.Fields(printed)...) {
		if len(part) >= secret.MinBytes {
			said = strings.ReplaceAll(said, part, "[secret]")
		}
	}
	said = said[:min(len(said), maxSaid)]
	said = strings.Join(strings.Fields(strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, said)), " ")
	if said == "" {
		return ""
	}
	return ", saying: " + said
}

// bounded keeps the beginning of what is written. Beyond it, over is called and
// the rest dropped.
type bounded struct {
	kept  bytes.Buffer // not embedded: its ReadFrom knows no bound
	limit int
	over  func()
}

func (b *bounded) Write(p []byte) (int, error) {
	room := min(b.limit-b.kept.Len(), len(p))
	if room < len(p) {
		b.over()
	}
	b.kept.Write(p[:room])
	return len(p), nil
}

// ring asks the desktop's keyring. The library cannot be interrupted: where
// nobody unlocks the keyring, its goroutine stays until the process ends.
func ring(ctx context.Context, ref string) (string, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, keyringTime, errors.New("it did not answer; unlock it"))
	defer cancel()
	type answer struct {
		text string
		err  error
	}
	answers := make(chan answer, 1)
	go func() {
		service, user, _ := strings.Cut(ref, "/")
		text, err := keyring.Get(service, user)
		answers <- answer{text, err}
	}()
	select {
	case a := <-answers:
		if errors.Is(a.err, keyring.ErrNotFound) {
			return "", fmt.Errorf("%s is not in it; put it there, for instance with `secret-tool store`", ref)
		}
		return a.text, a.err
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
}
