package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"creel/internal/image"
	"creel/internal/sandbox"
	"creel/internal/template"
	"creel/internal/vm"
	"creel/internal/vm/accel"
)

// judge is an Accelerators that says what it is told, and notes what it hears.
type judge struct {
	choice  accel.Choice
	learned []string
}

func (j *judge) Choose(_ context.Context, want sandbox.Accel, level sandbox.Confinement) (accel.Choice, error) {
	if level != sandbox.ConfinementReduced {
		return accel.Choice{}, fmt.Errorf("asked for the level %q", level)
	}
	return j.choice, nil
}

func (j *judge) Learn(_ context.Context, c accel.Choice, failure error) error {
	if c != j.choice {
		return errors.New("another choice")
	}
	j.learned = append(j.learned, fmt.Sprint(failure))
	return nil
}

type rootFS struct{ Images }

func (rootFS) RootFS(context.Context, image.Image) (image.RootFS, error) { return image.RootFS{}, nil }

// boots is a Templates in which machines come up under some accelerators.
type boots struct {
	fails map[sandbox.Accel]error
	found bool // the template is there already
	asked []sandbox.Accel
}

func (b *boots) For(_ context.Context, req template.Request, _ func(string)) (template.Manifest, bool, error) {
	b.asked = append(b.asked, req.Accel)
	return template.Manifest{Recipe: template.Recipe{Accel: req.Accel}}, !b.found, b.fails[req.Accel]
}

func TestTemplateLearnsWhatComesUp(t *testing.T) {
	late := fmt.Errorf("%w: late", template.ErrDeadline)
	other := errors.New("the disk is full")
	kvm, doubtful := accel.Choice{Accel: sandbox.AccelKVM}, accel.Choice{Accel: sandbox.AccelKVM, Doubt: "it looks slow"}
	tcg := accel.Choice{Accel: sandbox.AccelTCG}
	both := []sandbox.Accel{sandbox.AccelKVM, sandbox.AccelTCG}
	for name, c := range map[string]struct {
		want    sandbox.Accel
		choice  accel.Choice
		boots   boots
		asked   []sandbox.Accel
		learned []string
		says    string // in a line of progress
		err     string
	}{
		"auto, comes up": {want: sandbox.AccelAuto, choice: kvm, asked: both[:1]},
		"auto, does not, emulation does": {
			want: sandbox.AccelAuto, choice: kvm, boots: boots{fails: map[sandbox.Accel]error{sandbox.AccelKVM: late}},
			asked: both, learned: []string{late.Error()}, says: "using emulation",
		},
		"auto, nothing comes up": {
			want: sandbox.AccelAuto, choice: kvm, boots: boots{fails: map[sandbox.Accel]error{sandbox.AccelKVM: late, sandbox.AccelTCG: late}},
			asked: both, says: "using emulation", err: "late",
		},
		"auto, another fault": {
			want: sandbox.AccelAuto, choice: kvm, boots: boots{fails: map[sandbox.Accel]error{sandbox.AccelKVM: other}},
			asked: both[:1], err: "disk is full",
		},
		"auto is emulation": {want: sandbox.AccelAuto, choice: tcg, asked: both[1:]},
		"insisted, without doubt, does not": {
			want: sandbox.AccelKVM, choice: kvm, boots: boots{fails: map[sandbox.Accel]error{sandbox.AccelKVM: late}},
			asked: both[:1], err: "late",
		},
		"insisted against doubt, comes up": {
			want: sandbox.AccelKVM, choice: doubtful, asked: both[:1], learned: []string{"<nil>"}, says: "warning: ",
		},
		"insisted against doubt, is there": {
			want: sandbox.AccelKVM, choice: doubtful, boots: boots{found: true}, asked: both[:1], says: "it looks slow",
		},
		"insisted against doubt, does not": {
			want: sandbox.AccelKVM, choice: doubtful, boots: boots{fails: map[sandbox.Accel]error{sandbox.AccelKVM: late}},
			asked: both[:1], says: "warning: ", err: "--accel=tcg",
		},
	} {
		t.Run(name, func(t *testing.T) {
			j := &judge{choice: c.choice}
			e := &Engine{opts: Options{Images: rootFS{}, Templates: &c.boots, Accel: j, Log: slog.New(slog.DiscardHandler), Dir: filepath.Join(t.TempDir())}}
			var said []string
			m, err := e.Template(t.Context(), image.Image{}, TemplateWish{vm.Shape{}, c.want, sandbox.ConfinementReduced}, func(line string) { said = append(said, line) })
			if (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
				t.Errorf("error %v, want %q", err, c.err)
			}
			if err == nil && m.Accel != c.asked[len(c.asked)-1] {
				t.Errorf("the template is for %s", m.Accel)
			}
			if !slices.Equal(c.boots.asked, c.asked) || !slices.Equal(j.learned, c.learned) {
				t.Errorf("asked for %v, learned %q; want %v, %q", c.boots.asked, j.learned, c.asked, c.learned)
			}
			if all := strings.Join(said, "\n"); !strings.Contains(all, c.says) || c.says == "" && all != "" {
				t.Errorf("said %q, want %q", all, c.says)
			}
		})
	}
}
