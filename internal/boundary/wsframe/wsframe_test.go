package wsframe

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// stars replaces a word by as many asterisks, and holds back its beginnings.
type stars struct {
	word string
	held []byte
}

func (s *stars) Write(dst, p []byte) []byte {
	s.held = append(s.held, p...)
	s.held = bytes.ReplaceAll(s.held, []byte(s.word), bytes.Repeat([]byte("*"), len(s.word)))
	keep := min(len(s.held), len(s.word)-1)
	for keep > 0 && !strings.HasPrefix(s.word, string(s.held[len(s.held)-keep:])) {
		keep--
	}
	out := len(s.held) - keep
	dst = append(dst, s.held[:out]...)
	s.held = append([]byte(nil), s.held[out:]...)
	return dst
}

func (s *stars) Pending() int { return len(s.held) }

func (s *stars) Release(dst []byte) []byte { return s.Flush(dst) }

func (s *stars) Flush(dst []byte) []byte {
	dst = append(dst, s.held...)
	s.held = nil
	return dst
}

func (s *stars) text(p []byte) []byte {
	return bytes.ReplaceAll(p, []byte(s.word), bytes.Repeat([]byte("*"), len(s.word)))
}

const key = "\x11\xa2\x43\xf4"

// frame makes one from its first byte and its payload; m is a masking key, or
// empty.
func frame(first byte, payload, m string) string {
	h := []byte{first}
	bit := byte(0)
	if m != "" {
		bit = 0x80
	}
	switch n := len(payload); {
	case n < 126:
		h = append(h, bit|byte(n))
	case n <= 0xffff:
		h = binary.BigEndian.AppendUint16(append(h, bit|126), uint16(n))
	default:
		h = binary.BigEndian.AppendUint64(append(h, bit|127), uint64(n))
	}
	b := []byte(payload)
	if m != "" {
		for i := range b {
			b[i] ^= m[i%4]
		}
	}
	return string(h) + m + string(b)
}

const (
	fin    = 0x80
	txt    = 1
	bin    = 2
	cont   = 0
	close_ = 8
	ping   = 9
	pong_  = 10
)

// filtered is what comes out when the bytes come in parts of n.
func filtered(d Direction, s *stars, in string, n int) (string, string) {
	f := New(d, s, s.text)
	var out []byte
	for i := 0; i < len(in); i += n {
		var err error
		if out, err = f.Write(out, []byte(in[i:min(i+n, len(in))])); err != nil {
			return string(out), err.Error()
		}
	}
	return string(f.Flush(out)), ""
}

func TestFilter(t *testing.T) {
	long, longer := strings.Repeat("x", 300), strings.Repeat("y", 70000)
	for _, c := range []struct {
		name     string
		in, want []string // pairs of first byte and payload
	}{
		{"one frame", []string{"\x81", "my secret here"}, []string{"\x81", "my ****** here"}},
		{"nothing to find", []string{"\x82", long, "\x82", longer}, []string{"\x82", long, "\x82", longer}},
		{"in fragments", []string{"\x01", "my se", "\x00", "cr", "\x00", "", "\x80", "et here"}, []string{"\x01", "my **", "\x00", "**", "\x00", "", "\x80", "** here"}},
		{"across messages", []string{"\x81", "my sec", "\x82", "ret here"}, []string{"\x81", "my ***", "\x82", "*** here"}},
		{"across a ping", []string{"\x01", "my sec", "\x89", "ping", "\x80", "ret"}, []string{"\x01", "my ***", "\x89", "ping", "\x80", "***"}},
		{"a beginning alone", []string{"\x81", "my sec", "\x81", "ond"}, []string{"\x81", "my sec", "\x81", "ond"}},
		{"in control frames", []string{"\x89", "secret", "\x8a", "a secret", "\x88", "\x03\xe8secret"}, []string{"\x89", "******", "\x8a", "a ******", "\x88", "\x03\xe8******"}},
		{"across long frames", []string{"\x02", longer + "s", "\x80", "ecret" + long}, []string{"\x02", longer + "*", "\x80", "*****" + long}},
		{"empty frames", []string{"\x81", "", "\x89", "", "\x82", ""}, []string{"\x81", "", "\x89", "", "\x82", ""}},
	} {
		t.Run(c.name, func(t *testing.T) {
			for d, m := range map[Direction][]string{FromServer: {""}, FromClient: {key, "\x00\x00\x00\x00", "\x80\x00\x00\x01"}} {
				var in, want string
				for i := 0; i < len(c.in); i += 2 {
					in += frame(c.in[i][0], c.in[i+1], m[i/2%len(m)])
					want += frame(c.want[i][0], c.want[i+1], m[i/2%len(m)])
				}
				for _, n := range []int{1, 2, 3, 5, 8, 13, 1000, 1 << 20} {
					got, err := filtered(d, &stars{word: "secret"}, in, n)
					if got != want || err != "" {
						t.Errorf("direction %d in parts of %d: %s, difference %s", d, n, err, cmp.Diff(want[:min(200, len(want))], got[:min(200, len(got))]))
					}
				}
			}
		})
	}
}

// What need not wait does not, and what waits can be released.
func TestHeldBack(t *testing.T) {
	s := &stars{word: "secret"}
	f := New(FromServer, s, s.text)
	steps := []struct{ in, want string }{
		{"\x01\x05", "\x01\x05"},
		{"a sec", "a "},
		{frame(fin|ping, "hello", ""), ""},
		{"\x00\x02", ""},
		{"on", "sec" + frame(fin|ping, "hello", "") + "\x00\x02" + "on"},
		{frame(fin|cont, "se", ""), "\x80\x02"},
	}
	for i, step := range steps {
		got, err := f.Write(nil, []byte(step.in))
		if err != nil || string(got) != step.want {
			t.Errorf("step %d: %q, %v, want %q", i, got, err, step.want)
		}
	}
	if f.Pending() != 2 {
		t.Errorf("pending %d, want 2", f.Pending())
	}
	if got := f.Release(nil); string(got) != "se" || f.Pending() != 0 {
		t.Errorf("released %q, pending %d", got, f.Pending())
	}
}

func TestFaults(t *testing.T) {
	whole := frame(fin|txt, "fine", "")
	for _, c := range []struct{ name, in, want string }{
		{"reserved bit 1", "\xc1\x00", "a reserved bit is set, though no extension was agreed on"},
		{"reserved bit 3", "\x91\x00", "a reserved bit is set, though no extension was agreed on"},
		{"reserved bit of a ping", "\xc9\x00", "a reserved bit is set, though no extension was agreed on"},
		{"opcode 3", "\x83\x00", "a reserved opcode"},
		{"opcode 7", "\x87\x00", "a reserved opcode"},
		{"opcode 11", "\x8b\x00", "a reserved opcode"},
		{"opcode 15", "\x8f\x00", "a reserved opcode"},
		{"masked by a server", frame(fin|txt, "x", key), "a client must mask and a server must not"},
		{"16 bits for 125", "\x81\x7e\x00\x7d", "a length that could be shorter"},
		{"64 bits for 65535", "\x81\x7f\x00\x00\x00\x00\x00\x00\xff\xff", "a length that could be shorter"},
		{"over 62 bits", "\x81\x7f\x40\x00\x00\x00\x00\x00\x00\x01", "a length that is too large"},
		{"all bits", "\x81\x7f\xff\xff\xff\xff\xff\xff\xff\xff", "a length that is too large"},
		{"ping in fragments", "\x09\x00", "a control frame in fragments"},
		{"ping of 126 bytes", frame(fin|ping, strings.Repeat("x", 126), ""), "a control frame that is too long"},
		{"continuation of nothing", "\x80\x00", "a continuation of no message"},
		{"continuation behind the end", frame(txt, "a", "") + frame(fin|cont, "b", "") + "\x80\x00", "a continuation of no message"},
		{"message in a message", frame(txt, "a", "") + "\x81\x00", "a message in the middle of another"},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, n := range []int{1, 2, 1000} {
				got, err := filtered(FromServer, &stars{word: "secret"}, whole+c.in+whole, n)
				if !strings.HasSuffix(err, c.want) || err == "" {
					t.Errorf("in parts of %d: fault %q, want %q", n, err, c.want)
				}
				if !strings.HasPrefix(whole+c.in, got) || !strings.HasPrefix(got, whole) {
					t.Errorf("in parts of %d: %q came out", n, got)
				}
			}
		})
	}
	if _, err := filtered(FromClient, &stars{word: "secret"}, whole, 100); !strings.HasSuffix(err, "a client must mask and a server must not") {
		t.Errorf("unmasked by a client: %q", err)
	}
}

// A guest that lets a byte be held back cannot pile up frames behind it.
func TestQueueIsBounded(t *testing.T) {
	s := &stars{word: "secret"}
	f := New(FromServer, s, s.text)
	if _, err := f.Write(nil, []byte(frame(txt, "s", ""))); err != nil {
		t.Fatal(err)
	}
	for range maxQueued {
		if _, err := f.Write(nil, []byte("\x00\x00")); err != nil {
			if !strings.Contains(err.Error(), "more frames than can wait") {
				t.Error(err)
			}
			return
		}
	}
	t.Error("no fault")
}

// Room is used again while something is held back all the time.
func TestQueueIsNotTheHistory(t *testing.T) {
	s := &stars{word: "secret"}
	f := New(FromServer, s, s.text)
	var out []byte
	for range 100_000 {
		out, _ = f.Write(out[:0], []byte(frame(fin|txt, "xs", "")))
	}
	if len(out) != 4 || cap(f.pieces.all) > 100 || cap(f.heads.all) > 1000 {
		t.Errorf("%q came out last, room for %d pieces and %d bytes", out, cap(f.pieces.all), cap(f.heads.all))
	}
}

func TestControlOfOtherLength(t *testing.T) {
	f := New(FromServer, &stars{word: "secret"}, func(p []byte) []byte { return append(p, '!') })
	if out, err := f.Write(nil, []byte(frame(fin|ping, "x", ""))); err == nil || len(out) > 0 {
		t.Errorf("%q came out, %v", out, err)
	}
}

// twice breaks the promise of a Scrubber.
type twice struct{ late }

func (*twice) Write(dst, p []byte) []byte { return append(append(dst, p...), p...) }

func TestScrubberOfOtherLength(t *testing.T) {
	f := New(FromServer, &twice{}, nil)
	if out, err := f.Write(nil, []byte(frame(fin|txt, "x", ""))); err == nil || string(out) != frame(fin|txt, "x", "") {
		t.Errorf("%q came out, %v", out, err)
	}
}

// late gives everything back unchanged, some bytes late.
type late struct {
	by   int
	held []byte
}

func (l *late) Write(dst, p []byte) []byte {
	l.held = append(l.held, p...)
	n := max(0, len(l.held)-l.by)
	dst = append(dst, l.held[:n]...)
	l.held = append([]byte(nil), l.held[n:]...)
	return dst
}
func (l *late) Pending() int              { return len(l.held) }
func (l *late) Release(dst []byte) []byte { return l.Flush(dst) }
func (l *late) Flush(dst []byte) []byte {
	dst = append(dst, l.held...)
	l.held = nil
	return dst
}

func FuzzFilter(f *testing.F) {
	f.Add([]byte(frame(txt, "a", "")+frame(fin|ping, "b", "")+frame(fin|cont, "c", "")), false, uint8(1), uint8(3))
	f.Add([]byte(frame(fin|bin, strings.Repeat("x", 200), key)+frame(fin|close_, "\x03\xe8bye", "abcd")), true, uint8(50), uint8(7))
	f.Add([]byte(frame(fin|bin, strings.Repeat("x", 1000), key)+frame(fin|pong_, "", key)+"\x82\xff"), true, uint8(0), uint8(100))
	f.Fuzz(func(t *testing.T, in []byte, client bool, by, part uint8) {
		d := FromServer
		if client {
			d = FromClient
		}
		run := func(by, part int) (out []byte, fault error) {
			filter := New(d, &late{by: by}, func(p []byte) []byte { return p })
			for rest := in; len(rest) > 0 && fault == nil; rest = rest[min(part, len(rest)):] {
				before := bytes.Clone(rest)
				out, fault = filter.Write(out, rest[:min(part, len(rest))])
				if !bytes.Equal(rest, before) {
					t.Fatal("what came in was changed")
				}
			}
			if fault != nil {
				return out, fault
			}
			out = filter.Flush(out)
			// What is left out is the part of a header or a control frame.
			if missing := len(filter.header) + len(filter.control); len(out)+missing != len(in) {
				t.Fatalf("of %d bytes %d came out and %d are missing", len(in), len(out), missing)
			}
			return out, nil
		}
		at, fault := run(0, len(in)+1)
		if !bytes.HasPrefix(in, at) {
			t.Fatalf("%x became %x", in, at)
		}
		for _, other := range [][2]int{{0, 1 + int(part)}, {0, 1}, {int(by), 1 + int(part)}} {
			out, same := run(other[0], other[1])
			if (fault == nil) != (same == nil) || fault != nil && fault.Error() != same.Error() {
				t.Fatalf("fault %v, in parts of %d %v", fault, other[1], same)
			}
			if fault == nil && !bytes.Equal(at, out) || !bytes.HasPrefix(at, out) || other[0] == 0 && len(at) != len(out) {
				t.Fatalf("%x in parts of %d, late by %d, became %x, want %x", in, other[1], other[0], out, at)
			}
		}
	})
}

func BenchmarkFilter(b *testing.B) {
	in := []byte(frame(fin|bin, strings.Repeat("x", 16<<10), key))
	b.SetBytes(int64(len(in)))
	b.ReportAllocs()
	f := New(FromClient, &late{by: 1}, func(p []byte) []byte { return p })
	var out []byte
	for b.Loop() {
		var err error
		if out, err = f.Write(out[:0], in); err != nil {
			b.Fatal(err)
		}
	}
}
