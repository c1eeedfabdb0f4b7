package vmtest

import (
	"errors"
	"io"
	"net"
	"testing"

	"creel/internal/vm"
)

func TestDriverServesTheGuest(t *testing.T) {
	d := &Driver{Guest: func(c net.Conn) { io.Copy(c, c) }}
	m, err := d.Start(t.Context(), vm.Config{})
	if err != nil {
		t.Fatal(err)
	}
	echo(t, m.Control(), "over and back")
	closeTwice(t, m)
	if m.Err() != nil {
		t.Errorf("Err() = %v after Close", m.Err())
	}
}

func TestDriverFailsAndDiesWhenTold(t *testing.T) {
	bad := errors.New("bad")
	d := &Driver{FailStart: func(vm.Config) error { return bad }}
	if _, err := d.Start(t.Context(), vm.Config{}); !errors.Is(err, bad) {
		t.Errorf("Start = %v", err)
	}
	d.FailStart = nil
	m, err := d.Start(t.Context(), vm.Config{})
	if err != nil {
		t.Fatal(err)
	}
	d.Machines()[0].Die(bad)
	<-m.Done()
	if !errors.Is(m.Err(), bad) {
		t.Errorf("Err() = %v", m.Err())
	}
	if err := m.(vm.Snapshotter).Snapshot(t.Context(), temp(t, 0)); err == nil {
		t.Error("a dead machine was frozen")
	}
	closeTwice(t, m)
	if !errors.Is(m.Err(), bad) {
		t.Errorf("Close changed Err to %v", m.Err())
	}
}
