package query

import (
	"bufio"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"creel/internal/audit"
	"creel/internal/audit/chain"
)

// source reads the ledger, or one log, commit by commit.
type source struct {
	origin  string // of a log
	sandbox string // of a log
	dir     string // where its file is or comes to be
	// open finds the file to go on with; after is the one that was read last.
	open func(after string) (file *os.File, path string, err error)

	file   *os.File
	path   string
	reader *bufio.Reader
	spill  []byte
	live   bool  // file is a log that its keeper may be writing
	offset int64 // after the last commit that was read
	end    int64 // of what is to be read, as far as is known

	ready  []audit.Record // of the commit that was read last
	last   time.Time      // of the record that was read last
	closed bool           // nothing will be added
	broken bool           // nothing more can be read
}

func newLedger(dir string) *source {
	return &source{dir: filepath.Join(dir, audit.LedgerName), open: func(after string) (*os.File, string, error) {
		paths, err := audit.Segments(dir)
		if err != nil {
			return nil, "", err
		}
		for _, p := range paths {
			if p > after {
				f, err := os.Open(p)
				return f, p, err
			}
		}
		return nil, "", fs.ErrNotExist
	}}
}

// newLog reads a log where it is: in the archive once it was closed, with its
// keeper before.
func newLog(dir, sandbox string, o audit.Opened) *source {
	return &source{origin: o.Log, sandbox: sandbox, dir: o.Dir, open: func(after string) (*os.File, string, error) {
		if after != "" {
			return nil, "", fs.ErrNotExist // one file is all
		}
		archive := audit.ArchivePath(dir, o.Log)
		f, err := os.Open(archive)
		if !errors.Is(err, fs.ErrNotExist) {
			return f, archive, err
		}
		f, at, err := audit.OpenUnclosed(dir, o)
		if err != nil {
			// Another look: it may have been closed in between.
			if again, err := os.Open(archive); err == nil {
				return again, archive, nil
			}
			return nil, "", fs.ErrNotExist // its end is the verifier's affair
		}
		return f, at, nil
	}}
}

func (s *source) peek() audit.Record { return s.ready[0] }

func (s *source) take() audit.Record {
	r := s.ready[0]
	s.ready = s.ready[1:]
	return r
}

// fill reads the next commit if none is at hand, and reports whether there is
// a record.
func (s *source) fill() (bool, error) {
	for len(s.ready) == 0 {
		if s.file == nil {
			if err := s.advance(); errors.Is(err, fs.ErrNotExist) {
				return false, nil
			} else if err != nil {
				return false, err
			}
		}
		if s.broken {
			return false, nil
		}
		more, err := s.commit()
		if err != nil {
			return true, s.giveUp(err)
		}
		if more {
			continue
		}
		// A later segment exists only once this one is at its end; look again
		// for what was added to this one before that.
		f, path, err := s.open(s.path)
		if errors.Is(err, fs.ErrNotExist) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		if more, err := s.commit(); err != nil || more {
			f.Close()
			if err != nil {
				return true, s.giveUp(err)
			}
			continue
		}
		s.use(f, path)
	}
	return true, nil
}

// giveUp puts a record in place of what cannot be read: one broken log must not
// hide the others.
func (s *source) giveUp(cause error) error {
	s.broken, s.closed = true, true
	data, err := json.Marshal(map[string]string{"file": s.path, "error": cause.Error(), "next": "run creel audit verify"})
	s.ready = []audit.Record{{Seq: -1, Time: s.last, Kind: KindUnreadable, Sandbox: s.sandbox, Data: data}}
	return err
}

func (s *source) advance() error {
	f, path, err := s.open(s.path)
	if err != nil {
		return err
	}
	s.use(f, path)
	return nil
}

func (s *source) use(f *os.File, path string) {
	s.close()
	s.file, s.path, s.offset, s.end = f, path, 0, 0
	s.live = s.origin != "" && filepath.Base(path) == audit.LogName
	s.reader = bufio.NewReaderSize(strings.NewReader(""), 32<<10) // commit looks how far it goes
}

// commit reads up to the next checkpoint. Where there is none yet it goes back
// and returns false.
func (s *source) commit() (bool, error) {
	var records []audit.Record
	var size int64
	for {
		raw, err := chain.ReadLine(s.reader, &s.spill)
		if errors.Is(err, io.EOF) {
			if more, err := s.back(); err != nil || !more {
				return false, err
			}
			records, size = nil, 0
			continue
		}
		if err != nil {
			return false, err
		}
		size += int64(len(raw)) + 1
		l, err := chain.Parse(raw)
		if err != nil || size > 2*chain.MaxTorn {
			// A crash's end, before it is set aside, looks like this too.
			if _, back := s.back(); back != nil || s.origin == "" && size <= chain.MaxTorn {
				return false, back
			}
			return false, errors.Join(err, errors.New("lines without a checkpoint"))
		}
		if l.Checkpoint != "" {
			s.ready = records
			s.offset += size
			return true, nil
		}
		r := l.Record()
		r.Data, s.last = slices.Clone(r.Data), r.Time
		records = append(records, r)
	}
}

// back goes back to the end of the last commit, and reports whether there is
// more behind it than there was. Of a log that is not closed, zeros at its end
// are left out.
func (s *source) back() (more bool, err error) {
	end, err := s.look()
	if err != nil {
		return false, err
	}
	more, s.end = end > s.end, end
	s.reader.Reset(io.NewSectionReader(s.file, s.offset, max(end-s.offset, 0)))
	return more, nil
}

// look is how far the file is to be read.
func (s *source) look() (int64, error) {
	if !s.live {
		return 1 << 62, nil
	}
	if s.end == s.offset && s.offset > 0 { // a whole look has found no more before
		var next [1]byte
		if n, err := s.file.ReadAt(next[:], s.offset); n == 0 && err == io.EOF || n == 1 && next[0] == 0 {
			return s.end, nil
		}
	}
	return audit.Written(s.file)
}

func (s *source) close() {
	if s.file != nil {
		s.file.Close()
		s.file = nil
	}
}

// watched is the directory in which something changes when there is more.
func (s *source) watched() string { return strings.TrimSuffix(s.dir, "/") }
