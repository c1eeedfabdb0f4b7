package main

import (
	"bytes"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"creel/internal/audit"
	"creel/internal/policy/syntax"
)

// What is verified for the table is a log that a keeper could have written,
// and every line of it is looked at.
func TestFilledLogIsVerified(t *testing.T) {
	r := &rig{disk: t.TempDir()}
	t.Cleanup(func() { r.Close() })
	ledger, dir, err := r.ledger()
	if err != nil {
		t.Fatal(err)
	}
	sub := filepath.Join(dir, "0")
	key, err := ledger.OpenSandbox(t.Context(), "bench", sub)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(sub, audit.LogName)
	if err := fill(t.Context(), path, key, 2000); err != nil {
		t.Fatal(err)
	}
	public, err := ledger.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	verify := func() audit.Report {
		t.Helper()
		report, err := audit.Verify(t.Context(), filepath.Join(dir, "audit"), public, audit.Options{Live: true})
		if err != nil {
			t.Fatal(err)
		}
		return report
	}
	if got := verify(); len(got.Faults) > 0 || got.Records < 2000 {
		t.Errorf("%+v", got)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	i := len(data)/2 + bytes.Index(data[len(data)/2:], []byte("192.0.2.7"))
	data[i+8] = '8'
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := verify(); len(got.Faults) != 1 {
		t.Errorf("after an edit: %+v", got)
	}
}

// An act that takes long does not keep those behind it from coming.
func TestDelaysAreOfActsThatComeEvenly(t *testing.T) {
	var came atomic.Int64
	last := make(chan struct{})
	got, err := delays(t.Context(), func(i int) error {
		if came.Add(1) == actsPerSecond {
			close(last)
		}
		if i%50 == 0 {
			<-last
		}
		return nil
	})
	if err != nil || came.Load() != actsPerSecond || got["p99"] < 100 || got["p50"] >= 100 {
		t.Errorf("%d acts, %v, %v", came.Load(), got, err)
	}
}

func TestSyncedSharesSyncsAndLosesNothing(t *testing.T) {
	r := &rig{disk: t.TempDir()}
	t.Cleanup(func() { r.Close() })
	files, err := r.files(1)
	if err != nil {
		t.Fatal(err)
	}
	var writers sync.WaitGroup
	for range 20 {
		writers.Go(func() {
			if err := files[0].append(make([]byte, lineBytes)); err != nil {
				t.Error(err)
			}
		})
	}
	writers.Wait()
	info, err := files[0].file.Stat()
	if err != nil || info.Size() != 20*lineBytes || files[0].durable != 20 {
		t.Errorf("%d bytes, %d durable, %v", info.Size(), files[0].durable, err)
	}
}

func TestDecisionsAreOfEveryKind(t *testing.T) {
	p, _, err := syntax.Parse([]byte(policyText(100)), syntax.Inputs{})
	if err != nil {
		t.Fatal(err)
	}
	if rate, err := decide(p, requestsOf(100)); err != nil || rate <= 0 {
		t.Errorf("%v, %v", rate, err)
	}
	if _, err := decide(nil, requestsOf(100)); err == nil {
		t.Error("a policy that allows nothing was measured")
	}
}
