// Package undo is the unwind stack: each step of a start pushes what takes it
// back, and a start that fails, or a run that ends, unwinds them all, newest
// first. It must not know what the steps do.
package undo

import (
	"errors"
	"fmt"
	"sync"
)

// Stack holds the undo functions of steps that were done. The zero value is an
// empty stack. It is safe for use by several goroutines.
type Stack struct {
	mu    sync.Mutex
	steps []step
}

type step struct {
	name string
	undo func() error
}

// Push adds a step's undo function; name is used in its error.
func (s *Stack) Push(name string, undo func() error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.steps = append(s.steps, step{name, undo})
}

// Unwind runs and forgets every undo function, newest first. All of them run,
// whatever the others return; their errors are joined.
func (s *Stack) Unwind() error {
	s.mu.Lock()
	steps := s.steps
	s.steps = nil
	s.mu.Unlock()

	var errs []error
	for i := len(steps) - 1; i >= 0; i-- {
		if err := steps[i].undo(); err != nil {
			errs = append(errs, fmt.Errorf("undo %s: %w", steps[i].name, err))
		}
	}
	return errors.Join(errs...)
}

// Release hands the steps to a new stack and empties this one, so that a
// constructor can defer Unwind and still keep what it built on success.
func (s *Stack) Release() *Stack {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := &Stack{steps: s.steps}
	s.steps = nil
	return out
}
