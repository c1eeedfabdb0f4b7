package cli

import (
	"errors"
	"io"
	"sync"

	"creel/internal/cli/command"
	"creel/internal/keeper/socket"
)

// outputs are where a process's output goes.
type outputs struct{ out, err io.Writer }

// rawOf is for output that is the task's own, which stays as it is.
func rawOf(env Env) outputs { return outputs{command.Raw(env.Out), command.Raw(env.Err)} }

// stderrOf is nil where a terminal has all output.
func stderrOf(att *socket.Attachment, tty bool) io.Reader {
	if tty {
		return nil
	}
	return att.Stderr
}

// carry copies a process's output until it is complete. Where it cannot be
// written giveUp is called, which has to end the process or its streams; what
// still comes is dropped, so that no process waits for ever to be read. The
// error is of writing: one of reading is for whoever asks how the process ended.
func carry(to outputs, stdout, stderr io.Reader, giveUp func()) error {
	var done sync.WaitGroup
	once := sync.OnceFunc(giveUp)
	outs := [2]sink{{to: to.out}, {to: to.err}}
	for i, from := range []io.Reader{stdout, stderr} {
		if from == nil {
			continue
		}
		done.Go(func() {
			io.Copy(&outs[i], from)
			if outs[i].err != nil {
				once()
				io.Copy(io.Discard, from)
			}
		})
	}
	done.Wait()
	return errors.Join(outs[0].err, outs[1].err)
}

// sink keeps the error of writing.
type sink struct {
	to  io.Writer
	err error
}

func (s *sink) Write(p []byte) (int, error) {
	n, err := s.to.Write(p)
	s.err = err
	return n, err
}
