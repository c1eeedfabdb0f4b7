package integration

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"io"
	"testing"
)

// What the task prints: blocks that each begin with their number.
const (
	flowBlock  = 64 << 10
	flowBlocks = 1 << 14 // 1 GiB: more than any process may hold
)

const flowProgram = `
import sys
rest = bytes(range(256)) * 256
for i in range(16384):
    sys.stdout.buffer.write(i.to_bytes(8, "little") + rest[8:])`

// A reader that does not read holds up the task, and nothing else: no byte is
// lost, no process grows, and other processes of the sandbox go on.
func TestSlowReader(t *testing.T) {
	r := machines(t)
	task := r.Start(t, "run", "-q", "--name", "slow-reader", "debian", "python3", "-c", flowProgram)
	first := make([]byte, 1)
	if _, err := io.ReadFull(task.Stdout, first); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if got := r.Run(t, "exec", "slow-reader", "echo", "not held up"); got.Out != "not held up\n" {
			t.Fatalf("beside a task that waits for its reader: %+v", got)
		}
	}
	sandbox := r.Inspect(t, "slow-reader")
	got := sha256.New()
	got.Write(first)
	if _, err := io.CopyN(got, task.Stdout, flowBlock*flowBlocks-1); err != nil {
		t.Fatalf("the output ended early: %v; %s", err, task.Stderr)
	}
	for name, pid := range map[string]int{"keeper": sandbox.Status.KeeperPID, "client": task.Cmd.Process.Pid} {
		peak := peakMemory(pid)
		if peak == 0 || peak > 48<<20 {
			t.Errorf("the %s took %d MiB", name, peak>>20)
		}
	}
	if rest, err := io.ReadAll(task.Stdout); len(rest) > 0 || err != nil {
		t.Errorf("%d bytes more, %v", len(rest), err)
	}
	if code := task.Wait(); code != 0 {
		t.Errorf("exit code %d: %s", code, task.Stderr)
	}
	if want := flowSum(); hex.EncodeToString(got.Sum(nil)) != want {
		t.Errorf("what arrived is not what was written")
	}
}

func flowSum() string {
	h := sha256.New()
	block := make([]byte, flowBlock)
	for i := range block {
		block[i] = byte(i)
	}
	for i := range flowBlocks {
		binary.LittleEndian.PutUint64(block, uint64(i))
		h.Write(block)
	}
	return hex.EncodeToString(h.Sum(nil))
}
