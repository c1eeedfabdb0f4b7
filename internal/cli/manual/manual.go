// Package manual writes the man pages of a command tree, and `creel docs`, which
// writes those of the creel that is there. The package must not describe
// anything that the commands do not say themselves.
package manual

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"creel/internal/cli/command"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

// Write puts a man page for every command into dir, which it makes where it is
// missing. The pages' date is SOURCE_DATE_EPOCH, or today.
func Write(root *cobra.Command, dir string) error {
	root.DisableAutoGenTag = true
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("write man pages: %w", err)
	}
	header := &doc.GenManHeader{Section: "1", Source: "Creel", Manual: "Creel"}
	if err := doc.GenManTree(root, header, dir); err != nil {
		return fmt.Errorf("write man pages: %w", err)
	}
	return nil
}

// New is `creel docs`. Its pages are of the tree that it is a part of.
func New(s command.Streams) *cobra.Command {
	return command.Group("docs", "Write the manual of this creel",
		&cobra.Command{
			Use: "man DIRECTORY", Short: "Write a man page for every command into a directory",
			Long: "Write a man page for every command into a directory, section 1. A man that finds\n" +
				"~/.local/bin in PATH looks for pages in ~/.local/share/man/man1.",
			Example: "  creel docs man ~/.local/share/man/man1\n  creel docs man man1 && man ./man1/creel-run.1",
			Args:    cobra.ExactArgs(1),
			RunE: func(c *cobra.Command, args []string) error {
				if err := Write(c.Root(), args[0]); err != nil {
					return err
				}
				pages, err := filepath.Glob(filepath.Join(args[0], strings.ToLower(c.Root().Name())+"*.1"))
				if err != nil {
					return err
				}
				_, err = fmt.Fprintf(s.Out, "wrote %d pages to %s\n", len(pages), args[0])
				return err
			},
		},
	)
}
