package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// sample measures once and returns the value in the row's unit.
type sample func(ctx context.Context) (float64, error)

// side is one of the two ways of a row. A nil sample means there is none.
type side struct {
	label  string
	sample sample
}

// series lets rows share samples that are measured together: a row takes what
// another has taken already.
type series struct {
	take  func(ctx context.Context) (map[string]float64, error)
	taken []map[string]float64
}

func (s *series) side(label, key string) side {
	next := 0
	return side{label, func(ctx context.Context) (float64, error) {
		if next == len(s.taken) {
			values, err := s.take(ctx)
			if err != nil {
				return 0, err
			}
			s.taken = append(s.taken, values)
		}
		next++
		return s.taken[next-1][key], nil
	}}
}

// row is one line of the table: a, and what it is compared with.
type row struct {
	name string
	unit string
	// maxRatio is the largest a/b, and minRatio the smallest, that meets the
	// row's target; maxA is the largest a, and minA the smallest. Zero means
	// there is no such target.
	maxRatio, minRatio, maxA, minA float64
	// few is how many samples are taken where each is already of many machines;
	// none is thrown away then. Zero means as many as were asked for.
	few int
	// setup prepares both sides. An [absent] error leaves the row out, or only
	// b where a was given; what it starts, the rig ends.
	setup func(ctx context.Context) (a, b side, err error)
}

// absent says what a row or a side lacks on this machine.
type absent struct{ what string }

func (e absent) Error() string { return e.what }

// Side is one side's outcome.
type Side struct {
	Label   string    `json:"label"`
	Median  float64   `json:"median"`
	Samples []float64 `json:"samples"`
}

// Result is one row's outcome.
type Result struct {
	Name    string  `json:"name"`
	Unit    string  `json:"unit"`
	A       *Side   `json:"a,omitempty"`
	B       *Side   `json:"b,omitempty"`
	Ratio   float64 `json:"ratio,omitempty"` // a over b
	Target  string  `json:"target,omitempty"`
	Pass    *bool   `json:"pass,omitempty"` // absent without a target or with too few samples
	Skipped string  `json:"skipped,omitempty"`
}

func (r row) matches(part string) bool { return strings.Contains(r.name, part) }

// measure takes n samples of each side by turns, after one of each that is
// thrown away; or few.
func (r row) measure(ctx context.Context, n int) (Result, error) {
	thrown, least := 1, minSamples
	if r.few > 0 {
		n, thrown, least = r.few, 0, r.few
	}
	result := Result{Name: r.name, Unit: r.unit, Target: r.target()}
	a, b, err := r.setup(ctx)
	if lack, ok := errors.AsType[absent](err); ok {
		result.Skipped = lack.what
	} else if err != nil {
		return Result{}, err
	}
	if a.sample == nil {
		return result, nil
	}
	result.A = &Side{Label: a.label}
	if b.sample != nil {
		result.B = &Side{Label: b.label}
	}
	for i := range thrown + n {
		if err := result.A.add(ctx, a.sample, i >= thrown); err != nil {
			return Result{}, fmt.Errorf("%s: %w", a.label, err)
		}
		if result.B == nil {
			continue
		}
		if err := result.B.add(ctx, b.sample, i >= thrown); err != nil {
			return Result{}, fmt.Errorf("%s: %w", b.label, err)
		}
	}
	r.judge(&result, n >= least)
	return result, nil
}

func (s *Side) add(ctx context.Context, take sample, keep bool) error {
	v, err := take(ctx)
	if err != nil {
		return err
	}
	if keep {
		s.Samples = append(s.Samples, v)
		s.Median = median(s.Samples)
	}
	return nil
}

// minSamples is how many of each side a verdict needs, but for rows of few.
const minSamples = 10

func (r row) judge(result *Result, enough bool) {
	if result.B != nil && result.B.Median > 0 {
		result.Ratio = result.A.Median / result.B.Median
	}
	comparable := r.maxRatio == 0 && r.minRatio == 0 || result.B != nil
	if result.Target == "" || !enough || !comparable {
		return
	}
	pass := (r.maxRatio == 0 || result.Ratio <= r.maxRatio) &&
		(r.minRatio == 0 || result.Ratio >= r.minRatio) &&
		(r.maxA == 0 || result.A.Median <= r.maxA) && result.A.Median >= r.minA
	result.Pass = &pass
}

func (r row) target() string {
	var parts []string
	if r.maxRatio > 0 {
		parts = append(parts, fmt.Sprintf("≤ %.3g×", r.maxRatio))
	}
	if r.minRatio > 0 {
		parts = append(parts, fmt.Sprintf("≥ %.3g×", r.minRatio))
	}
	if r.maxA > 0 {
		parts = append(parts, fmt.Sprintf("≤ %g %s", r.maxA, r.unit))
	}
	if r.minA > 0 {
		parts = append(parts, fmt.Sprintf("≥ %g %s", r.minA, r.unit))
	}
	return strings.Join(parts, ", ")
}

func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(values))
	if m := len(s) / 2; len(s)%2 == 0 {
		return (s[m-1] + s[m]) / 2
	}
	return s[len(s)/2]
}
