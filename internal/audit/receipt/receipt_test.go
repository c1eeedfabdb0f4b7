package receipt

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"math/big"
	"strings"
	"testing"
	"time"

	"creel/internal/audit/chain"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/mod/sumdb/note"
)

func keys(t *testing.T) (note.Signer, string) {
	t.Helper()
	private, public, err := note.GenerateKey(rand.Reader, "creel/ledger/test")
	if err != nil {
		t.Fatal(err)
	}
	signer, err := note.NewSigner(private)
	if err != nil {
		t.Fatal(err)
	}
	return signer, public
}

func sample() Receipt {
	code := 3
	return Receipt{
		Sandbox: "aa", Started: time.Date(2026, 11, 23, 1, 2, 3, 4, time.UTC), Template: "sha256:11", Confinement: "full",
		Secrets: []string{"TOKEN"}, Hosts: []Host{{Host: "example.org", Port: 443, Decision: "allow", Count: 2, BytesOut: 10}},
		Budgets: []Budget{{Name: "bytes_out", Limit: 100, Used: 10}}, FilesOut: []File{{"/out.txt", "sha256:22", 5}}, ExitCode: &code,
		Cleanup: Cleanup{Complete: true, Checked: []string{"processes"}},
		Audit:   Audit{Log: chain.Head{Origin: "creel/log/aa/00", Size: 7}, Ledger: chain.Head{Origin: "creel/ledger/test", Size: 9}},
	}
}

func TestVerifyNeedsOnlyThePublicKey(t *testing.T) {
	signer, public := keys(t)
	data, err := Sign(sample(), signer)
	if err != nil {
		t.Fatal(err)
	}
	got, err := Verify(data, public+"\n")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(sample(), got); diff != "" {
		t.Error(diff)
	}
}

func TestVerifyFindsChanges(t *testing.T) {
	signer, public := keys(t)
	_, other := keys(t)
	data, err := Sign(sample(), signer)
	if err != nil {
		t.Fatal(err)
	}
	var e envelope
	if err := json.Unmarshal(data, &e); err != nil {
		t.Fatal(err)
	}
	payload, _ := base64.StdEncoding.DecodeString(e.Payload)
	pack := func(change func(*envelope)) []byte {
		c := e
		c.Signatures = append([]signature(nil), e.Signatures...)
		change(&c)
		out, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	signed := func(payload, payloadType string) []byte {
		sig, _ := signer.Sign(preAuth(payloadType, []byte(payload)))
		return pack(func(c *envelope) {
			c.Payload, c.PayloadType = base64.StdEncoding.EncodeToString([]byte(payload)), payloadType
			c.Signatures[0].Sig = base64.StdEncoding.EncodeToString(sig)
		})
	}
	for name, c := range map[string]struct {
		data []byte
		key  string
		want string
	}{
		"other key": {data, other, "not signed by"},
		"edited": {pack(func(c *envelope) {
			c.Payload = base64.StdEncoding.EncodeToString([]byte(strings.Replace(string(payload), `"exitCode":3`, `"exitCode":0`, 1)))
		}), public, "not signed by"},
		"signature removed": {pack(func(c *envelope) { c.Signatures = nil }), public, "not signed by"},
		"other type":        {signed(string(payload), "text/plain"), public, "payload type"},
		"other statement":   {signed(strings.Replace(string(payload), "receipt:v1", "receipt:v2", 1), PayloadType), public, "no receipt"},
		"other subject":     {signed(strings.Replace(string(payload), `"/out.txt","digest"`, `"/in.txt","digest"`, 1), PayloadType), public, "subject"},
		"unknown key":       {signed(`{"x":1,`+string(payload)[1:], PayloadType), public, "unknown field"},
		"more":              {append(data[:len(data):len(data)], data...), public, "more than one"},
		"not JSON":          {[]byte("x"), public, "envelope"},
	} {
		if _, err := Verify(c.data, c.key); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		}
	}
}

// TestEncodingIsDSSE checks the test vector of the DSSE specification
// (secure-systems-lab/dsse, protocol.md, "Test Vectors").
func TestEncodingIsDSSE(t *testing.T) {
	pae := preAuth("http://example.com/HelloWorld", []byte("hello world"))
	if want := "DSSEv1 29 http://example.com/HelloWorld 11 hello world"; string(pae) != want {
		t.Fatalf("encoding %q, want %q", pae, want)
	}
	number := func(s string) *big.Int { n, _ := new(big.Int).SetString(s, 10); return n }
	point := []byte{4}
	point = append(point, number("46950820868899156662930047687818585632848591499744589407958293238635476079160").FillBytes(make([]byte, 32))...)
	point = append(point, number("5640078356564379163099075877009565129882514886557779369047442380624545832820").FillBytes(make([]byte, 32))...)
	key, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), point)
	if err != nil {
		t.Fatal(err)
	}
	sig, err := base64.StdEncoding.DecodeString("A3JqsQGtVsJ2O2xqrI5IcnXip5GToJ3F+FnZ+O88SjtR6rDAajabZKciJTfUiHqJPcIAriEGAHTVeCUjW2JIZA==")
	if err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256(pae)
	if !ecdsa.Verify(key, digest[:], new(big.Int).SetBytes(sig[:32]), new(big.Int).SetBytes(sig[32:])) {
		t.Error("the specification's signature is not over our encoding")
	}
}

func FuzzVerify(f *testing.F) {
	private, public, err := note.GenerateKey(rand.Reader, "creel/ledger/test")
	if err != nil {
		f.Fatal(err)
	}
	signer, err := note.NewSigner(private)
	if err != nil {
		f.Fatal(err)
	}
	data, err := Sign(sample(), signer)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := Verify(data, public)
		if err == nil && !cmp.Equal(r, sample()) {
			t.Errorf("accepted %+v", r)
		}
	})
}
