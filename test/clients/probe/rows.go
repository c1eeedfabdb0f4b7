package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"
)

// rowLimit is how long one row may take.
const rowLimit = 150 * time.Second

// rows runs many commands in one process, for starting one takes long under
// emulation: lines of NUMBER, tab and a command, which is a case of probe with
// its flags, or else one for bash. Variables are the environment's. It prints
// for each its number, its exit code, how long it took in microseconds and what
// it said.
func rows(ctx context.Context, in io.Reader, out io.Writer, atOnce int) error {
	places := make(chan struct{}, atOnce)
	var mu sync.Mutex // around out
	var all sync.WaitGroup
	defer all.Wait()
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		id, command, ok := strings.Cut(lines.Text(), "\t")
		if !ok {
			return fmt.Errorf("%q is no row", lines.Text())
		}
		places <- struct{}{}
		all.Go(func() {
			began := time.Now()
			code, said := row(ctx, command)
			mu.Lock()
			defer mu.Unlock()
			fmt.Fprintf(out, "%s\t%d\t%d\t%s\n", id, code, time.Since(began).Microseconds(), said)
			<-places
		})
	}
	return lines.Err()
}

// row runs one command and returns what it said as one line.
func row(ctx context.Context, command string) (code int, said string) {
	ctx, cancel := context.WithTimeout(ctx, rowLimit)
	defer cancel()
	var b bytes.Buffer
	if words := strings.Fields(os.ExpandEnv(command)); words[0] == "probe" {
		if err := run(ctx, words[1:], &b); err != nil {
			code = 2
			fmt.Fprintln(&b, err)
		}
	} else {
		cmd := exec.CommandContext(ctx, "bash", "-c", command)
		cmd.Stdout, cmd.Stderr = &b, &b
		cmd.WaitDelay = time.Second
		if err := cmd.Run(); err != nil {
			code = max(1, cmd.ProcessState.ExitCode())
			if ctx.Err() != nil {
				code = 124
			}
		}
	}
	said = strings.NewReplacer("\n", " ", "\t", " ").Replace(strings.TrimSpace(b.String()))
	return code, said[:min(len(said), 1500)]
}
