// Command creel-guest is PID 1 and the agent inside every VM.
package main

import (
	"fmt"
	"os"
	"runtime"

	"creel/internal/guest/agent"
	"creel/internal/guest/api"
	"creel/internal/guest/machine"
)

// main never returns in a healthy guest. Where PID 1 ends the kernel panics,
// and with panic=-1 the VM ends, which is what the host sees.
//
// Any other process is one that the agent starts to have started one.
func main() {
	if os.Getpid() != 1 {
		return
	}
	fmt.Fprintln(os.Stderr, "creel-guest:", run())
	os.Exit(1)
}

// threads is how many goroutines run beside one that waits in the kernel for
// the host. With one, each message would wait for the runtime to notice that
// its only processor is away, by a timer that is dear under emulation: a run
// of /bin/true then costs a third more.
const threads = 4

// run returns why the agent cannot go on.
func run() error {
	runtime.GOMAXPROCS(threads)
	m, err := machine.Boot()
	if err != nil {
		return err
	}
	port, err := machine.OpenPort(api.PortControl)
	if err != nil {
		return err
	}
	a := agent.New(m, "/")
	for {
		a.Serve(port) // how a host went away makes no difference to the next
		if err := port.AwaitHost(); err != nil {
			return err
		}
	}
}
