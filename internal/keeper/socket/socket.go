// Package socket is the keeper's socket: the operations that a run's keeper
// serves, their messages, and [Client], with which front doors use them.
// docs/format/keeper.md has them in prose. The package must not serve, and must
// not know how a sandbox is found.
package socket

import (
	"time"

	"creel/internal/guest/api"
	"creel/internal/sandbox"
)

// Version of the keeper's socket. A client of another version is told so.
const Version = 1

// Operations of the socket beside those it shares with the guest's control
// port: exec, copy-in, copy-out, stat and usage look the same to a client as
// they do to the keeper. docs/format/keeper.md has all of them.
const (
	OpHello   = "hello"    // HelloRequest → HelloReply; first on every connection
	OpReady   = "ready"    // Empty → StatusReply, once the clone can run the task or cannot
	OpAttach  = "attach"   // attachRequest, stdin on 0 → Reply, stdout on 1, stderr on 2
	OpDetach  = "detach"   // DetachRequest → Reply; the run goes on without the client that started it
	OpStart   = "start"    // Empty → Reply, once the task runs or cannot
	OpWait    = "wait"     // Empty → StatusReply, once nothing remains of the run
	OpStatus  = "status"   // Empty → StatusReply, at once
	OpSignal  = "signal"   // api.ExecControl → Reply
	OpStop    = "stop"     // StopRequest → Reply, once the task has ended
	OpKill    = "kill"     // Empty → Reply; ends the run at once, whatever the guest does
	OpPause   = "pause"    // Empty → Reply
	OpResume  = "resume"   // Empty → Reply
	OpPolicy  = "policy"   // PolicyRequest → Reply, once it is in force
	OpInForce = "in-force" // Empty → PolicyReply: the policy that is in force
	OpSecrets = "secrets"  // Empty, grants on 0 → Reply, once they are in use
	OpNotes   = "notes"    // Empty → Reply, then a sandbox.Denial for each new one, until the task has ended
	OpLogs    = "logs"     // Empty → Reply, then the log's lines on 1 until the output is complete
)

type HelloRequest struct {
	Version int `json:"version"`
}

type HelloReply struct {
	Error   *api.Error `json:"error,omitempty"`
	Version int        `json:"version"`
	ID      sandbox.ID `json:"id"`
}

type StatusReply struct {
	Error  *api.Error     `json:"error,omitempty"`
	Status sandbox.Status `json:"status"`
}

// AttachRequest says which streams a client wants.
type AttachRequest struct {
	Stdin  bool `json:"stdin,omitempty"`
	Stdout bool `json:"stdout,omitempty"`
	Stderr bool `json:"stderr,omitempty"`
	// EndsStdin makes the end of this client's stdin, or of the client, the
	// end of the task's.
	EndsStdin bool `json:"endsStdin,omitempty"`
}

// DetachRequest leaves a run that was started in the foreground to its keeper.
type DetachRequest struct {
	// Keep lets its disk and what it writes from now on outlive it, as if it had
	// been started in the background.
	Keep bool `json:"keep,omitempty"`
}

type StopRequest struct {
	Signal int           `json:"signal,omitempty"` // 0: the image's stop signal
	Grace  time.Duration `json:"grace"`            // until SIGKILL
}

type PolicyRequest struct {
	Policy string `json:"policy"` // canonical text; "" allows nothing
}

type PolicyReply struct {
	Policy string     `json:"policy"` // canonical text; "" allows nothing
	Error  *api.Error `json:"error,omitempty"`
}
