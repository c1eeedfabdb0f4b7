package qemu

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"creel/internal/oom"
	"creel/internal/vm"
)

// Reasons of QEMU's SHUTDOWN event.
const (
	guestShutdown = "guest-shutdown"
	guestReset    = "guest-reset"
	hostSignal    = "host-signal"
)

// panicMark is what Linux writes before the reason of a panic.
const panicMark = "Kernel panic - not syncing: "

// maxPanic bounds what is shown of a panic, in bytes.
const maxPanic = 200

// ending says how a machine has ended that nobody closed; nil is a power-off.
// The guest's own word, where there is one, goes before the VMM's, which is
// killed once it has said that.
func ending(reason, console string, state *os.ProcessState, memory *oom.Count) error {
	switch reason {
	case guestShutdown:
		return nil
	case guestReset:
		if text := panicIn(console); text != "" {
			return &vm.GuestEnded{How: fmt.Sprintf("the guest's kernel panicked: %q", text), Panicked: true}
		}
		return &vm.GuestEnded{How: "the guest rebooted itself"}
	case hostSignal:
		return errors.New("the VMM was told to end by a signal from this host")
	}
	return errors.New(vmmEnd(state, memory))
}

// panicIn is the reason of the last panic on a console, "" if there is none. It
// is the guest's text: whoever shows it quotes it.
func panicIn(console string) string {
	i := strings.LastIndex(console, panicMark)
	if i < 0 {
		return ""
	}
	text, _, _ := strings.Cut(console[i+len(panicMark):], "\n")
	return string(bytes.TrimSpace([]byte(text[:min(len(text), maxPanic)])))
}

// vmmEnd says of a VMM's end what is known of it, and nothing else.
func vmmEnd(state *os.ProcessState, memory *oom.Count) string {
	if state == nil {
		return "the VMM ended, and how is not known"
	}
	status, ok := state.Sys().(syscall.WaitStatus)
	if !ok || !status.Signaled() {
		return fmt.Sprintf("the VMM ended by itself: %v", state)
	}
	signal := status.Signal()
	words := fmt.Sprintf("(signal %d, %s)", signal, signal)
	switch signal {
	case unix.SIGKILL:
		return "the VMM was killed " + words + killer(memory)
	case unix.SIGABRT, unix.SIGBUS, unix.SIGFPE, unix.SIGILL, unix.SIGSEGV, unix.SIGSYS, unix.SIGTRAP:
		return "the VMM crashed " + words
	}
	return "the VMM was ended from outside " + words
}

// killer names lack of memory where the kernel has killed for it meanwhile.
// Whom it killed it does not say.
func killer(memory *oom.Count) string {
	if memory == nil {
		return ""
	}
	n, err := memory.Kills()
	if err != nil || n <= 0 {
		return ""
	}
	return fmt.Sprintf("; the host ran out of memory meanwhile, and its kernel killed %d of its processes: run fewer sandboxes at a time, or smaller ones (--memory)", n)
}
