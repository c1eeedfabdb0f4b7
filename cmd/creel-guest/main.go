// Command creel-guest is PID 1 and the agent inside every VM.
package main

import (
	"fmt"
	"os"

	"creel/internal/guest/agent"
	"creel/internal/guest/api"
	"creel/internal/guest/machine"
)

// main never returns in a healthy guest. Where PID 1 ends the kernel panics,
// and with panic=-1 the VM ends, which is what the host sees.
func main() {
	fmt.Fprintln(os.Stderr, "creel-guest:", run())
	os.Exit(1)
}

// run returns why the agent cannot go on.
func run() error {
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
