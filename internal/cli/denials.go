package cli

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	"creel/internal/cli/command"
	"creel/internal/keeper/socket"
	"creel/internal/printable"
	"creel/internal/sandbox"
)

// maxDenialLines are printed at the end of a task.
const maxDenialLines = 20

// printDenials tells what was denied to a task, with what would allow each.
func printDenials(w io.Writer, s sandbox.Status) {
	if s.Denied == 0 {
		return
	}
	list := s.Denials[:min(len(s.Denials), maxDenialLines)]
	fmt.Fprintf(w, "creel: %d denied", s.Denied)
	if s.Alerts > 0 {
		fmt.Fprintf(w, ", with %d alert", s.Alerts)
		if s.Alerts > 1 {
			fmt.Fprint(w, "s")
		}
	}
	fmt.Fprintln(w, ":")
	for _, d := range list {
		fmt.Fprintf(w, "creel:   %s\n", denialLine(d))
	}
	if slices.ContainsFunc(list, func(d sandbox.Denial) bool { return strings.HasPrefix(d.Hint, "--allow") }) {
		fmt.Fprintln(w, "creel: before you allow one, decide: does the task need it, and may all that the task knows be sent there?")
	}
	if more := len(s.Denials) - len(list); more > 0 {
		fmt.Fprintf(w, "creel:   and %d destinations more; `creel audit query --sandbox %s --decision deny` has all\n", more, s.ID.Short())
	}
}

// printTroubles tells what was allowed to a task and did not work.
func printTroubles(w io.Writer, s sandbox.Status) {
	if len(s.Troubles) == 0 {
		return
	}
	fmt.Fprintf(w, "creel: allowed, but it did not work:\n")
	for _, t := range s.Troubles[:min(len(s.Troubles), maxDenialLines)] {
		fmt.Fprintf(w, "creel:   %s\n", denialLine(sandbox.Denial(t)))
	}
	if more := len(s.Troubles) - maxDenialLines; more > 0 {
		fmt.Fprintf(w, "creel:   and %d more; `creel audit query --sandbox %s` has all\n", more, s.ID.Short())
	}
}

// printFull tells why a task reached nothing more.
func printFull(w io.Writer, s sandbox.Status) {
	if s.AuditFull != "" {
		fmt.Fprintf(w, "creel: %s\n", printable.Line(s.AuditFull))
	}
}

func denialLine(d sandbox.Denial) string {
	line := printable.Line(d.Target)
	if d.Count > 1 {
		line += fmt.Sprintf(" (%d times)", d.Count)
	}
	line += ": " + printable.Line(d.Reason)
	switch {
	case strings.HasPrefix(d.Hint, "--allow"):
		line += "; to allow it: " + printable.Line(d.Hint)
	case d.Hint != "":
		line += "; " + printable.Line(d.Hint)
	}
	return line
}

// noteDenials shows each new denial when it happens, on a terminal that is in
// raw mode.
func noteDenials(ctx context.Context, env Env, c *socket.Client) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var done sync.WaitGroup
	done.Go(func() {
		c.Notes(ctx, func(d sandbox.Denial) { // ends with the task
			fmt.Fprintf(command.Raw(env.Err), "\r\ncreel: denied %s\r\n", denialLine(d))
		})
	})
	return func() {
		cancel()
		done.Wait()
	}
}
