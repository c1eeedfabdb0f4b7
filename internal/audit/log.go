package audit

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"creel/internal/audit/batch"
	"creel/internal/audit/chain"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/sys/unix"
)

// Sizes of a sandbox's log, in bytes.
const (
	// DefaultMaxLog is the quota of a log.
	DefaultMaxLog = 64 << 20
	// MinMaxLog is the least quota that has room for all that is kept back.
	MinMaxLog = 1 << 20
	// endReserve is kept back from the quota for how a run ended, and at most
	// maxReserve for each of the other classes of records.
	endReserve = 256 << 10
	maxReserve = 1 << 20
)

// LogName is the file of a sandbox's log in its directory.
const LogName = "log.jsonl"

// ErrQuota is what [Log.Append] returns once a log has used up its quota; the
// events that end a run are still taken, and for a while those that take rights
// away, and those of what the operator does.
var ErrQuota = errors.New("the sandbox's audit log has reached its quota")

// SandboxKey is what a keeper needs for its sandbox's log. It is encoded as
// JSON only to go through the pipe to the keeper; printing it hides the
// private key.
type SandboxKey struct {
	Sandbox  string `json:"sandbox"`
	Origin   string `json:"origin"` // the log's own name
	Private  string `json:"private"`
	Public   string `json:"public"`
	MaxBytes int64  `json:"maxBytes"`
}

// String hides the private key.
func (k SandboxKey) String() string { return k.Public }

// GoString hides the private key.
func (k SandboxKey) GoString() string { return k.Public }

// LogValue hides the private key.
func (k SandboxKey) LogValue() slog.Value { return slog.StringValue(k.Public) }

// Log is one sandbox's log, written by one process. It is safe for use by
// several goroutines, and a [Recorder].
type Log struct {
	recorder
	file *os.File

	// Below is touched only by write, which has one caller at a time.
	sealer chain.Sealer
	tree   chain.Tree
	size   int64
	end    int64 // of the file: from size to here it has zeros
	max    int64
	bare   bool  // no more zeros: there was no room for them
	broken error // set once the file cannot be trusted any more
}

// newLog makes a sandbox's log; its first commit says where in the ledger it
// belongs.
func newLog(path string, key SandboxKey, ledger string) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("make sandbox log: %w", err)
	}
	defer f.Close()
	l := &Log{file: f, max: key.MaxBytes}
	if l.sealer, err = key.sealer(); err != nil {
		return err
	}
	e, err := Event{Kind: KindOpened, Sandbox: key.Sandbox, Data: logOpened{key.Origin, ledger}}.encode()
	if err != nil {
		return err
	}
	_, err = l.write([]chain.Entry{e})
	return err
}

// OpenLog opens the log that [Ledger.OpenSandbox] made in dir. The caller
// closes it.
func OpenLog(dir string, key SandboxKey) (*Log, error) {
	f, err := os.OpenFile(dir+"/"+LogName, os.O_RDWR|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open sandbox log: %w", err)
	}
	l, err := OpenLogFile(f, key)
	if err != nil {
		f.Close()
	}
	return l, err
}

// OpenLogFile is [OpenLog] for a file that is already open to read and write;
// the log owns it unless there is an error. What a crash left half-written is
// cut off, and recorded.
func OpenLogFile(f *os.File, key SandboxKey) (*Log, error) {
	l := &Log{file: f, max: key.MaxBytes}
	var err error
	if l.sealer, err = key.sealer(); err != nil {
		return nil, err
	}
	l.batch = batch.New(l.write)
	got, err := readLog(context.Background(), f, Opened{Log: key.Origin, Key: key.Public}, nil)
	if err != nil {
		return nil, fmt.Errorf("read sandbox log: %w", err)
	}
	if got.fault != "" {
		return nil, fmt.Errorf("read sandbox log: %s", got.fault)
	}
	l.tree, l.size, l.end = got.tree, got.end, got.end
	if err := f.Truncate(l.size); err != nil { // torn, or zeros
		return nil, fmt.Errorf("cut end of sandbox log: %w", err)
	}
	if len(got.torn) == 0 {
		return l, nil
	}
	e, err := Event{Kind: KindRecovered, Sandbox: key.Sandbox, Data: describeTorn(got.torn, "")}.encode()
	if err == nil {
		_, err = l.write([]chain.Entry{e})
	}
	if err != nil {
		return nil, err
	}
	return l, nil
}

// Close records that the log ends here, cuts the zeros off behind that, and
// closes its file.
func (l *Log) Close() error {
	err := l.Append(context.Background(), Event{Kind: KindClosed})
	l.batch.Close()
	if l.end > l.size {
		err = errors.Join(err, l.file.Truncate(l.size))
	}
	return errors.Join(err, l.file.Close())
}

func (l *Log) write(entries []chain.Entry) (string, error) {
	if l.broken != nil {
		return "", l.broken
	}
	if err := l.unchanged(); err != nil {
		l.broken = err
		return "", err
	}
	c, err := l.sealer.Seal(&l.tree, entries, time.Now().UTC())
	if err != nil {
		return "", err
	}
	if int64(len(c.Bytes)) > l.max-l.size-keptBack(l.max, entries) {
		return "", fmt.Errorf("%w of %d bytes", ErrQuota, l.max)
	}
	trusted, err := l.appendDurable(c.Bytes)
	if err != nil {
		err = fmt.Errorf("write sandbox log: %w", err)
		if !trusted {
			l.broken = err
		}
		return "", err
	}
	l.tree, l.size = c.Tree, l.size+int64(len(c.Bytes))
	return c.Checkpoint, nil
}

// unchanged fails where the file has gone, or somebody else has changed it.
func (l *Log) unchanged() error {
	var st unix.Stat_t
	if err := unix.Fstat(int(l.file.Fd()), &st); err != nil {
		return fmt.Errorf("look at sandbox log: %w", err)
	}
	if st.Nlink == 0 {
		return errors.New("the sandbox's audit log was deleted while it is in use")
	}
	if st.Size != l.end {
		return fmt.Errorf("the sandbox's audit log has %d bytes instead of %d: something else has changed it", st.Size, l.end)
	}
	return nil
}

// Classes of records, by who has a say in how many there are. Each has room of
// its own in the quota, which those before it cannot use up: a guest that fills
// its log keeps nobody from ending the run, from taking rights away or from
// looking at what it does.
const (
	classGuest    = iota // what a guest brings about
	classDenied          // what it was denied, which comes at a bounded rate
	classOperator        // what the operator does in a sandbox
	classControl         // what takes rights away, and alerts, which are bounded
	classEnd             // how the run ended
)

// classes of kinds; package event names those that have no constant here. Every
// kind has its line, whether it is a guest's or not: a test of package event sees
// to that. A commit is of the lowest class that is in it.
var classes = map[Kind]int{
	"name": classDenied, "denied": classDenied, "budget": classDenied, "dropped": classDenied,
	KindStarted: classOperator, KindExec: classOperator, KindCopy: classOperator, "copied": classOperator,
	KindSignal: classControl, "policy": classControl, "secrets": classControl, "alert": classControl, "step": classControl,
	KindExit: classEnd, KindCleanup: classEnd, KindClosed: classEnd,

	"failed":     classDenied,  // tallied with what was denied, and at its rate
	"disk-fault": classControl, // one of a run
	"confined":   classControl, KindRecovered: classControl,
	"lookup": classGuest, "connection": classGuest, "disconnected": classGuest,
	"request": classGuest, "response": classGuest, "secret": classGuest, "published": classGuest,
	// The ledger's, which has no quota, and what begins a log.
	KindKey: classEnd, KindOpened: classEnd, KindPruned: classEnd, "lost": classEnd,
	KindAdmitted: classEnd, KindRefused: classEnd, KindTemplate: classEnd,
}

// HasClass reports whether it is said which class a kind is of.
func HasClass(kind Kind) bool { _, ok := classes[kind]; return ok }

// HasRoom reports whether room is kept for records of a kind that a guest's own
// cannot use up.
func HasRoom(kind Kind) bool { return classes[kind] != classGuest }

// keptBack is how much of a quota the entries of one commit must leave free.
func keptBack(quota int64, entries []chain.Entry) int64 {
	class := classEnd
	for _, e := range entries {
		class = min(class, classes[e.Kind])
	}
	if class == classEnd {
		return 0
	}
	each := min(maxReserve, max(quota-endReserve, 0)/8)
	return endReserve + int64(classControl-class)*each
}

// appendDurable writes data at the end of f and syncs it. On error it takes
// back what was written; trusted tells whether the file is known to be on disk
// as it was before.
func appendDurable(f *os.File, size int64, data []byte) (trusted bool, err error) {
	if _, err = f.WriteAt(data, size); err == nil {
		if err = unix.Fdatasync(int(f.Fd())); err == nil {
			return true, nil
		}
		// The kernel may have dropped pages and will not say so again.
		return false, errors.Join(err, f.Truncate(size))
	}
	undone := f.Truncate(size)
	return undone == nil, errors.Join(err, undone)
}

func newSandboxKey(sandbox string, quota int64) (SandboxKey, error) {
	var b [8]byte
	rand.Read(b[:])
	key := SandboxKey{Sandbox: sandbox, Origin: "creel/log/" + sandbox + "/" + hex.EncodeToString(b[:]), MaxBytes: quota}
	var err error
	if key.Private, key.Public, err = note.GenerateKey(rand.Reader, key.Origin); err != nil {
		return key, fmt.Errorf("make key of sandbox log: %w", err)
	}
	return key, nil
}

func (k SandboxKey) sealer() (chain.Sealer, error) {
	signer, err := note.NewSigner(k.Private)
	if err != nil {
		return chain.Sealer{}, fmt.Errorf("use key of sandbox log: %w", err)
	}
	return chain.Sealer{Origin: k.Origin, Signers: []note.Signer{signer}}, nil
}

// logState is what a reader finds in a sandbox's log.
type logState struct {
	head    Head   // of the last checkpoint that is good
	ledger  string // the ledger's checkpoint that its first record names
	tree    chain.Tree
	records int64
	end     int64 // bytes up to the end of that checkpoint
	torn    []byte
	ended   bool   // its keeper closed it in order
	fault   string // why it is not sound; what is above is then about the part that is
}

// readLog checks a log from its start against its opening, and calls meets,
// unless it is nil, with each head of it.
func readLog(ctx context.Context, f *os.File, o Opened, meets func(Head, string) error) (logState, error) {
	key, err := chain.Verifier(o.Key)
	if err != nil {
		return logState{}, err
	}
	var st logState
	written, err := Written(f)
	if err != nil {
		return st, err
	}
	var last Kind
	s := chain.Scanner{Origin: o.Log, Sealed: meets, Record: func(r Record) error {
		last = r.Kind
		st.records++
		if r.Seq == 0 {
			opened, err := decodeData[logOpened](r)
			st.ledger = opened.Ledger
			return err
		}
		return nil
	}}
	err = s.Scan(ctx, io.NewSectionReader(f, 0, written))
	if ctx.Err() != nil {
		return st, ctx.Err()
	}
	st.head, st.tree, st.end = s.Last, s.Committed, s.End
	st.ended = err == nil && last == KindClosed
	if err != nil {
		tail, readErr := io.ReadAll(io.NewSectionReader(f, s.End, min(written-s.End, chain.MaxTorn+1)))
		switch {
		case readErr != nil:
			return st, readErr
		case chain.Torn(tail):
			st.torn = tail
		default:
			st.fault = err.Error()
		}
	}
	switch {
	case st.head.Size == 0 && st.fault == "":
		st.fault = "it holds no checkpoint"
	case st.head.Size > 0 && !chain.SignedBy(s.Checkpoint, key):
		st.head = Head{}
		if st.fault == "" {
			st.fault = "its last checkpoint is not signed by the log's key"
		}
	}
	return st, nil
}

// tornEnd describes bytes that were cut off.
type tornEnd struct {
	Bytes  int    `json:"bytes"`
	SHA256 string `json:"sha256"`
	File   string `json:"file,omitempty"` // where they were set aside
}

func describeTorn(tail []byte, file string) tornEnd {
	sum := sha256.Sum256(tail)
	return tornEnd{len(tail), hex.EncodeToString(sum[:]), file}
}
