// Command creel runs each task in its own disposable MicroVM. The same program
// is the front door, and, started by itself, the keeper of a run, the holder
// of a template, and the stage that locks a VMM in.
package main

import (
	"context"
	"os"

	"creel/internal/app"
)

// version is set when a release is built.
var version = "development"

func main() {
	app.Stages(os.Args)
	os.Exit(app.Main(context.Background(), version, os.Args))
}
