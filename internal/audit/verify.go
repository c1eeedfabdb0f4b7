package audit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"creel/internal/audit/chain"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/sys/unix"
)

// Options of [Verify].
type Options struct {
	// Expect are heads that the ledger or a log had once, from checkpoints or
	// receipts that were kept elsewhere. Without one, nobody can tell that the
	// end of the ledger was cut off.
	Expect []Head
	// Live is whether to read logs that are not closed where their keepers
	// write them; where not, they are only counted.
	Live bool
}

// Report is what [Verify] found. Everything is whole only if Faults is empty.
type Report struct {
	Ledger  Head    // its last checkpoint
	Keys    int     // installation keys that it has had
	Records int64   // in ledger and logs
	Closed  int     // logs that were closed
	Open    int     // logs that were not: running, or their keepers died
	Aside   int     // of those that are open: set aside, since their closing could not be recorded
	Killed  int     // closed logs whose keepers were killed
	Pruned  int     // closed logs that were removed, on record
	Faults  []Fault // in the order in which they were found
}

// Fault is one thing that is not as it was written.
type Fault struct {
	Where string // a file in the audit directory, or an origin
	What  string
}

func (f Fault) String() string { return f.Where + ": " + f.What }

// Verify checks an audit directory, or a copy of one, offline: every line, the
// chain of keys to which publicKey must belong, and every log against what the
// ledger says of it. An error means that it could not be checked; what is wrong
// with the record is in the report.
func Verify(ctx context.Context, dir, publicKey string, o Options) (Report, error) {
	publicKey = strings.TrimSpace(publicKey)
	if _, err := chain.Verifier(publicKey); err != nil {
		return Report{}, err
	}
	for again := 2; ; again-- {
		v := &verification{ctx: ctx, dir: dir, opts: o, trusted: publicKey, open: map[string]*openLog{}, files: map[string]bool{},
			closed: map[string]*Closed{}, missing: map[string]string{}, expect: slices.Clone(o.Expect)}
		if err := v.all(); err != nil {
			return Report{}, err
		}
		// What is missing may have been closed or pruned since the ledger was
		// looked at.
		if len(v.missing) == 0 && !v.gone || again == 0 || !v.grown() {
			return v.report, nil
		}
	}
}

func (v *verification) all() error {
	if err := v.ledger(); err != nil {
		return err
	}
	for _, origin := range slices.Sorted(maps.Keys(v.missing)) {
		v.fault(v.missing[origin], "is missing")
	}
	return v.leftOver()
}

// grown reports whether the ledger has more than was looked at.
func (v *verification) grown() bool {
	paths, size, err := v.snapshot()
	return err == nil && len(paths) > 0 && (paths[len(paths)-1] != v.newest || size != v.size)
}

type verification struct {
	ctx     context.Context
	dir     string
	opts    Options
	trusted string // the public key that was given
	report  Report
	expect  []Head

	// The chain of the installation's keys.
	current note.Verifier
	next    note.Verifier // recorded, and to be confirmed by the next checkpoint
	inChain bool          // trusted is among them
	pending []string      // logs opened since the last checkpoint
	scanner chain.Scanner
	open    map[string]*openLog
	files   map[string]bool // logs that were closed, by file name
	closed  map[string]*Closed
	missing map[string]string // where each log should be that is not there, unless it turns out to be pruned

	noted   []byte // how far the ledger had come, as is noted beside it; nil: it is not
	reached bool   // it is a checkpoint of the ledger
	keyless error  // why nothing can be signed

	gone bool // an open log is not there

	newest string // segment that was looked at, up to size
	size   int64
}

type openLog struct {
	Opened
	anchor string // the ledger's checkpoint over its opening
}

func (v *verification) fault(where, format string, args ...any) {
	v.report.Faults = append(v.report.Faults, Fault{where, fmt.Sprintf(format, args...)})
}

// ledger streams through the segments.
func (v *verification) ledger() error {
	paths, size, err := v.snapshot()
	if err != nil {
		return err
	}
	if len(paths) == 0 {
		v.fault(LedgerName, "there is no ledger")
		return nil
	}
	v.newest, v.size = paths[len(paths)-1], size
	v.scanner = chain.Scanner{Record: v.record, Sealed: v.sealed}
	for i, p := range paths {
		limit := int64(1) << 62
		if i == len(paths)-1 {
			limit = size
		}
		where := filepath.Join(LedgerName, filepath.Base(p))
		if want := segmentName(v.scanner.Tree.Size); filepath.Base(p) != want {
			v.fault(where, "stands where %s was to follow: a segment is missing, repeated or exchanged", want)
			return nil
		}
		err := v.file(p, limit)
		if v.ctx.Err() != nil {
			return v.ctx.Err()
		}
		if ioErr, ok := errors.AsType[*fs.PathError](err); ok {
			return ioErr
		}
		if err != nil {
			v.fault(where, "%v", err)
			return nil
		}
	}
	v.report.Ledger = v.scanner.Last
	v.trust()
	v.head()
	if v.keyless != nil {
		v.fault(keyName, "nothing can be put on record: %v", v.keyless)
	}
	for _, h := range v.expect {
		if h.Origin == v.scanner.Origin {
			v.fault(LedgerName, "ends at line %d, but a checkpoint is known of line %d: its end was cut off", v.scanner.Tree.Size, h.Size)
		}
	}
	return nil
}

func (v *verification) file(path string, limit int64) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return v.scanner.Scan(v.ctx, io.LimitReader(f, limit))
}

// snapshot lists the segments and the size of the newest at a moment at which
// nobody writes.
func (v *verification) snapshot() (paths []string, size int64, err error) {
	unlock, err := readLock(v.dir)
	if err != nil {
		return nil, 0, err
	}
	defer unlock()
	if v.noted, err = readSmall(filepath.Join(v.dir, HeadName)); err != nil {
		return nil, 0, fmt.Errorf("read ledger's head: %w", err)
	}
	if paths, err = Segments(v.dir); err != nil || len(paths) == 0 {
		return nil, 0, err
	}
	info, err := os.Stat(paths[len(paths)-1])
	if err != nil {
		return nil, 0, fmt.Errorf("look at ledger: %w", err)
	}
	if v.opts.Live { // a copy need not have it
		if end, err := readSegment(paths[len(paths)-1]); err == nil {
			_, _, v.keyless = findKey(v.dir, end.checkpoint)
		}
	}
	return paths, info.Size(), nil
}

// readSmall reads a file of ours, or nil where there is none or something else in
// its place.
func readSmall(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, 64<<10))
	if err != nil || data == nil {
		data = []byte{} // it is no head
	}
	return data, nil
}

// head compares the ledger with the note of how far it had come. Where that is
// missing the next command says so on record.
func (v *verification) head() {
	if v.noted == nil {
		return
	}
	noted, err := chain.ParseCheckpoint(strings.TrimRight(string(v.noted), "\n") + "\n")
	switch {
	case err != nil:
		v.fault(HeadName, "is damaged: %v; see docs/audit.md", err)
	case noted.Origin == v.scanner.Origin && noted.Size > v.scanner.Last.Size:
		v.fault(LedgerName, "ends at line %d, but had reached line %d, as %s says: its end was cut off", v.scanner.Last.Size, noted.Size, HeadName)
	case !v.reached:
		v.fault(HeadName, "is no checkpoint of this ledger: one of the two was exchanged; see docs/audit.md")
	}
}

// record follows what the ledger says of keys and logs.
func (v *verification) record(r Record) error {
	v.report.Records++
	switch r.Kind {
	case KindKey:
		return v.newKey(r)
	case KindOpened:
		o, err := decodeData[Opened](r)
		if err != nil {
			return err
		}
		if v.open[o.Log] != nil || v.files[filepath.Base(ArchivePath(v.dir, o.Log))] {
			return fmt.Errorf("opens log %s for a second time", o.Log)
		}
		v.open[o.Log] = &openLog{Opened: o}
		v.pending = append(v.pending, o.Log)
	case KindClosed:
		c, err := decodeData[Closed](r)
		if err != nil {
			return err
		}
		o := v.open[c.Log]
		if o == nil || o.anchor == "" {
			return fmt.Errorf("closes log %s, which is not open", c.Log)
		}
		delete(v.open, c.Log)
		v.closed[c.Log] = &c
		return v.closedLog(o, c)
	case KindPruned:
		p, err := decodeData[Pruned](r)
		if err != nil {
			return err
		}
		return v.prunedLog(p)
	}
	return nil
}

// prunedLog takes a log as gone that was sound and ended as it was closed. One
// that is still there was checked at its closing: whoever pruned it was killed.
func (v *verification) prunedLog(p Pruned) error {
	c := v.closed[p.Log]
	if c == nil || c.Head == nil || c.Fault != "" || *c.Head != p.Head {
		return fmt.Errorf("prunes log %s, which was not closed, is pruned already, or did not end so", p.Log)
	}
	v.closed[p.Log] = nil
	delete(v.missing, p.Log)
	v.report.Pruned++
	v.expect = slices.DeleteFunc(v.expect, func(h Head) bool {
		switch {
		case h.Origin != p.Log:
			return false
		case h.Size > p.Head.Size:
			v.fault(h.Origin, "it was closed with line %d, but a checkpoint is known of line %d: its end was cut off", p.Head.Size, h.Size)
		case h.Size < p.Head.Size:
			v.fault(h.Origin, "it was pruned, so the checkpoint that is known of its line %d cannot be held against it", h.Size)
		case h.Root != p.Head.Root:
			v.fault(h.Origin, "a checkpoint with another root is known of its end: this is a fork, or its lines were rewritten")
		}
		return true
	})
	return nil
}

func (v *verification) newKey(r Record) error {
	k, err := decodeData[keyData](r)
	if err != nil {
		return err
	}
	key, err := chain.Verifier(k.Key)
	if err != nil {
		return err
	}
	if v.next != nil || (r.Seq == 0) != (v.current == nil) {
		return errors.New("the chain of keys is broken")
	}
	v.report.Keys++
	v.inChain = v.inChain || k.Key == v.trusted
	if v.current == nil {
		v.current = key
		return nil
	}
	v.next = key
	return nil
}

// sealed follows the ledger's checkpoints: a new key counts once the one before
// it and itself have signed.
func (v *verification) sealed(head Head, checkpoint string) error {
	if v.current == nil {
		return errors.New("the ledger does not begin with its key")
	}
	if v.next != nil {
		if !chain.SignedBy(checkpoint, v.current) || !chain.SignedBy(checkpoint, v.next) {
			return errors.New("a new key is not signed by the one before it and by itself")
		}
		v.current, v.next = v.next, nil
	}
	for _, name := range v.pending {
		if o := v.open[name]; o != nil {
			o.anchor = checkpoint
		}
	}
	v.pending = v.pending[:0]
	v.reached = v.reached || checkpoint == strings.TrimRight(string(v.noted), "\n")+"\n"
	return v.meets(head, checkpoint)
}

// meets compares a head with those that are expected at its size.
func (v *verification) meets(head Head, _ string) (err error) {
	v.expect = slices.DeleteFunc(v.expect, func(h Head) bool {
		if h.Origin != head.Origin || h.Size != head.Size {
			return false
		}
		if h.Root != head.Root {
			err = errors.New("a checkpoint with another root is known of here: this is a fork, or its lines were rewritten")
		}
		return true
	})
	return err
}

// trust decides whether the ledger is the one of the key that was given.
func (v *verification) trust() {
	switch {
	case !v.inChain:
		v.fault(LedgerName, "the given public key is none of this ledger's")
	case !chain.SignedBy(v.scanner.Checkpoint, v.current):
		v.fault(LedgerName, "its last checkpoint is not signed by its key")
	}
}

// closedLog checks a log in the archive against its opening and closing.
func (v *verification) closedLog(o *openLog, c Closed) error {
	v.report.Closed++
	if !c.Ended {
		v.report.Killed++
	}
	path := ArchivePath(v.dir, c.Log)
	where := filepath.Join(logsName, filepath.Base(path))
	v.files[filepath.Base(path)] = true
	if c.Fault != "" {
		v.fault(where, "was not sound when it was closed: %s", c.Fault)
	}
	if c.Head == nil {
		return nil
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		v.missing[c.Log] = where
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := v.log(f, o)
	if err != nil {
		return err
	}
	fault, _, err := c.compare(f, st)
	if fault != "" {
		v.fault(where, "%s", fault)
	}
	return err
}

// log reads one log and checks that it belongs to its opening.
func (v *verification) log(f *os.File, o *openLog) (logState, error) {
	st, err := readLog(v.ctx, f, o.Opened, v.meets)
	if err != nil {
		return st, err
	}
	v.report.Records += st.records
	if st.fault == "" && st.ledger != o.anchor {
		st.fault = "it was opened under another checkpoint of the ledger: one of the two was rewritten"
	}
	v.expect = slices.DeleteFunc(v.expect, func(h Head) bool {
		if h.Origin != o.Log || st.fault != "" {
			return h.Origin == o.Log
		}
		st.fault = fmt.Sprintf("it ends at line %d, but a checkpoint is known of line %d: its end was cut off", st.head.Size, h.Size)
		return true
	})
	return st, nil
}

// leftOver looks at what the ledger has not closed, and at what it does not
// know of.
func (v *verification) leftOver() error {
	v.report.Open = len(v.open)
	for _, origin := range slices.Sorted(maps.Keys(v.open)) {
		if err := v.openLog(v.open[origin]); err != nil {
			return err
		}
	}
	entries, err := os.ReadDir(filepath.Join(v.dir, logsName))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("list logs: %w", err)
	}
	for origin := range v.open {
		v.files[filepath.Base(ArchivePath(v.dir, origin))] = true // its closing may be under way
	}
	for _, e := range entries {
		if filepath.Ext(e.Name()) == extension && !v.files[e.Name()] && len(v.report.Faults) == 0 {
			v.fault(filepath.Join(logsName, e.Name()), "is not in the ledger")
		}
	}
	for _, h := range v.expect {
		_, open := v.open[h.Origin]
		if h.Origin != v.scanner.Origin && !(open && !v.opts.Live && !v.isAside(h.Origin)) {
			v.fault(h.Origin, "a checkpoint is known of it, but it is not here")
		}
	}
	return nil
}

// isAside reports whether a log was set aside.
func (v *verification) isAside(origin string) bool {
	there, err := exists(asidePath(v.dir, origin))
	return there || err != nil
}

// openLog checks a log that its keeper may be writing to at this moment: lines
// that no checkpoint covers yet are no fault. In a copy of the directory there
// are only those that were set aside.
func (v *verification) openLog(o *openLog) error {
	aside := v.isAside(o.Log)
	if aside {
		v.report.Aside++
	}
	if !v.opts.Live && !aside {
		return nil
	}
	if aside { // where it was may be another machine's
		o.Dir = asidePath(v.dir, o.Log)
	}
	f, at, err := OpenUnclosed(v.dir, o.Opened)
	if err != nil && !isNoLog(err) && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read log %s: %w", o.Log, err)
	}
	if err != nil {
		v.gone = v.gone || errors.Is(err, fs.ErrNotExist)
		v.fault(o.Log, "is open and cannot be read: %v", err)
		return nil
	}
	defer f.Close()
	st, err := v.log(f, o)
	if err == nil && st.fault != "" {
		v.fault(at, "%s", st.fault)
	}
	return err
}
