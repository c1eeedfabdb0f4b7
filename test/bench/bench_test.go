package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func counting(step float64, trace *[]float64) sample {
	v := 0.0
	return func(context.Context) (float64, error) {
		v += step
		*trace = append(*trace, v)
		return v, nil
	}
}

func TestMeasureTakesTurnsAndDropsTheFirst(t *testing.T) {
	var trace []float64
	r := row{name: "x", unit: "ms", maxRatio: 0.5, setup: func(context.Context) (side, side, error) {
		return side{"a", counting(1, &trace)}, side{"b", counting(10, &trace)}, nil
	}}
	got, err := r.measure(t.Context(), 10)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]float64{1, 10, 2, 20, 3, 30}, trace[:6]); diff != "" {
		t.Errorf("order of samples:\n%s", diff)
	}
	if len(got.A.Samples) != 10 || got.A.Median != 6.5 || got.B.Median != 65 || got.Ratio != 0.1 {
		t.Errorf("result %+v, a %+v, b %+v", got, got.A, got.B)
	}
	if got.Pass == nil || !*got.Pass {
		t.Error("a ratio of 0.1 misses a target of 0.5")
	}
}

func TestVerdict(t *testing.T) {
	always := func(v float64) side {
		return side{"x", func(context.Context) (float64, error) { return v, nil }}
	}
	lack := absent{"no docker"}
	tests := []struct {
		name string
		row  row
		a, b side
		err  error
		n    int
		want string
	}{
		{"ratio met", row{maxRatio: 0.8}, always(8), always(10), nil, 10, "pass"},
		{"ratio missed", row{maxRatio: 0.8}, always(9), always(10), nil, 10, "MISSED"},
		{"least ratio missed", row{minRatio: 1}, always(9), always(10), nil, 10, "MISSED"},
		{"limit met", row{maxA: 60}, always(60), side{}, nil, 10, "pass"},
		{"limit missed", row{maxA: 60}, always(61), side{}, nil, 10, "MISSED"},
		{"least met", row{minA: 1}, always(1), side{}, nil, 10, "pass"},
		{"least missed", row{minA: 1}, always(0.9), side{}, nil, 10, "MISSED"},
		{"no target", row{}, always(9), always(10), nil, 10, ""},
		{"too few samples", row{maxRatio: 0.8}, always(9), always(10), nil, 9, ""},
		{"few samples", row{maxA: 60, few: 3}, always(61), side{}, nil, 1, "MISSED"},
		{"nothing to compare with", row{maxRatio: 0.8}, always(9), side{}, lack, 10, "skipped: no docker"},
		{"nothing at all", row{maxRatio: 0.8}, side{}, side{}, lack, 10, "skipped: no docker"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.row.setup = func(context.Context) (side, side, error) { return tt.a, tt.b, tt.err }
			got, err := tt.row.measure(t.Context(), tt.n)
			if err != nil || got.verdict() != tt.want {
				t.Fatalf("verdict %q, %v, want %q", got.verdict(), err, tt.want)
			}
			rep := Report{Rows: []Result{got}}
			if want := tt.want == "MISSED"; (rep.missed() == 1) != want {
				t.Errorf("missed() = %d", rep.missed())
			}
			var out bytes.Buffer
			rep.print(&out)
			if !strings.Contains(out.String(), tt.want) {
				t.Errorf("table lacks %q:\n%s", tt.want, out.String())
			}
		})
	}
}

func TestSeriesIsTakenOnceForAllItsRows(t *testing.T) {
	n := 0.0
	s := series{take: func(context.Context) (map[string]float64, error) {
		n++
		return map[string]float64{"a": n, "b": -n}, nil
	}}
	measure := func(key string) []float64 {
		r := row{setup: func(context.Context) (a, b side, err error) { return s.side(key, key), b, nil }}
		got, err := r.measure(t.Context(), 3)
		if err != nil {
			t.Fatal(err)
		}
		return got.A.Samples
	}
	a, b := measure("a"), measure("b")
	if diff := cmp.Diff([][]float64{{2, 3, 4}, {-2, -3, -4}}, [][]float64{a, b}); diff != "" || n != 4 {
		t.Errorf("taken %v times:\n%s", n, diff)
	}
}

func TestIsHolder(t *testing.T) {
	for line, want := range map[string]bool{
		"/proc/self/exe holder -store /s/templates -runtime /s/holders": true,
		"/proc/self/exe holder -store /other/templates":                 false,
		"/proc/self/exe keeper -store /s/templates":                     false,
		"grep holder -store": false,
		"":                   false,
	} {
		if isHolder([]byte(strings.ReplaceAll(line, " ", "\x00")), "/s/templates") != want {
			t.Errorf("%q: want %v", line, want)
		}
	}
}

func TestMarks(t *testing.T) {
	file := filepath.Join(t.TempDir(), "log.jsonl")
	log := `{"v":1,"seq":0,"time":"2026-01-01T00:00:01Z","kind":"opened","data":{"log":"x"}}
{"v":1,"seq":1,"checkpoint":"x"}
{"v":1,"seq":2,"time":"2026-01-01T00:00:02Z","kind":"step","data":{"step":"machine"}}
{"v":1,"seq":3,"time":"2026-01-01T00:00:03Z","kind":"exit","data":{"exitCode":0}}
`
	if err := os.WriteFile(file, []byte(log), 0o600); err != nil {
		t.Fatal(err)
	}
	marks, err := readMarks(file)
	if err != nil || marks["exit"].Sub(marks["machine"]) != time.Second {
		t.Errorf("marks %v, %v", marks, err)
	}
	if found, err := newest(file, time.Now().Add(time.Hour)); err == nil {
		t.Errorf("found %s, which was written before", found)
	}
}

func TestMeasureStopsAtAnError(t *testing.T) {
	broken := errors.New("broken")
	r := row{setup: func(context.Context) (side, side, error) {
		return side{"a", func(context.Context) (float64, error) { return 0, broken }}, side{}, nil
	}}
	if _, err := r.measure(t.Context(), 10); !errors.Is(err, broken) {
		t.Fatalf("measure = %v, want the sample's error", err)
	}
}

func TestPSS(t *testing.T) {
	kib, err := parsePSS(strings.NewReader("00400000-7ff rollup\nRss:   900 kB\nPss:     512 kB\nPss_Anon: 1 kB\n"))
	if err != nil || kib != 512 {
		t.Fatalf("parsePSS = %d, %v, want 512", kib, err)
	}
	if _, err := parsePSS(strings.NewReader("Rss: 1 kB\n")); err == nil {
		t.Error("a rollup without Pss gave no error")
	}
	if mib, err := pss([]int{os.Getpid(), os.Getpid()}); err != nil || mib < 1 {
		t.Errorf("pss of this process twice = %v MiB, %v", mib, err)
	}
}
