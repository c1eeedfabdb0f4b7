// Package postmortem says how a process of ours has ended that did not say so
// itself: [How] puts its wait status into words, and [Kills] counts what the
// host's kernel killed for lack of memory meanwhile. The package must not guess:
// whom the kernel killed, and who sent a signal, is not known.
package postmortem

import (
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// How says what is known of the end of a process, which what names. Both state
// and kills may be nil.
func How(what string, state *os.ProcessState, kills *Kills) string {
	if state == nil {
		return what + " ended, and how is not known"
	}
	status, ok := state.Sys().(syscall.WaitStatus)
	if !ok || !status.Signaled() {
		return fmt.Sprintf("%s ended by itself: %v", what, state)
	}
	signal := status.Signal()
	words := fmt.Sprintf("(signal %d, %s)", signal, signal)
	switch signal {
	case unix.SIGKILL:
		return what + " was killed " + words + outOfMemory(kills)
	case unix.SIGABRT, unix.SIGBUS, unix.SIGFPE, unix.SIGILL, unix.SIGSEGV, unix.SIGSYS, unix.SIGTRAP:
		return what + " crashed " + words
	}
	return what + " was ended from outside " + words
}

// outOfMemory names lack of memory where the kernel has killed for it. Whom it
// killed it does not say.
func outOfMemory(kills *Kills) string {
	if kills == nil {
		return ""
	}
	n, err := kills.Count()
	if err != nil || n <= 0 {
		return ""
	}
	return fmt.Sprintf("; the host ran out of memory meanwhile, and its kernel killed for it (%d in all): "+
		"run fewer sandboxes at a time, or smaller ones (--memory)", n)
}
