package undo

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestUnwindRunsAllNewestFirstAndOnce(t *testing.T) {
	var s Stack
	var got []string
	for _, name := range []string{"a", "b", "c"} {
		s.Push(name, func() error {
			got = append(got, name)
			if name == "b" {
				return errors.New("stuck")
			}
			return nil
		})
	}
	err := s.Unwind()
	if err == nil || err.Error() != "undo b: stuck" {
		t.Errorf("error %v", err)
	}
	if err := s.Unwind(); err != nil {
		t.Errorf("second unwind: %v", err)
	}
	if diff := cmp.Diff([]string{"c", "b", "a"}, got); diff != "" {
		t.Error(diff)
	}
}

func TestReleaseKeepsWhatWasBuilt(t *testing.T) {
	var s Stack
	undone := false
	s.Push("x", func() error { undone = true; return nil })
	kept := s.Release()
	if s.Unwind(); undone {
		t.Fatal("released step was undone")
	}
	if kept.Unwind(); !undone {
		t.Fatal("kept step was not undone")
	}
}
