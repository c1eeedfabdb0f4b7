package integration

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"creel/test/rig"
)

// Package managers install from where this machine's own settings send them:
// presets make the rules. What apt's preset reads is below /etc, which a test
// leaves alone, so that its rule is written by hand; the preset go is tried
// with curl, since there is no Go in the image.
func TestClientsPresets(t *testing.T) {
	r, image := clients(t)
	w := newWorld(t)
	host := "http://host.creel.internal:" + portIn(w.plain)
	files := map[string][]byte{}
	addNPM(t, files, host+"/npm/files/")
	addPip(t, files)
	addApt(t, files)
	files["go/example.com/tiny/@v/list"] = []byte("v1.0.0\n")
	w.mux.HandleFunc("/{client}/files/{rest...}", func(rw http.ResponseWriter, r *http.Request) {
		data, there := files[r.PathValue("client")+"/"+r.PathValue("rest")]
		if !there {
			http.NotFound(rw, r)
			return
		}
		rw.Write(data)
	})
	// One host for all of them, as in many a company.
	settings(t, r, map[string]string{
		".npmrc":               "registry=" + host + "/npm/files/\n",
		".config/pip/pip.conf": "[global]\nindex-url = " + host + "/pip/files/simple\n",
		".config/go/env":       "GOPROXY=" + host + "/go/files\nGOSUMDB=off\n",
	})
	policy := w.policy(t, "rules: [{allow: apt.example.com, protocol: http, upstream: PLAIN}]\n")
	for _, c := range []struct{ name, run, want string }{
		{"npm", `npm install --no-audit --no-fund --loglevel=error tiny >&2; node -e "console.log('npm:', require('tiny'))"`, "npm: from npm\n"},
		{"pip", `pip install -q --break-system-packages --disable-pip-version-check --trusted-host host.creel.internal tiny >&2
			python3 -c "import tiny; print('pip:', tiny.text)"`, "pip: from pip\n"},
		{"go", `curl -sS --fail-with-body $GOPROXY/example.com/tiny/@v/list`, "v1.0.0\n"},
		{"apt", `echo "deb [trusted=yes] http://apt.example.com/apt/files ./" >/etc/apt/sources.list
			apt-get -qq update >&2; apt-get -qq install tiny >&2; tiny`, "apt: from apt\n"},
	} {
		args := []string{"run", "--policy", policy, "--preset", "npm", "--preset", "pip", "--preset", "go",
			"-e", "NPM_CONFIG_REGISTRY=" + host + "/npm/files/", "-e", "PIP_INDEX_URL=" + host + "/pip/files/simple", "-e", "GOPROXY=" + host + "/go/files",
			"-w", "/work", image, "sh", "-ec", c.run}
		if got := r.Run(t, args...); got.Out != c.want || got.Code != 0 {
			t.Errorf("%s: %s%s, exit code %d", c.name, got.Out, got.Err, got.Code)
		}
	}
}

// settings are files in the home of the rig's user, for the time of a test.
func settings(t *testing.T, r *rig.Rig, files map[string]string) {
	t.Helper()
	for name, text := range files {
		name = filepath.Join(r.Home, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.Remove(name) })
	}
}

// addNPM adds a registry with one package.
func addNPM(t *testing.T, files map[string][]byte, registry string) {
	t.Helper()
	var archive bytes.Buffer
	packed := gzip.NewWriter(&archive)
	tree := tar.NewWriter(packed)
	for _, f := range [][2]string{
		{"package/package.json", `{"name": "tiny", "version": "1.0.0"}`},
		{"package/index.js", `module.exports = "from npm"`},
	} {
		if err := tree.WriteHeader(&tar.Header{Name: f[0], Mode: 0o644, Size: int64(len(f[1]))}); err != nil {
			t.Fatal(err)
		}
		tree.Write([]byte(f[1]))
	}
	tree.Close()
	packed.Close()
	sum := sha512.Sum512(archive.Bytes())
	files["npm/tiny/-/tiny-1.0.0.tgz"] = archive.Bytes()
	files["npm/tiny"] = fmt.Appendf(nil, `{"name": "tiny", "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": {"name": "tiny", "version": "1.0.0",
		"dist": {"tarball": "%stiny/-/tiny-1.0.0.tgz", "integrity": "sha512-%s"}}}}`, registry, base64.StdEncoding.EncodeToString(sum[:]))
}

// addPip adds an index with one wheel.
func addPip(t *testing.T, files map[string][]byte) {
	t.Helper()
	var wheel bytes.Buffer
	packed := zip.NewWriter(&wheel)
	for _, f := range [][2]string{
		{"tiny.py", "text = 'from pip'\n"},
		{"tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n"},
		{"tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"},
		{"tiny-1.0.dist-info/RECORD", "tiny.py,,\ntiny-1.0.dist-info/METADATA,,\ntiny-1.0.dist-info/WHEEL,,\ntiny-1.0.dist-info/RECORD,,\n"},
	} {
		file, err := packed.Create(f[0])
		if err != nil {
			t.Fatal(err)
		}
		file.Write([]byte(f[1]))
	}
	packed.Close()
	const name = "tiny-1.0-py3-none-any.whl"
	files["pip/"+name] = wheel.Bytes()
	files["pip/simple/tiny/"] = fmt.Appendf(nil, `<!DOCTYPE html><a href="../../%s#sha256=%x">%[1]s</a>`, name, sha256.Sum256(wheel.Bytes()))
}

// addApt adds a flat archive with one package.
func addApt(t *testing.T, files map[string][]byte) {
	t.Helper()
	dir := t.TempDir()
	const control = "Package: tiny\nVersion: 1.0\nArchitecture: all\nMaintainer: A <a@example.com>\nDescription: tiny\n"
	for name, text := range map[string]string{"DEBIAN/control": control, "usr/bin/tiny": "#!/bin/sh\necho apt: from apt\n"} {
		name = filepath.Join(dir, "tree", name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(dir, "tiny.deb")
	if out, err := exec.Command("dpkg-deb", "--root-owner-group", "--build", filepath.Join(dir, "tree"), file).CombinedOutput(); err != nil {
		t.Fatalf("dpkg-deb: %v: %s", err, out)
	}
	deb, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	list := fmt.Appendf(nil, "%sFilename: ./tiny.deb\nSize: %d\nSHA256: %x\n\n", control, len(deb), sha256.Sum256(deb))
	files["apt/tiny.deb"], files["apt/Packages"] = deb, list
	files["apt/Release"] = fmt.Appendf(nil, "Date: Thu, 01 Jan 2026 00:00:00 UTC\nSHA256:\n %x %d Packages\n", sha256.Sum256(list), len(list))
}
