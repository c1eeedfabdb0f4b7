// Package network measures the boundary of sandboxes against what people would
// have instead: from inside a VM, with QEMU's own user networking and passt
// behind the same guest, and on the host alone, with Go's reverse proxy and
// mitmproxy in place of the edge. [Bench] has what it needs of the rest of the
// bench, and gives each [Row] of the table.
//
// The package must not judge or print, and must not reach beyond loopback.
package network

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"creel/internal/audit"
	"creel/internal/boundary/names"
	"creel/internal/guest/host"
	"creel/internal/undo"
	"creel/internal/vm"

	"golang.org/x/net/dns/dnsmessage"
)

const (
	netName = "bench-net"
	ownMTU  = 65000
	// userMTU is the largest of QEMU's user networking, which has no setting
	// for it: its stack offers and sends segments for 1500 bytes.
	userMTU = 1500

	bulkBytes   = 32 << 20
	tlsBytes    = 4 << 20 // which the guest has to decrypt
	connections = 150
	requests    = 100
	newNames    = 500 // of the 16384 that a sandbox has
)

// The hosts of the sandbox's policy.
const (
	opaqueHost  = "tcp.bench.test"
	httpHost    = "http.bench.test"
	splicedHost = "spliced.bench.test"
	openedHost  = "opened.bench.test"
	namesHost   = "names.bench.test"
)

// Row is a line of the table: x, and what it is compared with.
type Row struct {
	Name, Unit     string
	MinRatio, MaxA float64 // the row's target, as the table has it
	Setup          func(context.Context) (x, y Side, err error)
}

// Side is one of the two ways of a row.
type Side struct {
	Label  string
	Sample func(context.Context) (float64, error)
}

// Absent is what a row lacks on this machine.
type Absent string

func (e Absent) Error() string { return string(e) }

// ImageName is what Creel calls the image of guests, which has Python.
const ImageName = "creel-bench"

// Bench is what rows share. Its exported fields are the caller's.
type Bench struct {
	Ends  *undo.Stack // of what is started
	State string      // Creel's state directory
	Peers string      // where Debian's passt and mitmproxy were unpacked

	Image   func(context.Context) error                                         // takes the image in
	Creel   func(context.Context, ...string) *exec.Cmd                          // one command of Creel
	Record  func(context.Context) (dir string, key audit.SandboxKey, err error) // a sandbox's, on a disk
	Machine func(context.Context) (vm.Config, string, error)                    // what the same machine boots from, and the VMM

	Ready func(context.Context, *host.Client) error // makes one that boots ready

	served                *served
	user, passt           *bare
	online                bool // the sandbox netName runs
	edge, bareProxy, mitm *peer
}

// Rows are those of the network boundary, and of TLS at it.
func (b *Bench) Rows() []Row {
	user, passt := b.onUser, b.onPasst
	return append([]Row{
		{Name: "VM download, MTU 1500", Unit: "MB/s", MinRatio: 1, Setup: b.against(user, "download", bulkBytes, userMTU)},
		{Name: "VM upload, MTU 1500", Unit: "MB/s", MinRatio: 1, Setup: b.against(user, "upload", bulkBytes, userMTU)},
		{Name: "VM download, MTU 65000", Unit: "MB/s", MinRatio: 0.8, Setup: b.against(passt, "download", bulkBytes, ownMTU)},
		{Name: "VM upload, MTU 65000", Unit: "MB/s", MinRatio: 0.8, Setup: b.against(passt, "upload", bulkBytes, ownMTU)},
		{Name: "VM new connections", Unit: "/s", Setup: b.against(user, "connections", connections, userMTU)},
		{Name: "VM request, opaque", Unit: "ms", Setup: b.against(user, "requests", requests, userMTU)},
		{Name: "VM request, HTTP or opaque", Unit: "ms", Setup: b.both("requests", requests, httpURL, opaqueURL)},
		{Name: "VM request, TLS", Unit: "ms", Setup: b.both("requests", requests, openedURL, splicedURL)},
		{Name: "VM download, TLS", Unit: "MB/s", Setup: b.both("download", tlsBytes, openedURL, splicedURL)},
		{Name: "names", Unit: "/s", Setup: b.names},
	}, b.edgeRows()...)
}

// target is where a guest of Creel's is sent, and how the table calls it.
type target struct {
	label string
	url   func(*served) string
}

func at(scheme, host string, port func(*served) int) func(*served) string {
	return func(s *served) string { return fmt.Sprintf("%s://%s:%d", scheme, host, port(s)) }
}

func plainPort(s *served) int  { return s.plain }
func securePort(s *served) int { return s.secure }

var (
	opaqueURL  = target{"opaque TCP", at("http", opaqueHost, plainPort)}
	httpURL    = target{"HTTP", at("http", httpHost, plainPort)}
	splicedURL = target{"spliced", at("https", splicedHost, securePort)}
	openedURL  = target{"opened", at("https", openedHost, securePort)}
)

// backend is another network of a guest.
type backend func(ctx context.Context) (label string, b *bare, err error)

func (b *Bench) onUser(ctx context.Context) (string, *bare, error) {
	m, err := b.withUser(ctx)
	return "QEMU user", m, err
}

func (b *Bench) onPasst(ctx context.Context) (string, *bare, error) {
	m, err := b.withPasst(ctx)
	return "passt", m, err
}

// against compares an opaque connection of a sandbox's, audited, with another
// network of the same guest.
func (b *Bench) against(other backend, what string, count, mtu int) func(context.Context) (x, y Side, err error) {
	return func(ctx context.Context) (x, y Side, err error) {
		s, err := b.sandbox(ctx)
		if err != nil {
			return x, y, err
		}
		x = Side{"boundary", func(ctx context.Context) (float64, error) {
			return b.inSandbox(ctx, trafficIn(what, opaqueURL.url(s), count, mtu))
		}}
		label, machine, err := other(ctx)
		if err != nil {
			return x, y, err
		}
		y = Side{label, func(ctx context.Context) (float64, error) {
			return machine.measure(ctx, what, fmt.Sprintf("http://192.168.127.1:%d", s.plain), count, mtu)
		}}
		return x, y, nil
	}
}

// both compares two ways through the boundary.
func (b *Bench) both(what string, count int, one, other target) func(context.Context) (x, y Side, err error) {
	return func(ctx context.Context) (x, y Side, err error) {
		s, err := b.sandbox(ctx)
		if err != nil {
			return x, y, err
		}
		to := func(t target) Side {
			return Side{t.label, func(ctx context.Context) (float64, error) {
				return b.inSandbox(ctx, trafficIn(what, t.url(s), count, ownMTU))
			}}
		}
		return to(one), to(other), nil
	}
}

// names compares what a guest gets of the resolver with what there is of it.
func (b *Bench) names(ctx context.Context) (x, y Side, err error) {
	if _, err := b.sandbox(ctx); err != nil {
		return x, y, err
	}
	x = Side{"asked in a VM", func(ctx context.Context) (float64, error) {
		return b.inSandbox(ctx, trafficIn("names", "http://"+namesHost, newNames, ownMTU))
	}}
	return x, Side{"resolver alone", answerNames}, nil
}

// answerNames is the names a second of the resolver without a network, each a
// new one.
func answerNames(context.Context) (float64, error) {
	n := names.New(names.Options{
		Allow: func(string) bool { return true }, Pool: netip.MustParsePrefix("198.18.0.0/16"), Max: 1 << 14,
	})
	queries := make([][]byte, 1<<14)
	for i := range queries {
		m := dnsmessage.Message{Questions: []dnsmessage.Question{{
			Name: dnsmessage.MustNewName(fmt.Sprintf("n%d.%s.", i, namesHost)), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET,
		}}}
		var err error
		if queries[i], err = m.Pack(); err != nil {
			return 0, err
		}
	}
	began := time.Now()
	for _, q := range queries {
		if got := n.Answer(q); len(got) < 12 || binary.BigEndian.Uint16(got[6:]) != 1 {
			return 0, errors.New("a name was not answered")
		}
	}
	return float64(len(queries)) / time.Since(began).Seconds(), nil
}

// sandbox starts the sandbox that all rows of the network share.
func (b *Bench) sandbox(ctx context.Context) (*served, error) {
	s, err := b.serve(ctx)
	if err != nil || b.online {
		return s, err
	}
	if err := b.Image(ctx); err != nil {
		return nil, err
	}
	file, err := b.writePolicy(s)
	if err != nil {
		return nil, err
	}
	b.online = true
	cmd := b.Creel(ctx, "run", "-d", "--name", netName, "--policy", file, ImageName, "sleep", "infinity")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %s", cmd.Args, err, bytes.TrimSpace(out))
	}
	return s, nil
}

// writePolicy writes the policy of the bench, and the CA that it names.
func (b *Bench) writePolicy(s *served) (string, error) {
	file := filepath.Join(b.State, "bench-policy.yaml")
	text := fmt.Sprintf(benchPolicy, s.plain, s.secure)
	return file, errors.Join(
		os.WriteFile(filepath.Join(b.State, "bench-ca.pem"), []byte(s.authority.PEM()), 0o600),
		os.WriteFile(file, []byte(text), 0o600))
}

const benchPolicy = `version: 1
rules:
  - {allow: ` + opaqueHost + `, ports: %[1]d, protocol: tcp, upstream: {address: "127.0.0.1:%[1]d"}}
  - {allow: ` + httpHost + `, ports: %[1]d, protocol: http, upstream: {address: "127.0.0.1:%[1]d"}}
  - {allow: ` + splicedHost + `, ports: %[2]d, protocol: tls, upstream: {address: "127.0.0.1:%[2]d"}}
  - {allow: ` + openedHost + `, ports: %[2]d, protocol: tls, methods: GET, upstream: {address: "127.0.0.1:%[2]d", ca: bench-ca.pem}}
  - {allow: "*.` + namesHost + `", ports: 1, protocol: tcp}
`

// inSandbox runs the guest's program in the sandbox.
func (b *Bench) inSandbox(ctx context.Context, program []string) (float64, error) {
	cmd := b.Creel(ctx, append([]string{"exec", netName}, program...)...)
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	out, err := cmd.Output()
	if err != nil {
		return 0, fmt.Errorf("traffic in the sandbox: %w: %s", err, bytes.TrimSpace(complaint.Bytes()))
	}
	return figure(out)
}
