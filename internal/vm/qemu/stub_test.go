package qemu_test

import (
	"fmt"
	"testing"

	"creel/internal/sandbox"
	"creel/internal/vm"
	"creel/internal/vm/qemu"
	"creel/internal/vm/vmtest"
)

func TestStubGuest(t *testing.T) {
	d, err := qemu.New(qemu.Options{})
	if err != nil {
		t.Skip(err)
	}
	for _, a := range []sandbox.Accel{sandbox.AccelTCG, sandbox.AccelKVM} {
		for _, level := range []sandbox.Confinement{sandbox.ConfinementFull, sandbox.ConfinementReduced} {
			for _, cpus := range []int{1, 2} {
				t.Run(fmt.Sprintf("%s %s %d", a, level, cpus), func(t *testing.T) {
					vmtest.RunStub(t, d, vmtest.StubFixtures{Accel: a, VCPUs: cpus, Confinement: func(t *testing.T) vm.Confinement {
						return vm.Confinement{Level: level, UID: 20001, GID: 20001, Dir: t.TempDir()}
					}})
				})
			}
		}
	}
}
