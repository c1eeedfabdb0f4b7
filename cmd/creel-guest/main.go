// Command creel-guest is PID 1 and the agent inside every VM.
package main

import (
	"fmt"
	"os"

	"creel/internal/guest/agent"
	"creel/internal/guest/api"
)

// main never returns in a healthy guest. Where PID 1 ends the kernel panics,
// and with panic=-1 the VM ends, which is what the host sees.
func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "creel-guest:", err)
		os.Exit(1)
	}
}

func run() error {
	machine, err := agent.Boot()
	if err != nil {
		return err
	}
	port, err := agent.OpenPort(api.PortControl)
	if err != nil {
		return err
	}
	a := agent.New(machine, "/")
	for {
		a.Serve(port) // how a host went away makes no difference to the next
		if err := port.AwaitHost(); err != nil {
			return err
		}
	}
}
