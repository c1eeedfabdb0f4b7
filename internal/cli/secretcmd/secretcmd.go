// Package secretcmd is the commands about secrets. A value comes in on standard
// input, or from a source that the store asks. The package must not print a
// value, and must not take one from the command line, where every user of the
// machine can read it.
package secretcmd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"creel/internal/cli/command"
	"creel/internal/secret"
	"creel/internal/secret/store"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// Env is what the commands need of the rest.
type Env struct {
	command.Streams
	Open func(context.Context) (*store.Store, error)
	// AuditDir is where the record of uses is, whether or not it is there.
	AuditDir func() (string, error)
	// Push gives running sandboxes that use one of the secrets its new value,
	// and returns how many there were; nil where nothing can be running.
	Push func(ctx context.Context, names []string) (sandboxes int, err error)
}

// New is `creel secret`.
func New(env Env) *cobra.Command {
	return command.Group("secret", "Manage the credentials that tasks use without having them",
		newSet(env), newList(env), newRemove(env), newRotate(env), newCheck(env))
}

// setFlags are the words that make a [store.Request].
type setFlags struct {
	from, as, prefix, env, file, maxAge, ca string
	hosts, methods, paths, in, upstreams    []string
	clear                                   bool
}

func newSet(env Env) *cobra.Command {
	var f setFlags
	c := &cobra.Command{
		Use: "set [flags] NAME", Short: "Make a secret, or replace one with its binding; the value comes from standard input",
		Long: "Make a secret, or replace value, source and binding of one that is there.\n\n" +
			"The value is read from standard input, without echo from a terminal, and kept\n" +
			"encrypted. With --from it stays elsewhere and is asked for at each launch:\n" +
			"  --from env:NAME, file:PATH, keyring:SERVICE/USER, 'command:pass show NAME'\n" +
			"  --from 'command:[\"op\", \"read\", \"op://a vault/item/field\"]'\n" +
			"A command runs without a shell; its words are apart by blanks, or a JSON list.\n\n" +
			"--as says how the value gets into requests to the hosts:\n" +
			"  header:NAME, bearer, basic:USER, query:NAME\n" +
			"  stand-in: the sandbox has a random value of the same shape, in a variable\n" +
			"  (--env) or a file (--file), which is swapped on the way out\n\n" +
			"A policy sends it to the hosts, by TLS. One that has an upstream is refused unless\n" +
			"--upstream names it, and one without TLS unless --clear is given.",
		Example: "  creel secret set api --host api.example.com --as bearer <key.txt\n" +
			"  creel secret set model --host api.example.com --as stand-in --env API_KEY --max-age 90d <key.txt\n" +
			"  creel secret set git --host git.example.com --as basic:x-access-token --from \"file:$PWD/key.txt\"\n" +
			"  creel secret set api --host api.example.com --as bearer --upstream gateway.example.com:8443 <key.txt",
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error { return set(c.Context(), env, args[0], f) },
	}
	fs := c.Flags()
	fs.StringVar(&f.from, "from", store.Age, "`source` of the value; age is standard input, kept encrypted")
	fs.StringSliceVar(&f.hosts, "host", nil, "`host` that it may be sent to, *.NAME or **.NAME; may be repeated")
	fs.StringSliceVar(&f.methods, "method", nil, "`method` that it may be used with, in capitals (default: every one)")
	fs.StringSliceVar(&f.paths, "path", nil, "`path` that it may be used with, as in policies (default: every one)")
	fs.StringSliceVar(&f.upstreams, "upstream", nil, "`HOST:PORT` that a policy may send it to instead of the host; may be repeated (default: none)")
	fs.StringVar(&f.ca, "upstream-ca", "", "PEM `file` that a policy must have the upstreams trusted by (default: the system's)")
	fs.BoolVar(&f.clear, "clear", false, "a policy may have it sent without TLS, where everybody on the way can read it")
	fs.StringVar(&f.as, "as", "", "how it is used: header:NAME, bearer, basic:USER, query:NAME or stand-in")
	fs.StringVar(&f.prefix, "prefix", "", "`text` before the value in a header, such as \"token \"")
	fs.StringVar(&f.env, "env", "", "`variable` of the sandbox that holds the stand-in")
	fs.StringVar(&f.file, "file", "", "absolute `path` in the sandbox of a file that holds the stand-in")
	fs.StringSliceVar(&f.in, "in", nil, "`place` where the stand-in is swapped, header:NAME or query:NAME (default: "+strings.Join(secret.DefaultPlaces(), ", ")+")")
	fs.StringVar(&f.maxAge, "max-age", "", "`time` after which the value has to be rotated, such as 90d")
	return c
}

// request reads the flags; its faults are all returned at once.
func (f setFlags) request(name string) (store.Request, error) {
	var errs []error
	fault := func(flag string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", flag, err))
		}
	}
	source, err := store.ParseSource(f.from)
	fault("--from", err)
	maxAge, err := command.ParseAge(f.maxAge)
	fault("--max-age", err)
	if f.as == "" {
		fault("--as", errors.New("say how the secret is used: header:NAME, bearer, basic:USER, query:NAME or stand-in"))
	}
	if len(f.hosts) == 0 {
		fault("--host", errors.New("name the hosts that the secret is for"))
	}
	use := secret.Use{Prefix: f.prefix, Env: f.env, File: f.file, In: f.in}
	var word string
	use.As, word, _ = strings.Cut(f.as, ":")
	switch {
	case use.As == secret.AsBasic:
		use.User = word
	case use.As == secret.AsHeader, use.As == secret.AsQuery:
		use.Name = word
	case word != "":
		fault("--as", fmt.Errorf("%q: nothing may follow %s", f.as, use.As))
	}
	binding := secret.Binding{Hosts: f.hosts, Methods: f.methods, Paths: f.paths, Upstreams: f.upstreams, Clear: f.clear, Use: use}
	if f.ca != "" {
		pem, err := command.ReadBounded(f.ca, secret.MaxBytes*4)
		fault("--upstream-ca", err)
		binding.CA = strings.TrimSpace(string(pem)) + "\n" // as package syntax has it
	}
	return store.Request{Name: name, Source: source, Binding: binding, MaxAge: maxAge}, errors.Join(errs...)
}

func set(ctx context.Context, env Env, name string, f setFlags) error {
	r, err := f.request(name)
	if err != nil {
		return err
	}
	// Before anybody types a value for nothing.
	if err := errors.Join(secret.CheckName(name), store.CheckBinding(&r.Binding)); err != nil {
		return err
	}
	s, err := env.Open(ctx)
	if err != nil {
		return err
	}
	if r.Source.Kind == store.Age {
		if r.Value, err = readValue(env, name); err != nil {
			return err
		}
	}
	replaced, err := s.Set(ctx, r)
	if err != nil {
		return err
	}
	fmt.Fprintf(env.Out, "set %s\n", name)
	if r.Source.Kind != store.Age {
		if _, err := s.Resolve(ctx, []string{name}); err != nil {
			fmt.Fprintf(env.Err, "creel: warning: it is set, but cannot be used as things are: %v\n", err)
			return nil
		}
	}
	if !replaced {
		return nil
	}
	return push(ctx, env, name)
}

// readValue reads a value from standard input: what a person types, unseen, or
// all there is. One newline at its end is not part of it.
func readValue(env Env, name string) (secret.Value, error) {
	var data []byte
	var err error
	if fd := int(env.In.Fd()); term.IsTerminal(fd) {
		fmt.Fprintf(env.Err, "value of %s: ", name)
		data, err = term.ReadPassword(fd)
		fmt.Fprintln(env.Err)
	} else {
		data, err = io.ReadAll(io.LimitReader(env.In, secret.MaxBytes+int64(len("\r\n"))+1))
	}
	if err != nil {
		return secret.Value{}, fmt.Errorf("read the value from standard input: %w", err)
	}
	v, err := secret.NewValue(store.CutNewline(string(data)))
	if err != nil {
		return v, fmt.Errorf("standard input: %w", err)
	}
	return v, nil
}

// push says what became of sandboxes that had the old value.
func push(ctx context.Context, env Env, name string) error {
	if env.Push == nil {
		return nil
	}
	n, err := env.Push(ctx, []string{name})
	if n > 0 {
		fmt.Fprintf(env.Out, "pushed to %d running\n", n)
	}
	if err != nil {
		return fmt.Errorf("the new value is kept, but running sandboxes may have the old one: %w", err)
	}
	return nil
}

func newRotate(env Env) *cobra.Command {
	return &cobra.Command{
		Use: "rotate NAME", Short: "Give a secret a new value, also in sandboxes that run; its binding stays",
		Long: "Give a secret a new value. Its binding stays, its age begins anew, and sandboxes\n" +
			"that run get it at once. The value is read from standard input where the store\n" +
			"keeps it; otherwise its source is asked for what it has now.",
		Example: "  creel secret rotate api <key.txt",
		Args:    cobra.ExactArgs(1), ValidArgsFunction: completeNames(env),
		RunE: func(c *cobra.Command, args []string) error {
			s, err := env.Open(c.Context())
			if err != nil {
				return err
			}
			e, err := s.Get(args[0])
			if err != nil {
				return err
			}
			var v secret.Value
			if e.Source.Kind == store.Age {
				if v, err = readValue(env, e.Name); err != nil {
					return err
				}
			}
			if err := s.Rotate(c.Context(), e.Name, v); err != nil {
				return err
			}
			fmt.Fprintf(env.Out, "rotated %s\n", e.Name)
			return push(c.Context(), env, e.Name)
		},
	}
}

// completeNames offers the names of secrets to the shell.
func completeNames(env Env) cobra.CompletionFunc {
	return func(c *cobra.Command, _ []string, _ string) (names []string, _ cobra.ShellCompDirective) {
		s, err := env.Open(c.Context())
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		entries, _ := s.List() // one that cannot be read has no name to offer
		for _, e := range entries {
			names = append(names, e.Name)
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}

func newRemove(env Env) *cobra.Command {
	return &cobra.Command{
		Use: "rm NAME...", Short: "Forget secrets; sandboxes that run keep what they were given",
		Example: "  creel secret rm api git",
		Args:    cobra.MinimumNArgs(1), ValidArgsFunction: completeNames(env),
		RunE: func(c *cobra.Command, args []string) error {
			s, err := env.Open(c.Context())
			if err != nil {
				return err
			}
			removed, err := s.Remove(c.Context(), args)
			for _, name := range removed {
				fmt.Fprintf(env.Out, "removed %s\n", name)
			}
			return err
		},
	}
}
