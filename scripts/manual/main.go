// Command manual writes a man page for every command, and shell completions,
// from the command tree itself, for the package that `make dist` makes.
package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"creel/internal/cli"
	"creel/internal/cli/manual"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: manual DIRECTORY")
		os.Exit(2)
	}
	if err := write(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "manual:", err)
		os.Exit(1)
	}
}

// write puts files where Debian looks for them below dir/usr/share.
func write(dir string) error {
	share := filepath.Join(dir, "usr", "share")
	root := cli.Root(cli.Env{Logging: &cli.Logging{}})
	return errors.Join(
		manual.Write(root, filepath.Join(share, "man", "man1")),
		completion(filepath.Join(share, "bash-completion/completions/creel"), func(f *os.File) error { return root.GenBashCompletionV2(f, true) }),
		completion(filepath.Join(share, "zsh/vendor-completions/_creel"), func(f *os.File) error { return root.GenZshCompletion(f) }),
		completion(filepath.Join(share, "fish/vendor_completions.d/creel.fish"), func(f *os.File) error { return root.GenFishCompletion(f, true) }),
	)
}

func completion(path string, generate func(*os.File) error) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	if err := errors.Join(generate(f), f.Close()); err != nil {
		return fmt.Errorf("write completion %s: %w", path, err)
	}
	return nil
}
