// Package receipt is the signed summary of one run: an in-toto statement in a
// DSSE envelope, which anybody who has the installation's public key can check
// with other tools too. [Receipt] is what it says, [Sign] and [Verify] are all
// that is done with it. The package must not read the audit record: who makes a
// receipt says what happened, and the heads in it say where that is proven.
package receipt

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"creel/internal/audit/chain"

	"golang.org/x/mod/sumdb/note"
)

// Types that stand in the envelope and the statement.
const (
	PayloadType   = "application/vnd.in-toto+json"
	StatementType = "https://in-toto.io/Statement/v1"
	PredicateType = "urn:creel:receipt:v1"
)

// MaxBytes is the most that a receipt may have.
const MaxBytes = 16 << 20

// Receipt says what one run was, did and left behind. Digests are
// sha256:HEX. Sizes and counts are those of the whole run.
type Receipt struct {
	Sandbox     string    `json:"sandbox"`
	Name        string    `json:"name,omitempty"`
	Started     time.Time `json:"started,omitzero"`
	Finished    time.Time `json:"finished,omitzero"`
	Image       string    `json:"image,omitempty"`
	Template    string    `json:"template"`           // digest
	Policies    []string  `json:"policies,omitempty"` // digest of each generation that was in force, in order
	Tier        string    `json:"tier,omitempty"`
	Confinement string    `json:"confinement"` // the level achieved
	Accel       string    `json:"accel,omitempty"`
	Secrets     []string  `json:"secrets,omitempty"` // names of those that were used
	Hosts       []Host    `json:"hosts,omitempty"`
	Ports       []Port    `json:"ports,omitempty"` // published, where somebody came in
	Budgets     []Budget  `json:"budgets,omitempty"`
	Alerts      []Alert   `json:"alerts,omitempty"`
	FilesIn     []File    `json:"filesIn,omitempty"`
	FilesOut    []File    `json:"filesOut,omitempty"`
	ExitCode    *int      `json:"exitCode"` // null: not known, its keeper was killed
	Cleanup     Cleanup   `json:"cleanup"`
	Audit       Audit     `json:"audit"`
	// Contradictions are what the log claims and the ledger denies: its keeper
	// was taken over, or is not what made the ledger's records.
	Contradictions []string `json:"contradictions,omitempty"`
}

// Host is a destination that was reached or denied.
type Host struct {
	Host     string `json:"host"`
	Port     int    `json:"port,omitempty"`   // 0: a name that was asked for
	Decision string `json:"decision"`         // allow or deny
	Count    int64  `json:"count"`            // connections, or denials
	Failed   int64  `json:"failed,omitempty"` // of the connections: ended by an error before a byte had passed
	BytesOut int64  `json:"bytesOut,omitempty"`
	BytesIn  int64  `json:"bytesIn,omitempty"`
	// Others stands for all destinations of this decision that have no entry.
	Others bool `json:"others,omitempty"`
}

// Port is a port of the sandbox, and how often it was connected to from
// outside.
type Port struct {
	Port  int    `json:"port"`
	Proto string `json:"proto"`
	Count int64  `json:"count"`
}

// Budget is a limit and what was used of it. Of a rule's limits only those are
// told that were used up, without figures.
type Budget struct {
	Name  string `json:"name"`           // key in the policy
	Rule  string `json:"rule,omitempty"` // "": of the task
	Limit int64  `json:"limit,omitempty"`
	Used  int64  `json:"used"`
	Spent bool   `json:"spent,omitempty"` // what would have exceeded it was denied
}

// Alert is what no honest task does, and was stopped.
type Alert struct {
	Alert string `json:"alert"` // stand-in or canary
	Name  string `json:"name"`  // of the secret or canary
	Where string `json:"where"` // it was about to leave: name, header, path, query, body or stream
	Host  string `json:"host,omitempty"`
	Port  int    `json:"port,omitempty"`
	Count int64  `json:"count"`
	// Others stands for all alerts that have no entry.
	Others bool `json:"others,omitempty"`
}

// File is a file or archive that went in or came out.
type File struct {
	Path   string `json:"path"`
	Digest string `json:"digest"`
	Bytes  int64  `json:"bytes"`
}

// Cleanup says that nothing of the run is left, or what is.
type Cleanup struct {
	Complete bool     `json:"complete"`
	Checked  []string `json:"checked,omitempty"` // what was looked for: processes, sockets, …
	Left     []string `json:"left,omitempty"`
	Kept     []string `json:"kept,omitempty"` // left on purpose, until the sandbox is removed
}

// Audit says where the run's record is. Give both to a verifier to expect.
type Audit struct {
	Log    chain.Head `json:"log"`    // the sandbox's log, when it was closed
	Ledger chain.Head `json:"ledger"` // the ledger after that
}

// statement is an in-toto statement, version 1.
type statement struct {
	Type          string    `json:"_type"`
	Subject       []subject `json:"subject"`
	PredicateType string    `json:"predicateType"`
	Predicate     Receipt   `json:"predicate"`
}

type subject struct {
	Name   string            `json:"name"`
	Digest map[string]string `json:"digest"`
}

// envelope is a DSSE envelope, version 1.
type envelope struct {
	PayloadType string      `json:"payloadType"`
	Payload     string      `json:"payload"` // base64
	Signatures  []signature `json:"signatures"`
}

type signature struct {
	KeyID string `json:"keyid"`
	Sig   string `json:"sig"` // base64
}

// preAuth is DSSE's encoding of what is signed.
func preAuth(payloadType string, payload []byte) []byte {
	return fmt.Appendf(nil, "DSSEv1 %d %s %d %s", len(payloadType), payloadType, len(payload), payload)
}

// keyID names a key as a note does: the name and eight hexadecimal digits.
func keyID(name string, hash uint32) string { return fmt.Sprintf("%s+%08x", name, hash) }

// Sign returns the receipt as a DSSE envelope in JSON. Its subject is the run's
// log, by the digest of its checkpoint's text, and each file that came out.
func Sign(r Receipt, signer note.Signer) ([]byte, error) {
	s := statement{Type: StatementType, PredicateType: PredicateType, Predicate: r, Subject: subjects(r)}
	payload, err := json.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("encode receipt: %w", err)
	}
	sig, err := signer.Sign(preAuth(PayloadType, payload))
	if err != nil {
		return nil, fmt.Errorf("sign receipt: %w", err)
	}
	out, err := json.MarshalIndent(envelope{
		PayloadType: PayloadType, Payload: base64.StdEncoding.EncodeToString(payload),
		Signatures: []signature{{keyID(signer.Name(), signer.KeyHash()), base64.StdEncoding.EncodeToString(sig)}},
	}, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode receipt: %w", err)
	}
	if out = append(out, '\n'); len(out) > MaxBytes {
		return nil, fmt.Errorf("sign receipt: it has %d bytes, at most %d: the sandbox's log claims more than a run can do; look at it with `creel audit query`", len(out), MaxBytes)
	}
	return out, nil
}

func subjects(r Receipt) []subject {
	log := sha256.Sum256([]byte(r.Audit.Log.Text()))
	out := []subject{{r.Audit.Log.Origin, map[string]string{"sha256": hex.EncodeToString(log[:])}}}
	for _, f := range r.FilesOut {
		out = append(out, subject{f.Path, map[string]string{"sha256": strings.TrimPrefix(f.Digest, "sha256:")}})
	}
	return out
}

// Verify checks a receipt with nothing but the public key, in the form of
// golang.org/x/mod/sumdb/note, of the installation that signed it.
func Verify(data []byte, publicKey string) (Receipt, error) {
	key, err := chain.Verifier(strings.TrimSpace(publicKey))
	if err != nil {
		return Receipt{}, err
	}
	if len(data) > MaxBytes {
		return Receipt{}, fmt.Errorf("receipt has %d bytes, at most %d", len(data), MaxBytes)
	}
	var e envelope
	if err := decode(data, &e); err != nil {
		return Receipt{}, fmt.Errorf("decode receipt's envelope: %w", err)
	}
	if e.PayloadType != PayloadType {
		return Receipt{}, fmt.Errorf("receipt's payload type is %q, want %q", e.PayloadType, PayloadType)
	}
	payload, err := base64.StdEncoding.DecodeString(e.Payload)
	if err != nil {
		return Receipt{}, fmt.Errorf("decode receipt's payload: %w", err)
	}
	if err := checkSignature(e, preAuth(e.PayloadType, payload), key); err != nil {
		return Receipt{}, err
	}
	var s statement
	if err := decode(payload, &s); err != nil {
		return Receipt{}, fmt.Errorf("decode receipt: %w", err)
	}
	if s.Type != StatementType || s.PredicateType != PredicateType {
		return Receipt{}, fmt.Errorf("a %q with a %q is no receipt that this creel knows", s.Type, s.PredicateType)
	}
	want, err := json.Marshal(subjects(s.Predicate))
	if err != nil {
		return Receipt{}, fmt.Errorf("encode receipt's subject: %w", err)
	}
	if got, err := json.Marshal(s.Subject); err != nil || !bytes.Equal(got, want) {
		return Receipt{}, errors.New("the receipt's subject is not what it tells of")
	}
	return s.Predicate, nil
}

func checkSignature(e envelope, signed []byte, key note.Verifier) error {
	var ids []string
	for _, s := range e.Signatures {
		sig, err := base64.StdEncoding.DecodeString(s.Sig)
		if err == nil && key.Verify(signed, sig) {
			return nil
		}
		ids = append(ids, s.KeyID)
	}
	want := keyID(key.Name(), key.KeyHash())
	return fmt.Errorf("the receipt is not signed by %s: it was changed, or give the public key of %q", want, ids)
}

func decode(data []byte, into any) error {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(into); err != nil {
		return err
	}
	if dec.More() {
		return errors.New("more than one value")
	}
	return nil
}
