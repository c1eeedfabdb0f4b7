package audit

import (
	"fmt"
	"io"
	"os"

	"creel/internal/audit/chain"
)

// Behind the last commit of a log that has grown stand zeros, until it is
// closed. Commits overwrite them: a sync that need not note a new size and new
// blocks costs half as much, and hardly more than half the time.
const (
	padFrom = 256 << 10 // bytes of a log; most logs stay shorter
	padMost = 1 << 20
)

// appendDurable is [appendDurable] for a log. Where the zeros end, it writes
// more with the commit: one sync is for both.
func (l *Log) appendDurable(data []byte) (trusted bool, err error) {
	end := l.size + int64(len(data))
	if pad := l.padding(end); pad > 0 {
		trusted, err = appendDurable(l.file, l.size, append(data, make([]byte, pad)...))
		if err == nil {
			l.end = end + pad
			return true, nil
		}
		l.end, l.bare = l.size, true
		if !trusted {
			return false, err
		}
	}
	if trusted, err = appendDurable(l.file, l.size, data); err != nil {
		l.end = l.size // it was cut there
		return trusted, err
	}
	l.end = max(l.end, end)
	return true, nil
}

// padding is how many zeros are to follow a commit that ends there: as much as
// there is already, and never beyond the quota.
func (l *Log) padding(end int64) int64 {
	if l.bare || end <= l.end || end < padFrom {
		return 0
	}
	return max(min(end, padMost, l.max-end), 0)
}

// Written is where the zeros at the end of a log begin that is not closed. What
// its keeper writes meanwhile lies behind that, or is there in full before it.
func Written(f *os.File) (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, fmt.Errorf("look at sandbox log: %w", err)
	}
	end := info.Size()
	// A crash may leave zeros in place of a whole commit, too.
	stop := max(end-padMost-chain.MaxTorn, 0)
	for buf := make([]byte, 64<<10); end > stop; {
		from := max(end-int64(len(buf)), stop)
		n, err := f.ReadAt(buf[:end-from], from)
		if err != nil && err != io.EOF { // it may have been cut meanwhile
			return 0, fmt.Errorf("read sandbox log: %w", err)
		}
		for n > 0 && buf[n-1] == 0 {
			n--
		}
		if end = from + int64(n); n > 0 {
			break
		}
	}
	return end, nil
}
