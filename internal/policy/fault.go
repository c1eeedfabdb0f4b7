package policy

import (
	"fmt"
	"strings"
)

// Fault is one thing wrong with what a user wrote, and how to mend it.
type Fault struct {
	Line  int    // in the file; 0: none
	Where string // what the fault is in, where it has no line: a flag, a field
	Text  string
	Mend  string
}

func (f Fault) String() string {
	s := f.Text
	switch {
	case f.Line > 0:
		s = fmt.Sprintf("line %d: %s", f.Line, s)
	case f.Where != "":
		s = f.Where + ": " + s
	}
	if f.Mend != "" {
		s += "; " + f.Mend
	}
	return s
}

// Faults is an error that lists them all, one a line.
type Faults []Fault

func (fs Faults) Error() string {
	lines := make([]string, len(fs))
	for i, f := range fs {
		lines[i] = f.String()
	}
	return strings.Join(lines, "\n")
}

// Err is nil for no faults, which a Faults in an error would not be.
func (fs Faults) Err() error {
	if len(fs) == 0 {
		return nil
	}
	return fs
}
