package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"testing"

	"creel/internal/procs"
)

// An answer to a command that was given up is not taken for the next one's.
func TestLateAnswer(t *testing.T) {
	conn, theirs, err := procs.Pair()
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	q := newQMP(conn)
	go q.read(func(event) {})
	defer func() { conn.Close(); <-q.closed }()
	commands := bufio.NewReader(theirs)
	next := func() (id int64) {
		line, err := commands.ReadBytes('\n')
		if err != nil {
			t.Error(err)
			return 0
		}
		var command struct{ ID int64 }
		if err := json.Unmarshal(line, &command); err != nil {
			t.Error(err)
		}
		return command.ID
	}

	ctx, cancel := context.WithCancel(t.Context())
	first := make(chan int64)
	go func() { first <- next(); cancel() }()
	given := make(chan error, 1)
	go func() { given <- q.run(ctx, nil, "stop", nil) }()
	old := <-first
	if err := <-given; !errors.Is(err, context.Canceled) {
		t.Fatalf("given up: %v", err)
	}
	go func() {
		id := next()
		fmt.Fprintf(theirs, `{"return": {"running": false}, "id": %d}`+"\n", old)
		fmt.Fprintf(theirs, `{"return": {"running": true}, "id": %d}`+"\n", id)
	}()
	var status struct{ Running bool }
	if err := q.ask(t.Context(), "query-status", &status); err != nil || !status.Running {
		t.Errorf("the next answer: %+v, %v", status, err)
	}
}
