package registry

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"os"
	"time"

	"github.com/containerd/errdefs"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// download is a blob on its way into a file.
type download struct {
	ctx     context.Context // of the one call that made it
	want    v1.Descriptor
	f       *os.File
	report  func(have int64)
	have    int64     // bytes in f that are hashed
	hash    hash.Hash // of them
	resumed bool      // some of them were there before
	told    int64     // what was reported last
}

// resume takes over what f holds from an earlier call.
func (dl *download) resume() error {
	dl.hash = sha256.New()
	if _, err := dl.f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	n, err := io.Copy(dl.hash, io.LimitReader(dl.f, dl.want.Size+1))
	if err != nil {
		return fmt.Errorf("read partial download: %w", err)
	}
	if n > dl.want.Size {
		return dl.restart()
	}
	dl.have, dl.resumed = n, n > 0
	return nil
}

func (dl *download) restart() error {
	dl.have, dl.told, dl.resumed = 0, 0, false
	dl.hash.Reset()
	if err := dl.f.Truncate(0); err != nil {
		return err
	}
	_, err := dl.f.Seek(0, io.SeekStart)
	return err
}

// fetch asks for what is missing and appends what comes.
func (dl *download) fetch(e *endpoint) error {
	if dl.have == dl.want.Size {
		return nil
	}
	ctx, cancel := context.WithCancelCause(dl.ctx)
	defer cancel(nil)
	stalled := time.AfterFunc(stallTimeout, func() {
		cancel(fmt.Errorf("nothing came for %v: %w", stallTimeout, errdefs.ErrUnavailable))
	})
	defer stalled.Stop()

	header := http.Header{}
	if dl.have > 0 {
		header.Set("Range", fmt.Sprintf("bytes=%d-%d", dl.have, dl.want.Size-1))
	}
	resp, err := e.get(ctx, "blobs/"+dl.want.Digest.String(), header,
		http.StatusOK, http.StatusPartialContent, http.StatusRequestedRangeNotSatisfiable)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusRequestedRangeNotSatisfiable:
		return errors.Join(errors.New("registry does not give the rest of the blob"), dl.restart())
	case http.StatusOK:
		if dl.have > 0 { // it ignores ranges
			if err := dl.restart(); err != nil {
				return err
			}
		}
	case http.StatusPartialContent:
		var start int64
		if _, err := fmt.Sscanf(resp.Header.Get("Content-Range"), "bytes %d-", &start); err != nil || start != dl.have {
			return errors.Join(fmt.Errorf("registry answers with range %q", resp.Header.Get("Content-Range")), dl.restart())
		}
	}
	err = dl.append(resp.Body, func() { stalled.Reset(stallTimeout) })
	if cause := context.Cause(ctx); err != nil && cause != nil {
		return cause
	}
	return err
}

// append takes in what comes until the blob is complete or the connection
// breaks. What is written is hashed, so that another try goes on behind it.
func (dl *download) append(r io.Reader, alive func()) error {
	buf := make([]byte, chunk)
	for {
		n, err := r.Read(buf[:min(int64(len(buf)), dl.want.Size-dl.have+1)])
		alive()
		if dl.have+int64(n) > dl.want.Size {
			return errors.Join(fmt.Errorf("%w: blob is longer than the %d bytes of its descriptor: %w", errMismatch, dl.want.Size, errdefs.ErrDataLoss), dl.restart())
		}
		if _, werr := dl.f.Write(buf[:n]); werr != nil {
			return werr
		}
		dl.hash.Write(buf[:n])
		dl.have += int64(n)
		if dl.report != nil && (dl.have-dl.told >= chunk || dl.have == dl.want.Size && dl.told != dl.have) {
			dl.told = dl.have
			dl.report(dl.have)
		}
		if err == io.EOF && dl.have < dl.want.Size {
			return io.ErrUnexpectedEOF
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// check compares the digest; content that is wrong is thrown away.
func (dl *download) check() error {
	if got := fmt.Sprintf("sha256:%x", dl.hash.Sum(nil)); got != dl.want.Digest.String() {
		resumed := dl.resumed
		err := dl.restart()
		dl.resumed = resumed // so that the caller tries once more
		return errors.Join(fmt.Errorf("%w: blob has digest %s, want %s: %w", errMismatch, got, dl.want.Digest, errdefs.ErrDataLoss), err)
	}
	return nil
}
