package vm

import "testing"

func TestShapeForRoundsUp(t *testing.T) {
	for _, c := range []struct {
		memory int64
		cpus   float64
		want   string
	}{
		{0, 0, "512m-1cpu"},
		{16 << 20, 0.5, "256m-1cpu"},
		{256 << 20, 1, "256m-1cpu"},
		{256<<20 + 1, 1.1, "512m-2cpu"},
		{5 << 30, 3, "8192m-4cpu"},
		{8 << 30, 4, "8192m-4cpu"},
	} {
		got, err := ShapeFor(c.memory, c.cpus)
		if err != nil || got.String() != c.want {
			t.Errorf("ShapeFor(%d, %g) = %s, %v; want %s", c.memory, c.cpus, got, err, c.want)
		}
	}
	if _, err := ShapeFor(8<<30+1, 1); err == nil {
		t.Error("more memory than the ladder has was accepted")
	}
	if _, err := ShapeFor(0, 4.5); err == nil {
		t.Error("more CPUs than the ladder has were accepted")
	}
}
