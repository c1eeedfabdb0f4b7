package engine

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"creel/internal/audit"
	"creel/internal/audit/event"
	"creel/internal/engine/process"
	"creel/internal/engine/store"
	"creel/internal/policy"
	"creel/internal/policy/syntax"
	"creel/internal/policy/tier"
	"creel/internal/sandbox"
	"creel/internal/vm"
)

// Refused is the error about a Spec that is not let in. Nothing was done for
// it, and the ledger says so.
type Refused struct {
	Tier   string
	Faults []string // every one, for people
}

func (r *Refused) Error() string {
	if len(r.Faults) == 1 {
		return "refused: " + r.Faults[0]
	}
	return fmt.Sprintf("refused, with %d faults:\n%s", len(r.Faults), strings.Join(r.Faults, "\n"))
}

// admit refuses a Spec with every fault at once, and puts an admitted one on
// record before anything is done for it. Warn gets what is let in but seldom
// meant.
func (e *Engine) admit(ctx context.Context, spec *sandbox.Spec, warn func(string)) error {
	if spec.Resources.DiskBytes == 0 {
		spec.Resources.DiskBytes = sandbox.DefaultDisk
	}
	kind := audit.KindAdmitted
	p, faults, warnings := e.judge(spec)
	about := aboutSpec(spec, p)
	if fault := e.diskFault(); fault != "" {
		faults = append(faults, fault)
	}
	if len(faults) > 0 {
		kind, about.Faults = audit.KindRefused, faults
	}
	id := string(spec.ID)
	if _, err := sandbox.ParseID(id); err != nil {
		id = "" // its fault is on the list
	}
	if err := e.opts.Ledger.Append(ctx, audit.Event{Kind: kind, Sandbox: id, Data: about}); err != nil {
		return fmt.Errorf("record %s: %w; nothing is done without a record", kind, err)
	}
	if len(faults) > 0 {
		return &Refused{Tier: spec.Tier, Faults: faults}
	}
	for _, w := range warnings {
		warn("warning: " + w.String())
	}
	return nil
}

// aboutSpec is what goes on record of a Spec with its policy, which may be nil.
func aboutSpec(spec *sandbox.Spec, p *policy.Policy) event.Admitted {
	about := event.Admitted{
		Name: tier.Hide(spec.Name), Image: tier.Hide(spec.Image), Tier: tier.Hide(spec.Tier),
		Policy: syntax.Digest(syntax.Canonical(spec.Policy)),
	}
	if p != nil {
		about.Rules, about.Budget = len(p.Rules), syntax.Limits(p.Budget)
	}
	return about
}

// PlanExec admits one more process in a sandbox, whose tier holds for the
// variables of p, and completes it: what p leaves open is as the task has it.
func (e *Engine) PlanExec(ctx context.Context, f Found, p sandbox.Process, warn func(string)) (sandbox.Process, error) {
	if err := e.admitEnv(ctx, f, p.Env, warn); err != nil {
		return p, err
	}
	return process.Beside(f.Record.Config.Process, p), nil
}

func (e *Engine) admitEnv(ctx context.Context, f Found, env []string, warn func(string)) error {
	spec := f.Record.Config.Spec
	over, warnings := e.opts.Tiers[spec.Tier].AdmitEnv(env)
	for _, w := range warnings {
		warn("warning: " + w.String())
	}
	if len(over) == 0 {
		return nil // its keeper records it before it runs
	}
	var faults []string
	for _, fault := range over {
		faults = append(faults, tier.Hide(fault.String()))
	}
	err := e.opts.Ledger.Append(ctx, audit.Event{Kind: audit.KindRefused, Sandbox: string(spec.ID), Data: event.Admitted{
		Name: spec.Name, Image: tier.Hide(spec.Image), Tier: spec.Tier, Policy: f.Record.PolicyDigest, Faults: faults,
	}})
	return errors.Join(&Refused{Tier: spec.Tier, Faults: faults}, err)
}

// judge lists everything that is wrong with a Spec in itself, and everything
// in it that is over its tier's ceiling. The policy is nil where there is none,
// or none that can be read.
func (e *Engine) judge(spec *sandbox.Spec) (p *policy.Policy, faults []string, warnings policy.Faults) {
	if err := spec.Validate(); err != nil {
		faults = append(faults, lines(err)...)
	}
	if spec.Policy != "" && len(spec.Policy) <= sandbox.MaxPolicyBytes {
		var err error
		if p, _, err = syntax.Parse([]byte(spec.Policy), syntax.Inputs{}); err != nil {
			for _, line := range lines(err) {
				faults = append(faults, "policy: "+line)
			}
		} else if string(syntax.Text(p)) != spec.Policy {
			faults = append(faults, "policy: it is not in its canonical form")
		}
	}
	faults = append(faults, e.judgeSecrets(p)...)
	over, warnings := e.opts.Tiers[spec.Tier].Admit(wishFor(spec, p))
	for _, f := range over {
		faults = append(faults, f.String())
	}
	return p, tier.HideAll(faults), warnings
}

// lines are the faults that errors.Join put into one error.
func lines(err error) []string { return strings.Split(err.Error(), "\n") }

// wishFor says what a Spec asks for, with the sizes that would be used.
func wishFor(spec *sandbox.Spec, p *policy.Policy) tier.Wish {
	r := spec.Resources
	w := tier.Wish{
		Policy: p, Env: spec.Env, Publish: portsFor(spec), Reduced: spec.Confinement == sandbox.ConfinementReduced,
		MemoryBytes: r.MemoryBytes, CPUs: r.CPUs, DiskBytes: r.DiskBytes, PIDs: r.PIDs, Lifetime: spec.Timeout,
	}
	// A machine that is none is a fault that Validate lists.
	if shape, err := vm.ShapeFor(r.MemoryBytes, r.CPUs); err == nil {
		if w.MemoryBytes == 0 {
			w.MemoryBytes = int64(shape.MemoryMiB) << 20
		}
		if w.CPUs == 0 {
			w.CPUs = float64(shape.VCPUs)
		}
	}
	return w
}

// recordTemplate puts what the run will be cloned from on record.
func (e *Engine) recordTemplate(ctx context.Context, rec store.Record) error {
	err := e.opts.Ledger.Append(ctx, audit.Event{
		Kind: audit.KindTemplate, Sandbox: string(rec.Config.Spec.ID),
		Data: event.Template{Image: rec.ImageID, Template: rec.Config.Template, Accel: string(rec.Config.Accel)},
	})
	if err != nil {
		return errors.Join(errors.New("the template could not be put on record"), err)
	}
	return nil
}
