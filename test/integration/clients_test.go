package integration

import (
	"os"
	"testing"

	"creel/test/images"
	"creel/test/rig"
)

// clients is a rig with the image of what tasks speak to the network with, and
// its template. The first test that asks takes it in.
func clients(t *testing.T) (r *rig.Rig, image string) {
	t.Helper()
	r = machines(t)
	const name = "clients"
	if r.Run(t, "image", "inspect", name).Code == 0 {
		return r, name
	}
	tar, err := images.Clients(rig.Context(t))
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(tar)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if got := r.RunIn(t, f, "image", "import", "-", name); got.Code != 0 {
		t.Fatalf("import %s: %+v", tar, got)
	}
	r.Must(t, "template", "build", name) // what tests find changed is then their own
	return r, name
}
