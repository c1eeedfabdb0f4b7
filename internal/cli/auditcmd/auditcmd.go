// Package auditcmd is the commands about the audit record and receipts. What
// only reads works on the files alone, also on a copy of them, and on a ledger
// that nothing can be appended to any more. The package must not write a record
// but by rotating the key and pruning.
package auditcmd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"creel/internal/audit"
	"creel/internal/audit/chain"
	"creel/internal/audit/query"
	"creel/internal/audit/receipt"
	"creel/internal/cli/command"
	"creel/internal/printable"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"
)

// Env is what the commands need of the rest.
type Env struct {
	command.Streams
	// Dir is the installation's audit directory, whether or not it is there.
	Dir func() (string, error)
	// Rotate puts a new key in force.
	Rotate func(context.Context) error
	// Prune removes closed logs, on record.
	Prune func(context.Context, audit.PruneOptions) (audit.PruneResult, error)
	// Receipt makes the signed receipt of a run, by name or ID.
	Receipt func(ctx context.Context, ref string) ([]byte, error)
}

// New is `creel audit`.
func New(env Env) *cobra.Command {
	return command.Group("audit", "Show, follow and verify the record of what happened",
		newTail(env), newQuery(env), newVerify(env), newExport(env), newCheckpoint(env), newPrune(env),
		command.Group("key", "Show or change the key that signs the record",
			&cobra.Command{
				Use: "show", Short: "Print the public key that verifies the record and receipts", Args: cobra.NoArgs,
				RunE: func(*cobra.Command, []string) error {
					key, err := env.publicKey("", "")
					if err == nil {
						fmt.Fprintln(env.Out, key)
					}
					return err
				},
			},
			&cobra.Command{
				Use: "rotate", Short: "Sign with a new key from now on; the record of it is signed by both", Args: cobra.NoArgs,
				RunE: func(c *cobra.Command, _ []string) error {
					if err := env.Rotate(c.Context()); err != nil {
						return err
					}
					key, err := env.publicKey("", "")
					if err == nil {
						fmt.Fprintln(env.Out, key)
					}
					return err
				},
			},
		),
	)
}

// publicKey reads the key in file, else that of an audit directory, else that
// of the installation.
func (env Env) publicKey(file, dir string) (string, error) {
	if file == "" {
		var err error
		if dir == "" {
			if dir, err = env.Dir(); err != nil {
				return "", err
			}
		}
		file = filepath.Join(dir, audit.PublicName)
	}
	data, err := command.ReadBounded(file, 4<<10)
	if err != nil {
		return "", fmt.Errorf("read public key: %w; give --key FILE with what `creel audit key show` printed before it was gone, or begin a new key with `creel audit key rotate`", err)
	}
	key := strings.TrimSpace(string(data))
	_, err = chain.Verifier(key)
	return key, err
}

func newVerify(env Env) *cobra.Command {
	var key string
	var expect []string
	c := &cobra.Command{
		Use: "verify [DIRECTORY]", Short: "Check every line, signature and log of the record; exits 1 where anything is not as it was written",
		Long: "Check every line, signature and log of the record, or of a copy of it, offline.\n" +
			"That its end was cut off shows only against something kept elsewhere: give\n" +
			"--expect with a receipt, or with what `creel audit checkpoint` printed.",
		Example: "  creel audit verify\n" +
			"  creel audit verify ./copy-of-audit --key key.pub --expect receipt.json",
		Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			dir, err := "", error(nil)
			if len(args) > 0 {
				dir = args[0]
			} else if dir, err = env.Dir(); err != nil {
				return err
			}
			public, err := env.publicKey(key, dir)
			if err != nil {
				return err
			}
			o := audit.Options{Live: len(args) == 0}
			for _, file := range expect {
				heads, err := headsIn(file, public)
				if err != nil {
					return fmt.Errorf("--expect %s: %w", file, err)
				}
				o.Expect = append(o.Expect, heads...)
			}
			report, err := audit.Verify(c.Context(), dir, public, o)
			if err != nil {
				return err
			}
			return printReport(env, report)
		},
	}
	c.Flags().StringVar(&key, "key", "", "`file` with the public key; without it the directory's own is believed")
	c.Flags().StringArrayVar(&expect, "expect", nil, "a receipt or checkpoint, `file`, that was kept elsewhere")
	return c
}

func printReport(env Env, r audit.Report) error {
	for _, f := range r.Faults {
		fmt.Fprintf(env.Out, "FAULT %s\n", printable.Line(fmt.Sprint(f)))
	}
	fmt.Fprintf(env.Out, "%d records up to line %d of the ledger, %d keys, %d logs closed (%d of killed keepers), %d open\n",
		r.Records, r.Ledger.Size, r.Keys, r.Closed, r.Killed, r.Open)
	if r.Pruned > 0 {
		fmt.Fprintf(env.Out, "%d of the closed logs were pruned, on record: how they ended is known, and what was in them is not\n", r.Pruned)
	}
	if r.Aside > 0 {
		fmt.Fprintf(env.Out, "%d of the open logs are of runs that have ended: their closing could not be recorded, and the next command does it once there is room\n", r.Aside)
	}
	if n := len(r.Faults); n > 0 {
		return &command.ExitError{Code: 1, Err: fmt.Errorf("the record is not as it was written: %d faults; see docs/audit.md", n)}
	}
	fmt.Fprintln(env.Out, "verified: the record is whole")
	return nil
}

// headsIn are what a receipt or a checkpoint proves was there.
func headsIn(file, key string) ([]audit.Head, error) {
	data, err := command.ReadBounded(file, receipt.MaxBytes)
	if err != nil {
		return nil, err
	}
	if !strings.HasPrefix(strings.TrimSpace(string(data)), "{") {
		head, err := chain.ParseCheckpoint(string(data))
		return []audit.Head{head}, err
	}
	r, err := receipt.Verify(data, key)
	return []audit.Head{r.Audit.Log, r.Audit.Ledger}, err
}

func newCheckpoint(env Env) *cobra.Command {
	return &cobra.Command{
		Use: "checkpoint", Short: "Print the ledger's last checkpoint; kept elsewhere, it shows later that nothing was cut off",
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			dir, err := env.Dir()
			if err != nil {
				return err
			}
			data, err := command.ReadBounded(filepath.Join(dir, audit.HeadName), 64<<10)
			if err != nil {
				return fmt.Errorf("read checkpoint: %w", err)
			}
			if err := audit.CheckHead(dir, string(data)); err != nil {
				return err
			}
			_, err = env.Out.Write(data)
			return err
		},
	}
}

func newPrune(env Env) *cobra.Command {
	var older string
	var o audit.PruneOptions
	c := &cobra.Command{
		Use: "prune [flags]", Short: "Remove the logs of runs that ended long ago; the ledger keeps how each of them ended",
		Long: "Remove logs that were closed. The ledger stays as it is, with how each log ended,\n" +
			"and that it was pruned: the record still verifies. Receipts that were made before\n" +
			"verify too; new ones of those runs can not be made. Logs that are damaged stay.",
		Example: "  creel audit prune --older-than 90d --dry-run\n" +
			"  creel audit prune --older-than 30d --keep 100",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			age, err := command.ParseAge(older)
			if err != nil {
				return fmt.Errorf("--older-than: %w", err)
			}
			if o.Keep < 0 {
				return fmt.Errorf("--keep %d: want 0 or more", o.Keep)
			}
			o.Before = time.Now().Add(-age)
			pruned, err := env.Prune(c.Context(), o)
			if err == nil || len(pruned.Logs) > 0 {
				printPruned(env, pruned, o.DryRun)
			}
			if err == nil && len(pruned.Damaged) > 0 {
				err = fmt.Errorf("%d logs are not as the ledger has them and stay; see `creel audit verify`", len(pruned.Damaged))
			}
			return err
		},
	}
	c.Flags().StringVar(&older, "older-than", "90d", "only logs that were closed longer ago than this `time`, such as 30d or 12h")
	c.Flags().IntVar(&o.Keep, "keep", 0, "leave this `number` of logs, the newest, however old")
	c.Flags().BoolVar(&o.DryRun, "dry-run", false, "say what would be removed, and remove nothing")
	return c
}

func printPruned(env Env, r audit.PruneResult, dryRun bool) {
	did, total := "pruned", "freed"
	if dryRun {
		did, total = "would prune", "would free"
	}
	var bytes int64
	for _, l := range r.Logs {
		fmt.Fprintf(env.Out, "%s %s, closed %s, %s\n", did, l.Log, l.Closed.Local().Format(time.DateOnly), units.BytesSize(float64(l.Bytes)))
		bytes += l.Bytes
	}
	for _, f := range r.Damaged {
		fmt.Fprintf(env.Out, "FAULT %s\n", f)
	}
	fmt.Fprintf(env.Out, "%s %s\n", total, units.BytesSize(float64(bytes)))
}

func newExport(env Env) *cobra.Command {
	var f filters
	c := &cobra.Command{
		Use: "export", Short: "Print records as JSON lines, as they stand on disk",
		Example: "  creel audit export --since 24h >yesterday.jsonl",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			dir, filter, err := f.resolve(c.Context(), env)
			if err != nil {
				return err
			}
			return query.Export(env.Out, query.Records(c.Context(), dir, filter))
		},
	}
	f.register(c.Flags())
	return c
}

// NewReceipt is `creel receipt`.
func NewReceipt(env Env) *cobra.Command {
	var key string
	var asJSON bool
	verify := &cobra.Command{
		Use: "verify FILE", Short: "Check a receipt with nothing but the public key, and print what it says",
		Example: "  creel receipt verify receipt.json --key key.pub",
		Args:    cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			public, err := env.publicKey(key, "")
			if err != nil {
				return err
			}
			data, err := command.ReadBounded(args[0], receipt.MaxBytes)
			if err != nil {
				return fmt.Errorf("read receipt: %w", err)
			}
			r, err := receipt.Verify(data, public)
			if err != nil {
				return err
			}
			if asJSON {
				return command.PrintJSON(env.Out, r)
			}
			return printReceipt(env.Out, r)
		},
	}
	verify.Flags().StringVar(&key, "key", "", "`file` with the public key (default: this installation's)")
	verify.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c := &cobra.Command{
		Use: "receipt SANDBOX", Short: "Print the signed receipt of a run that has ended, also of one that is gone",
		Example: "  creel receipt web >receipt.json",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			data, err := env.Receipt(c.Context(), args[0])
			if err != nil {
				return err
			}
			_, err = env.Out.Write(data)
			return err
		},
	}
	c.AddCommand(verify)
	return c
}

// WriteReceipt puts a receipt into a file of the user's.
func WriteReceipt(file, id string, data []byte) error {
	if err := os.WriteFile(file, data, 0o644); err != nil {
		return errors.Join(fmt.Errorf("write receipt: %w", err), fmt.Errorf("`creel receipt %s` prints it", id))
	}
	return nil
}
