package cli

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"creel/internal/cli/command"
	"creel/internal/guest/api"
	"creel/internal/keeper/socket"
	"creel/internal/printable"
	"creel/internal/sandbox"

	"github.com/spf13/cobra"
)

func newTop(env Env) *cobra.Command {
	return &cobra.Command{
		Use: "top SANDBOX [PS OPTION...]", Short: "Show the processes in a sandbox; the image needs no ps",
		Long: "Show the processes in a sandbox, as its kernel tells them: the image needs no ps.\n\n" +
			"Of the options of ps, -e, -f, -A, -x, aux and -o COLUMN,... are known; the columns\n" +
			"are " + strings.Join(columnNames(), ", ") + ".\n" +
			"With other options the image's own ps is run.",
		Example: "  creel top web\n  creel top web -eo pid,rss,args",
		Args:    cobra.MinimumNArgs(1), ValidArgsFunction: completeFirst(completeSandboxes(env, true)),
		DisableFlagParsing: true,
		RunE: func(c *cobra.Command, args []string) error {
			if args[0] == "--help" || args[0] == "-h" {
				return c.Help()
			}
			columns, ok := psOptions(args[1:])
			if !ok {
				// A person reads this as a table of Creel's: it is made safe to show.
				err := execIn(c.Context(), env, outputs{env.Out, env.Err}, args[0], sandbox.Process{Args: append([]string{"ps"}, args[1:]...)}, execFlags{})
				if exit, ok := errors.AsType[*ExitError](err); ok && exit.Code == sandbox.ExitNotFound {
					return &ExitError{Code: 1, Err: errors.New("the image has no ps, which these options are for; `creel top --help` has those that need none")}
				}
				return err
			}
			app, err := env.existing(c.Context())
			if err != nil {
				return err
			}
			f, err := app.Engine.Find(c.Context(), args[0])
			if err != nil {
				return err
			}
			return withClient(c.Context(), app, f, func(k *socket.Client) error {
				top, err := k.Top(c.Context())
				if err != nil {
					return err
				}
				return printTop(env, top, columns)
			})
		},
	}
}

// psColumn is a column of ps.
type psColumn struct {
	title string
	cell  func(api.Process) string
}

// psColumns are those that need no ps, by the names that ps -o has for them.
var psColumns = map[string]psColumn{
	"pid":  {"PID", func(p api.Process) string { return strconv.Itoa(p.PID) }},
	"ppid": {"PPID", func(p api.Process) string { return strconv.Itoa(p.Parent) }},
	"uid":  {"UID", func(p api.Process) string { return strconv.FormatInt(p.UID, 10) }},
	"user": {"USER", userOf},
	"c":    {"C", func(p api.Process) string { return strconv.FormatInt(cpuShare(p), 10) }},
	"pcpu": {"%CPU", func(p api.Process) string { return strconv.FormatInt(cpuShare(p), 10) }},
	"stime": {"STIME", func(p api.Process) string {
		return time.Now().Add(-time.Duration(p.AgeMilliseconds) * time.Millisecond).Format("15:04")
	}},
	"etime": {"ELAPSED", func(p api.Process) string { return clock(p.AgeMilliseconds) }},
	"time":  {"TIME", func(p api.Process) string { return clock(p.CPUMilliseconds) }},
	"tty": {"TTY", func(p api.Process) string {
		if p.TTY == "" {
			return "?"
		}
		return p.TTY
	}},
	"stat": {"STAT", func(p api.Process) string { return p.State }},
	"nlwp": {"NLWP", func(p api.Process) string { return strconv.Itoa(p.Threads) }},
	"rss":  {"RSS", func(p api.Process) string { return strconv.FormatInt(p.RSSBytes>>10, 10) }},
	"vsz":  {"VSZ", func(p api.Process) string { return strconv.FormatInt(p.VirtualBytes>>10, 10) }},
	"comm": {"COMMAND", func(p api.Process) string { return printable.Line(p.Name) }},
	"args": {"COMMAND", argsText},
	"cmd":  {"CMD", argsText},
}

// psAliases are other names that ps has for columns.
var psAliases = map[string]string{
	"command": "args", "%cpu": "pcpu", "tt": "tty", "tname": "tty", "s": "stat", "state": "stat", "vsize": "vsz", "rssize": "rss",
	"euser": "user", "euid": "uid", "ucmd": "comm", "cputime": "time", "start": "stime", "thcount": "nlwp",
}

func columnNames() []string {
	var names []string
	for name := range psColumns {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// fullColumns are those of ps -ef, but with names for users; userColumns those
// of ps aux that a guest's kernel tells.
var (
	fullColumns = []string{"user", "pid", "ppid", "c", "stime", "tty", "time", "cmd"}
	userColumns = []string{"user", "pid", "pcpu", "vsz", "rss", "tty", "stat", "stime", "time", "args"}
)

// psOptions are the columns that options of ps ask for; not ok where its own
// program has to answer.
func psOptions(options []string) (columns []string, ok bool) {
	columns = fullColumns
	for i := 0; i < len(options); i++ {
		word, dash := strings.CutPrefix(options[i], "-")
		switch {
		case !dash && (word == "aux" || word == "axu"):
			columns = userColumns
		case (dash || word == "o") && strings.HasSuffix(word, "o") && strings.Trim(word, "eAxafo") == "":
			if i++; i == len(options) {
				return nil, false
			}
			if columns, ok = columnList(options[i]); !ok {
				return nil, false
			}
		case dash && word != "" && strings.Trim(word, "eAxaf") == "":
		default:
			return nil, false
		}
	}
	return columns, true
}

func columnList(s string) (columns []string, ok bool) {
	for name := range strings.SplitSeq(s, ",") {
		if alias := psAliases[name]; alias != "" {
			name = alias
		}
		if _, known := psColumns[name]; !known {
			return nil, false
		}
		columns = append(columns, name)
	}
	return columns, true
}

func printTop(env Env, top api.TopReply, columns []string) error {
	var heads []string
	for _, name := range columns {
		heads = append(heads, psColumns[name].title)
	}
	t := command.Table(env.Out, heads...)
	for _, p := range top.Processes {
		var cells []string
		for _, name := range columns {
			cells = append(cells, psColumns[name].cell(p))
		}
		command.Row(t, cells...)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if top.More > 0 {
		fmt.Fprintf(env.Err, "creel: and %d more\n", top.More)
	}
	return nil
}

func userOf(p api.Process) string {
	if p.User == "" {
		return strconv.FormatInt(p.UID, 10)
	}
	return printable.Line(p.User)
}

// argsText is a command line, or in brackets the name of a process without one.
func argsText(p api.Process) string {
	if len(p.Args) == 0 {
		return "[" + printable.Line(p.Name) + "]"
	}
	return printable.Line(strings.Join(p.Args, " "))
}

// cpuShare is how much of its life a process has computed, in percent.
func cpuShare(p api.Process) int64 {
	if p.AgeMilliseconds <= 0 {
		return 0
	}
	return 100 * p.CPUMilliseconds / p.AgeMilliseconds
}

// clock is a duration as ps writes it.
func clock(ms int64) string {
	s := ms / 1000
	return fmt.Sprintf("%02d:%02d:%02d", s/3600, s/60%60, s%60)
}
