package hello

import (
	"bytes"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/crypto/cryptobyte"
)

// wire is a connection that plays bytes and keeps what is written.
type wire struct {
	net.Conn // nil: nothing else is called
	in       io.Reader
	out      bytes.Buffer
}

func (w *wire) Read(p []byte) (int, error)       { return w.in.Read(p) }
func (w *wire) Write(p []byte) (int, error)      { return w.out.Write(p) }
func (w *wire) Close() error                     { return nil }
func (w *wire) SetWriteDeadline(time.Time) error { return nil }

// sent is what a crypto/tls client begins with.
func sent(t testing.TB, config *tls.Config) []byte {
	t.Helper()
	w := &wire{in: strings.NewReader("")}
	if err := tls.Client(w, config).Handshake(); err == nil || w.out.Len() == 0 {
		t.Fatalf("client: %v, %d bytes", err, w.out.Len())
	}
	return w.out.Bytes()
}

// goReads is what a crypto/tls server sees in the same bytes; false where it
// sees no hello.
func goReads(raw []byte) (seen Hello, ok bool) {
	stop := errors.New("seen")
	server := tls.Server(&wire{in: bytes.NewReader(raw)}, &tls.Config{GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		seen, ok = Hello{ServerName: h.ServerName, ALPN: h.SupportedProtos}, true
		return nil, stop
	}})
	server.Handshake()
	return seen, ok
}

// resuming is a configuration that holds a session ticket for name.
func resuming(t testing.TB, name string, version uint16) *tls.Config {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{name}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	root, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(root)
	config := &tls.Config{ServerName: name, RootCAs: roots, ClientSessionCache: tls.NewLRUClientSessionCache(1), MaxVersion: version}
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		server, err := l.Accept()
		if err == nil {
			_, err = server.Write([]byte("x"))
			err = errors.Join(err, server.Close())
		}
		done <- err
	}()
	client, err := tls.Dial("tcp", l.Addr().String(), config)
	if err == nil {
		_, err = io.ReadFull(client, make([]byte, 1)) // the ticket comes before the byte
		client.Close()
	}
	if err := errors.Join(err, l.Close(), <-done); err != nil {
		t.Fatal(err)
	}
	return config
}

// echConfigs offers to hide a hello behind the name public.test.
func echConfigs(t testing.TB) []byte {
	t.Helper()
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	var b cryptobyte.Builder
	b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
		b.AddUint16(extECH)
		b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
			b.AddUint8(1)       // id
			b.AddUint16(0x0020) // DHKEM(X25519, HKDF-SHA256)
			b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(key.PublicKey().Bytes()) })
			b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddUint16(1); b.AddUint16(1) }) // HKDF-SHA256, AES-128-GCM
			b.AddUint8(32)
			b.AddUint8LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes([]byte("public.test")) })
			b.AddUint16(0) // extensions
		})
	})
	return b.BytesOrPanic()
}

// manyProtocols make a hello of more than 50 KiB, in several records.
func manyProtocols() (names []string) {
	for i := range 200 {
		names = append(names, fmt.Sprintf("%03d", i)+strings.Repeat("p", 252))
	}
	return names
}

func clients(t testing.TB) map[string]*tls.Config {
	old := uint16(tls.VersionTLS12)
	return map[string]*tls.Config{
		"plain":          {ServerName: "api.example.com"},
		"TLS 1.0":        {ServerName: "api.example.com", MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS10},
		"TLS 1.2":        {ServerName: "api.example.com", MaxVersion: old},
		"TLS 1.3":        {ServerName: "api.example.com", MinVersion: tls.VersionTLS13},
		"no name":        {InsecureSkipVerify: true},
		"address":        {ServerName: "192.0.2.1"},
		"upper case":     {ServerName: "API.Example.COM"},
		"long name":      {ServerName: strings.Repeat("label.", 41) + "example"},
		"h2":             {ServerName: "api.example.com", NextProtos: []string{"h2", "http/1.1"}},
		"many protocols": {ServerName: "api.example.com", NextProtos: manyProtocols()},
		"one old curve":  {ServerName: "api.example.com", CurvePreferences: []tls.CurveID{tls.CurveP256}},
		"post-quantum":   {ServerName: "api.example.com", CurvePreferences: []tls.CurveID{tls.X25519MLKEM768}, MinVersion: tls.VersionTLS13},
		"ticket 1.2":     resuming(t, "ticket.test", old),
		"ticket 1.3":     resuming(t, "ticket.test", 0),
		"no tickets":     {ServerName: "api.example.com", SessionTicketsDisabled: true},
	}
}

func TestRealClients(t *testing.T) {
	for name, config := range clients(t) {
		t.Run(name, func(t *testing.T) {
			raw := sent(t, config)
			want, ok := goReads(raw)
			if !ok {
				t.Fatal("crypto/tls does not read it")
			}
			if want.ServerName == "" && name != "no name" && name != "address" {
				t.Error("the client sent no name")
			}
			check(t, raw, want)
		})
	}
}

// check reads raw with more bytes behind it, which must stay unread.
func check(t *testing.T, raw []byte, want Hello) {
	t.Helper()
	stream := io.MultiReader(bytes.NewReader(raw), strings.NewReader("more"))
	got, taken, err := Read(stream)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	rest, err := io.ReadAll(stream)
	if err != nil || string(rest) != "more" || !bytes.Equal(taken, raw) {
		t.Errorf("%d bytes of %d taken, %q left, %v", len(taken), len(raw), rest, err)
	}
}

func TestPostQuantumHelloIsLongerThanAPacket(t *testing.T) {
	if raw := sent(t, clients(t)["ticket 1.3"]); len(raw) < 1460 {
		t.Errorf("the hello has %d bytes, too few to prove anything", len(raw))
	}
}

func TestEncryptedHello(t *testing.T) {
	raw := sent(t, &tls.Config{ServerName: "hidden.test", MinVersion: tls.VersionTLS13, EncryptedClientHelloConfigList: echConfigs(t)})
	check(t, raw, Hello{ServerName: "public.test", ECH: true})
}

// body takes the message out of records, and records puts one into records of
// size bytes.
func body(raw []byte) (message []byte) {
	for len(raw) > 0 {
		n := headerSize + int(binary.BigEndian.Uint16(raw[3:]))
		message, raw = append(message, raw[headerSize:n]...), raw[n:]
	}
	return message
}

func records(message []byte, size int) (raw []byte) {
	for part := range slices.Chunk(message, size) {
		raw = append(raw, typeHandshake, 3, 1, byte(len(part)>>8), byte(len(part)))
		raw = append(raw, part...)
	}
	return raw
}

func TestRecordsOfEverySize(t *testing.T) {
	message := body(sent(t, &tls.Config{ServerName: "api.example.com", NextProtos: []string{"h2"}}))
	want := Hello{ServerName: "api.example.com", ALPN: []string{"h2"}}
	for size := 1; size <= len(message); size++ {
		check(t, records(message, size), want)
	}
	for cut := 1; cut < len(message); cut++ {
		check(t, append(records(message[:cut], cut), records(message[cut:], len(message))...), want)
	}
}

func TestPacketsOfEverySize(t *testing.T) {
	raw := records(body(sent(t, &tls.Config{ServerName: "api.example.com"})), 600)
	for cut := range len(raw) {
		got, taken, err := Read(io.MultiReader(bytes.NewReader(raw[:cut]), bytes.NewReader(raw[cut:])))
		if err != nil || got.ServerName != "api.example.com" || !bytes.Equal(taken, raw) {
			t.Fatalf("cut at %d: %+v, %d bytes, %v", cut, got, len(taken), err)
		}
	}
	got, taken, err := Read(iotest.OneByteReader(bytes.NewReader(raw)))
	if err != nil || got.ServerName != "api.example.com" || !bytes.Equal(taken, raw) {
		t.Fatalf("single bytes: %+v, %d bytes, %v", got, len(taken), err)
	}
}

func TestEndsAndTimeouts(t *testing.T) {
	raw := sent(t, &tls.Config{ServerName: "api.example.com"})
	for cut := range len(raw) {
		want := io.ErrUnexpectedEOF
		if cut == 0 {
			want = io.EOF
		}
		if _, taken, err := Read(bytes.NewReader(raw[:cut])); !errors.Is(err, want) || !bytes.Equal(taken, raw[:cut]) {
			t.Fatalf("cut at %d: %d bytes, %v", cut, len(taken), err)
		}
	}
	near, far := net.Pipe()
	defer far.Close()
	near.SetReadDeadline(time.Unix(1, 0))
	if _, _, err := Read(near); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("after the deadline: %v", err)
	}
}

// extension is one of a made-up hello.
type extension struct {
	kind uint16
	data string
}

// hello makes the message of a ClientHello.
func hello(extensions ...extension) []byte {
	var b cryptobyte.Builder
	b.AddUint8(clientHello)
	b.AddUint24LengthPrefixed(func(b *cryptobyte.Builder) {
		b.AddUint16(tls.VersionTLS12)
		b.AddBytes(make([]byte, 32))
		b.AddUint8(0)
		b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddUint16(tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256) })
		b.AddUint8LengthPrefixed(func(b *cryptobyte.Builder) { b.AddUint8(0) })
		b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
			for _, e := range extensions {
				b.AddUint16(e.kind)
				b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes([]byte(e.data)) })
			}
		})
	})
	return b.BytesOrPanic()
}

func one(extensions ...extension) []byte { return records(hello(extensions...), recordMax) }

func name(s string) extension {
	n := len(s)
	return extension{extServerName, string([]byte{byte((n + 3) >> 8), byte(n + 3), 0, byte(n >> 8), byte(n)}) + s}
}

func TestMadeUpHellos(t *testing.T) {
	plain := hello(name("a.test"))
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	alert := []byte{21, 3, 1, 0, 2, 1, 0}
	empty := []byte{typeHandshake, 3, 1, 0, 0}
	changed := func(at int, b byte) []byte {
		raw := one(name("a.test"))
		raw[at] = b
		return raw
	}
	tests := []struct {
		name string
		raw  []byte
		want Hello
		err  error
		took int // bytes, 0: all
	}{
		{name: "one name", raw: one(name("a.test")), want: Hello{ServerName: "a.test"}},
		{name: "no extensions", raw: records(append([]byte{1, 0, 0, 41, 3, 3}, append(make([]byte, 33), 0, 2, 0, 0x35, 1, 0)...), 99)},
		{name: "empty extensions", raw: one()},
		{name: "dot at the end", raw: one(name("a.test.")), want: Hello{ServerName: "a.test."}},
		{name: "no host name", raw: one(name("a/b:c")), want: Hello{ServerName: "a/b:c"}},
		{name: "encrypted hello", raw: one(name("a.test"), extension{0xfe0d, "x"}), want: Hello{ServerName: "a.test", ECH: true}},
		{name: "encrypted name", raw: one(extension{0xffce, ""}), want: Hello{ECH: true}},
		{name: "protocols", raw: one(extension{extALPN, "\x00\x05\x02h2\x01x"}), want: Hello{ALPN: []string{"h2", "x"}}},
		{name: "SSL 3 record", raw: changed(2, 0), want: Hello{ServerName: "a.test"}},

		{name: "http", raw: []byte("GET / HTTP/1.1\r\n"), err: ErrNotTLS, took: 1},
		{name: "ssh", raw: []byte("SSH-2.0-x\r\n"), err: ErrNotTLS, took: 1},
		{name: "one byte of something", raw: []byte("x"), err: ErrNotTLS},
		{name: "SSL 2", raw: append([]byte{0x80, 0x2e, 1, 3, 1}, make([]byte, 43)...), err: ErrNotTLS, took: 1},
		{name: "alert first", raw: join(alert, records(plain, 99)), err: ErrNotTLS, took: 1},
		{name: "another version", raw: changed(1, 4), err: ErrNotTLS, took: 5},

		{name: "ServerHello", raw: changed(5, 2), err: ErrMalformed},
		{name: "empty record first", raw: join(empty, records(plain, 99)), err: ErrMalformed, took: 5},
		{name: "empty record inside", raw: join(records(plain[:9], 9), empty, records(plain[9:], 99)), err: ErrMalformed, took: 5 + 9 + 5},
		{name: "alert inside", raw: join(records(plain[:9], 9), alert, records(plain[9:], 99)), err: ErrMalformed, took: 5 + 9 + 1},
		{name: "another version inside", raw: join(records(plain[:9], 9), []byte{22, 2, 0, 0, 1}), err: ErrMalformed},
		{name: "record over 16 KiB", raw: []byte{22, 3, 1, 0x40, 1, 1}, err: ErrMalformed, took: 5},
		{name: "bytes behind the hello", raw: records(append(plain, 1), 999), err: ErrMalformed},
		{name: "hello over 64 KiB", raw: []byte{22, 3, 1, 0, 4, 1, 0, 0xff, 0xfd}, err: ErrTooLong},
		{name: "hello of 16 MiB", raw: []byte{22, 3, 1, 0, 4, 1, 0xff, 0xff, 0xff}, err: ErrTooLong},
		{name: "too many records", raw: records(hello(extension{99, strings.Repeat("x", 60000)}), 1), err: ErrTooLong, took: MaxBytes - MaxBytes%6 + 1},

		{name: "two name extensions", raw: one(name("a.test"), name("b.test")), err: ErrMalformed},
		{name: "two of an unknown extension", raw: one(extension{99, ""}, extension{99, ""}), err: ErrMalformed},
		{name: "two names", raw: one(extension{0, "\x00\x08\x00\x00\x01a\x00\x00\x01b"}), err: ErrMalformed},
		{name: "a name of another type", raw: one(extension{0, "\x00\x04\x01\x00\x01a"}), err: ErrMalformed},
		{name: "no names", raw: one(extension{0, "\x00\x00"}), err: ErrMalformed},
		{name: "empty name extension", raw: one(extension{0, ""}), err: ErrMalformed},
		{name: "empty name", raw: one(name("")), err: ErrMalformed},
		{name: "bytes behind the name", raw: one(extension{0, name("a.test").data + "x"}), err: ErrMalformed},
		{name: "NUL in the name", raw: one(name("a.test\x00.b.test")), err: ErrMalformed},
		{name: "space in the name", raw: one(name("a.test ")), err: ErrMalformed},
		{name: "escape in the name", raw: one(name("\x1b[2J")), err: ErrMalformed},
		{name: "name beyond ASCII", raw: one(name("\u00e4.test")), err: ErrMalformed},
		{name: "no protocols", raw: one(extension{extALPN, "\x00\x00"}), err: ErrMalformed},
		{name: "empty protocol", raw: one(extension{extALPN, "\x00\x01\x00"}), err: ErrMalformed},
		{name: "extensions cut off", raw: changed(len(one(name("a.test")))-len(name("a.test").data)-1, 99), err: ErrMalformed},
		{name: "session of 33 bytes", raw: records(append(append([]byte{1, 0, 0, 74, 3, 3}, make([]byte, 32)...),
			append(append([]byte{33}, make([]byte, 33)...), 0, 2, 0, 0x35, 1, 0)...), 99), err: ErrMalformed},
		{name: "no cipher suites", raw: records(append([]byte{1, 0, 0, 39, 3, 3}, append(make([]byte, 33), 0, 0, 1, 0)...), 99), err: ErrMalformed},
		{name: "no compression method", raw: records(append([]byte{1, 0, 0, 40, 3, 3}, append(make([]byte, 33), 0, 2, 0, 0x35, 0)...), 99), err: ErrMalformed},
		{name: "nothing in the hello", raw: records([]byte{1, 0, 0, 0}, 99), err: ErrMalformed},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, taken, err := Read(bytes.NewReader(tt.raw))
			if !errors.Is(err, tt.err) || (err != nil) != (tt.err != nil) {
				t.Fatalf("error %v, want %v", err, tt.err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
			if tt.took == 0 {
				tt.took = len(tt.raw)
			}
			if !bytes.Equal(taken, tt.raw[:tt.took]) {
				t.Errorf("%d bytes taken, want %d", len(taken), tt.took)
			}
		})
	}
}

// endless sends empty records for ever.
type endless struct{ read int }

func (e *endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = [headerSize]byte{typeHandshake, 3, 1, 0, 0}[(e.read+i)%headerSize]
	}
	e.read += len(p)
	return len(p), nil
}

func TestEndlessRecords(t *testing.T) {
	e := &endless{}
	if _, _, err := Read(e); !errors.Is(err, ErrMalformed) || e.read != headerSize {
		t.Errorf("after %d bytes: %v", e.read, err)
	}
}

func FuzzRead(f *testing.F) {
	for _, config := range clients(f) {
		if raw := sent(f, config); len(raw) < 4096 {
			f.Add(raw, uint16(0))
			f.Add(body(raw)[4:], uint16(1000))
		}
	}
	f.Add(one(name("a.test")), uint16(0))
	f.Add(hello(name("a.test"), extension{extECH, "x"}, extension{extALPN, "\x00\x03\x02h2"})[4:], uint16(1))
	f.Add(hello(name("a.test"), name("b.test"))[4:], uint16(7))
	f.Add(hello(extension{0, "\x00\x08\x00\x00\x01a\x00\x00\x01b"})[4:], uint16(99))
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"), uint16(0))
	f.Fuzz(func(t *testing.T, raw []byte, size uint16) {
		if size > 0 { // the input is what is inside of a message, to be put into records
			n := len(raw)
			raw = records(append([]byte{clientHello, byte(n >> 16), byte(n >> 8), byte(n)}, raw...), int(size))
		}
		stream := bytes.NewReader(raw)
		got, taken, err := Read(stream)
		if len(taken) > MaxBytes || !bytes.Equal(taken, raw[:len(raw)-stream.Len()]) {
			t.Fatalf("%d bytes taken, %d of %d read", len(taken), len(raw)-stream.Len(), len(raw))
		}
		if err != nil {
			if diff := cmp.Diff(Hello{}, got); diff != "" {
				t.Error(diff)
			}
			return
		}
		again, whole, err := Read(iotest.OneByteReader(bytes.NewReader(taken)))
		if err != nil || !bytes.Equal(whole, taken) || !cmp.Equal(again, got) {
			t.Fatalf("the bytes that were taken read as %+v, %v", again, err)
		}
		// A server may refuse what is read here; it must not see another name.
		want, ok := goReads(raw)
		want.ECH = got.ECH
		if ok && !cmp.Equal(want, got) {
			t.Fatalf("crypto/tls reads %+v, not %+v", want, got)
		}
	})
}

func BenchmarkRead(b *testing.B) {
	raw := sent(b, &tls.Config{ServerName: "api.example.com", NextProtos: []string{"h2", "http/1.1"}})
	b.ReportAllocs()
	b.SetBytes(int64(len(raw)))
	for b.Loop() {
		if _, _, err := Read(bytes.NewReader(raw)); err != nil {
			b.Fatal(err)
		}
	}
}
