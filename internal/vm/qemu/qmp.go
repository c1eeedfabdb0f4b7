package qemu

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

const (
	maxQMPLine   = 1 << 20
	maxQMPEvents = 64 // unread; a VMM that floods loses the oldest
)

// errQMPClosed is what commands return once the VMM's end is closed.
var errQMPClosed = errors.New("the VMM closed its command socket")

// qmp is a client of QEMU's machine protocol: one JSON object a line. Commands
// are sent one at a time.
type qmp struct {
	conn    *net.UnixConn
	replies chan reply
	events  chan event
	closed  chan struct{} // reading has ended
	awaited atomic.Int64  // number of the command whose reply is waited for

	mu sync.Mutex // one command at a time
}

type reply struct {
	ID     int64           `json:"id"`
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Desc string `json:"desc"`
	} `json:"error"`
}

type event struct {
	Name string `json:"event"`
	Data struct {
		Status string `json:"status"` // MIGRATION
		Reason string `json:"reason"` // SHUTDOWN; of BLOCK_IO_ERROR strerror's text

		Node      string `json:"node-name"` // BLOCK_IO_ERROR
		Operation string `json:"operation"`
	} `json:"data"`
}

// newQMP makes a client; its owner has read run in a goroutine.
func newQMP(conn *net.UnixConn) *qmp {
	return &qmp{conn: conn, replies: make(chan reply, 1), events: make(chan event, maxQMPEvents), closed: make(chan struct{})}
}

// read reads until the VMM's end is closed. onEvent sees each event.
func (q *qmp) read(onEvent func(event)) {
	defer close(q.closed)
	lines := bufio.NewScanner(q.conn)
	lines.Buffer(make([]byte, 0, 4096), maxQMPLine)
	for lines.Scan() {
		var e event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			return
		}
		if e.Name != "" {
			onEvent(e)
			q.keep(e)
			continue
		}
		if bytes.Contains(lines.Bytes(), []byte(`"QMP"`)) {
			continue // the greeting
		}
		var r reply
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			return
		}
		if r.ID != q.awaited.Load() {
			continue // nobody waits for it any more
		}
		select {
		case q.replies <- r:
		default:
			return // an answer that nobody asked for
		}
	}
}

func (q *qmp) keep(e event) {
	for {
		select {
		case q.events <- e:
			return
		default:
		}
		select {
		case <-q.events:
		default:
		}
	}
}

// run executes a command; file, where not nil, goes along with it. Whether a
// command whose ctx ends was or will be executed is not known.
func (q *qmp) run(ctx context.Context, file *os.File, command string, arguments any) error {
	_, err := q.send(ctx, file, command, arguments)
	return err
}

// ask executes a command without arguments and decodes its answer.
func (q *qmp) ask(ctx context.Context, command string, answer any) error {
	data, err := q.send(ctx, nil, command, nil)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, answer); err != nil {
		return fmt.Errorf("%s: decode its answer: %w", command, err)
	}
	return nil
}

func (q *qmp) send(ctx context.Context, file *os.File, command string, arguments any) (json.RawMessage, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	id := q.awaited.Add(1)
	select {
	case <-q.replies: // of a command that was given up as it was answered
	default:
	}
	line, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
		ID        int64  `json:"id"`
	}{command, arguments, id})
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", command, err)
	}
	var rights []byte
	if file != nil {
		rights = unix.UnixRights(int(file.Fd()))
	}
	if _, _, err := q.conn.WriteMsgUnix(append(line, '\n'), rights, nil); err != nil {
		if errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) {
			err = errQMPClosed
		}
		return nil, fmt.Errorf("%s: %w", command, err)
	}
	select {
	case r := <-q.replies:
		if r.Error != nil {
			return nil, fmt.Errorf("%s: %q", command, r.Error.Desc)
		}
		return r.Return, nil
	case <-q.closed:
		return nil, fmt.Errorf("%s: %w", command, errQMPClosed)
	case <-ctx.Done():
		return nil, fmt.Errorf("%s: %w", command, context.Cause(ctx))
	}
}

// migrate runs a migration command over file and waits until it has ended.
func (q *qmp) migrate(ctx context.Context, file *os.File, command string) error {
	type capability struct {
		Name  string `json:"capability"`
		State bool   `json:"state"`
	}
	capabilities := []capability{{"x-ignore-shared", true}, {"events", true}}
	if err := q.run(ctx, nil, "migrate-set-capabilities", map[string]any{"capabilities": capabilities}); err != nil {
		return err
	}
	// A clone's network has not moved: nobody needs to hear of it.
	if err := q.run(ctx, nil, "migrate-set-parameters", map[string]int{"announce-rounds": 0}); err != nil {
		return err
	}
	if err := q.run(ctx, file, "getfd", map[string]string{"fdname": "state"}); err != nil {
		return err
	}
	if err := q.run(ctx, nil, command, map[string]string{"uri": "fd:state"}); err != nil {
		return err
	}
	for {
		select {
		case e := <-q.events:
			switch {
			case e.Name != "MIGRATION":
			case e.Data.Status == "completed":
				return nil
			case e.Data.Status == "failed":
				return fmt.Errorf("%s: the VMM could not transfer the device state", command)
			}
		case <-q.closed:
			return fmt.Errorf("%s: %w", command, errQMPClosed)
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", command, context.Cause(ctx))
		}
	}
}
