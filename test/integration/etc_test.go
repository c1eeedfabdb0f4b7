package integration

import (
	"bytes"
	"testing"

	"github.com/google/go-cmp/cmp"

	"creel/internal/image/imagetest"
	"creel/test/rig"
)

// etcProgram prints what /etc is and what the identity's files are, and what
// must not have been written to.
const etcProgram = `stat -c '%n %a %F %u' /etc /etc/hostname /etc/hosts /etc/machine-id /etc/resolv.conf
test "$(cat /etc/hostname)" = "$(hostname)" && grep -c localhost /etc/hosts && wc -c </etc/machine-id
cat /elsewhere/target; ls /elsewhere`

const etcFiles = `/etc/hostname 644 regular file 0
/etc/hosts 644 regular file 0
/etc/machine-id 444 regular file 0
/etc/resolv.conf 644 regular file 0
2
33
mine
`

// The files of a clone's identity are there whatever the image has in their
// place, links are replaced, and the image's /etc stays what it is.
func TestIdentityInAnOddEtc(t *testing.T) {
	r := machines(t)
	lowest := debianLayer(t)
	private := imagetest.Dir("etc/")
	private.Mode = 0o700
	target := []imagetest.File{imagetest.Dir("elsewhere/"), imagetest.Reg("elsewhere/target", "mine\n", 0o644)}
	for name, c := range map[string]struct {
		layer []imagetest.File
		want  string
	}{
		"links": {[]imagetest.File{
			imagetest.Dir("etc/"), imagetest.Symlink("etc/hosts", "../elsewhere/target"),
			imagetest.Symlink("etc/resolv.conf", "/elsewhere/target"), imagetest.Symlink("etc/machine-id", "/elsewhere/none"),
		}, "/etc 755 directory 0\n" + etcFiles + "target\n"},
		"private": {[]imagetest.File{
			private, imagetest.Reg("etc/hostname", "a longer name than the clone's\n", 0o644), imagetest.Symlink("etc/resolv.conf", "/elsewhere/target"), imagetest.Symlink("etc/machine-id", "/elsewhere/none"),
		}, "/etc 700 directory 0\n" + etcFiles + "target\n"},
		"a-link": {[]imagetest.File{
			imagetest.Symlink("etc", "elsewhere"),
		}, "/etc 777 symbolic link 0\n" + etcFiles + "hostname\nhosts\nmachine-id\nresolv.conf\ntarget\n"},
		"none": {[]imagetest.File{imagetest.Whiteout("", "etc")}, "/etc 755 directory 0\n" + etcFiles + "target\n"},
	} {
		t.Run(name, func(t *testing.T) {
			ref := "etc-" + name + ":v1"
			img := imagetest.Image{Name: ref, Layers: [][]byte{lowest, imagetest.MakeLayer(t, append(target, c.layer...)...)}}
			loadedID(t, r.RunIn(t, bytes.NewReader(imagetest.DockerArchive(t, img)), "image", "load"))
			if diff := cmp.Diff(c.want, r.Must(t, "run", "-q", ref, "sh", "-c", etcProgram)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			checkKeptEtc(t, r, ref)
		})
	}
}

// checkKeptEtc looks at a kept disk once more: what a task has made of its /etc
// outlives the sandbox's VM.
func checkKeptEtc(t *testing.T, r *rig.Rig, ref string) {
	t.Helper()
	name := background(t, r, ref, "sh", "-c", "echo own >/etc/own; sleep 1000")
	r.Must(t, "exec", name, "sh", "-c", "until test -s /etc/own; do sleep 0.1; done")
	r.Must(t, "stop", "-t", "0", name)
	if got := tarListing(t, r.Must(t, "cp", name+":/etc/own", "-")); len(got) != 1 {
		t.Errorf("of the task's own file there is %q", got)
	}
}
