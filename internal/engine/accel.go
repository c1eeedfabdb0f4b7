package engine

import (
	"context"
	"errors"
	"fmt"

	"creel/internal/image"
	"creel/internal/sandbox"
	"creel/internal/template"
	"creel/internal/vm"
	"creel/internal/vm/accel"
)

// Accelerators decides what executes the code of the guest that a template
// would be booted with.
type Accelerators interface {
	Choose(ctx context.Context, want sandbox.Accel, level sandbox.Confinement) (accel.Choice, error)
	// Learn remembers whether a template came up under KVM.
	Learn(ctx context.Context, c accel.Choice, failure error) error
}

// TemplateWish is what is wanted of a template beside its image.
type TemplateWish struct {
	Shape       vm.Shape
	Accel       sandbox.Accel
	Confinement sandbox.Confinement // of the VMM that builds it
}

// Template finds or builds the template of an image. Where the accelerator was
// left to Creel and the template does not come up under KVM, it is built for
// emulation; progress says so, and later ones of the same guest kernel are
// emulated at once. KVM that was insisted on has its try wherever it opens.
func (e *Engine) Template(ctx context.Context, img image.Image, want TemplateWish, progress func(string)) (template.Manifest, error) {
	choice, err := e.opts.Accel.Choose(ctx, want.Accel, want.Confinement)
	if err != nil {
		return template.Manifest{}, err
	}
	if choice.Doubt != "" {
		progress("warning: KVM does not look usable here, and is used as asked: " + choice.Doubt)
	}
	fs, err := e.opts.Images.RootFS(ctx, img)
	if err != nil {
		return template.Manifest{}, err
	}
	req := template.Request{Image: img.ID, RootFS: template.RootFS(fs), Shape: want.Shape, Accel: choice.Accel, Confinement: want.Confinement}
	m, built, err := e.opts.Templates.For(ctx, req, progress)
	switch {
	case err == nil && built && choice.Doubt != "":
		e.learn(ctx, choice, nil)
	case errors.Is(err, template.ErrDeadline) && choice.Accel == sandbox.AccelKVM && want.Accel == sandbox.AccelAuto:
		return e.emulate(ctx, req, choice, err, progress)
	case errors.Is(err, template.ErrDeadline) && choice.Doubt != "":
		return m, fmt.Errorf("%w; use --accel=tcg, which emulates", err)
	}
	return m, err
}

// emulate builds a template for emulation that did not come up under KVM. Only
// where it does come up then KVM was to blame.
func (e *Engine) emulate(ctx context.Context, req template.Request, choice accel.Choice, failure error, progress func(string)) (template.Manifest, error) {
	progress("the template did not come up under KVM; using emulation, which is slower (`creel doctor` says more)")
	req.Accel = sandbox.AccelTCG
	m, _, err := e.opts.Templates.For(ctx, req, progress)
	if err == nil {
		e.learn(ctx, choice, failure)
	}
	return m, err
}

// learn keeps what a boot has shown. Without it the next run only takes longer.
func (e *Engine) learn(ctx context.Context, choice accel.Choice, failure error) {
	if err := e.opts.Accel.Learn(ctx, choice, failure); err != nil {
		e.opts.Log.Warn("what was learned of KVM could not be kept", "err", err)
	}
}
