package boundary

import (
	"context"
	"net"
	"sync"
	"time"

	"creel/internal/policy"
)

// Port is one that is published: a listener on the host, and the port of the
// sandbox behind it. One of Stream and Datagram is set.
type Port struct {
	Stream   net.Listener
	Datagram net.PacketConn
	Guest    uint16
}

// touch puts the end of an idle flow off.
func (e *Edge) touch(c net.Conn) { c.SetReadDeadline(time.Now().Add(e.cfg.idle)) }

func (p Port) close() {
	if p.Stream != nil {
		p.Stream.Close()
	}
	if p.Datagram != nil {
		p.Datagram.Close()
	}
}

// maxInbound are connections from outside at once, and so many senders of
// datagrams.
const maxInbound = 256

// publish lets connections in, each on record before it reaches the guest.
func (e *Edge) publish(ctx context.Context) {
	streams, senders := make(chan struct{}, maxInbound), make(chan struct{}, maxInbound)
	for _, p := range e.cfg.Ports {
		e.serving.Go(func() {
			if p.Stream != nil {
				e.admitStreams(ctx, p, streams)
			} else {
				e.admitDatagrams(ctx, p, senders)
			}
		})
	}
}

func (e *Edge) admitStreams(ctx context.Context, p Port, places chan struct{}) {
	var open sync.WaitGroup
	defer open.Wait()
	for {
		c, err := p.Stream.Accept()
		if err != nil {
			return
		}
		select {
		case places <- struct{}{}:
		case <-ctx.Done():
			c.Close()
			return
		}
		open.Go(func() {
			defer func() { <-places }()
			defer c.Close()
			e.admit(ctx, p, c)
		})
	}
}

// letIn begins the flow of who comes from outside, unless a budget is used up or
// it cannot be put on record. Bytes are charged to the task, as they are on its
// own connections; the connection is not the task's act, and is not.
func (e *Edge) letIn(ctx context.Context, p Port, from net.Addr, proto string) (context.Context, *flow) {
	ctx, stop := context.WithCancel(ctx)
	f := &flow{inbound: true, stop: stop, req: policy.Request{Op: policy.Connect, Port: p.Guest, Addr: guestAddress}}
	if !e.spend(f, nil, policy.Usage{}).Allow {
		stop()
		return nil, nil
	}
	if err := e.visitors.enter(ctx, from, p.Guest, proto); err != nil {
		if ctx.Err() == nil {
			e.turnedAway(p.Guest, proto)
		}
		stop()
		return nil, nil
	}
	e.flows.add(f)
	return ctx, f
}

func (e *Edge) admit(ctx context.Context, p Port, from net.Conn) {
	ctx, f := e.letIn(ctx, p, from.RemoteAddr(), "tcp")
	if f == nil {
		abort(from)
		return
	}
	defer e.flows.remove(f)
	defer context.AfterFunc(ctx, func() { abort(from) })()
	guest, err := e.stack.Dial(ctx, "tcp", p.Guest)
	if err != nil {
		abort(from)
		return
	}
	defer guest.Close()
	f.accept(guest)
	e.carry(guest, &charging{Conn: from, edge: e, flow: f}, e.searched(f, guest))
}

// admitDatagrams keeps one flow for each sender.
func (e *Edge) admitDatagrams(ctx context.Context, p Port, places chan struct{}) {
	var mu sync.Mutex
	senders := map[string]*sender{}
	var open sync.WaitGroup
	defer open.Wait()
	defer func() {
		mu.Lock()
		defer mu.Unlock()
		for _, s := range senders {
			s.guest.Close()
		}
	}()
	buf := make([]byte, maxDatagram)
	for {
		n, from, err := p.Datagram.ReadFrom(buf)
		if err != nil {
			return
		}
		key := from.String()
		mu.Lock()
		s := senders[key]
		mu.Unlock()
		if s == nil {
			select {
			case places <- struct{}{}:
			default:
				continue
			}
			if s = e.admitSender(ctx, p, from); s == nil {
				<-places
				continue
			}
			mu.Lock()
			senders[key] = s
			mu.Unlock()
			open.Go(func() {
				defer func() { <-places }()
				defer e.flows.remove(s.flow)
				e.answerDatagrams(p.Datagram, s)
				mu.Lock()
				delete(senders, key)
				mu.Unlock()
				s.guest.Close()
			})
		}
		if !e.spend(s.flow, nil, policy.Usage{BytesIn: int64(n)}).Allow {
			continue
		}
		e.touch(s.guest)
		s.guest.Write(buf[:n])
	}
}

// sender is one who sends datagrams from outside.
type sender struct {
	addr  net.Addr
	flow  *flow
	guest net.Conn
}

func (e *Edge) admitSender(ctx context.Context, p Port, from net.Addr) *sender {
	ctx, f := e.letIn(ctx, p, from, "udp")
	if f == nil {
		return nil
	}
	guest, err := e.stack.Dial(ctx, "udp", p.Guest)
	if err != nil {
		e.flows.remove(f)
		return nil
	}
	f.accept(guest)
	return &sender{from, f, guest}
}

// answerDatagrams carries what the sandbox answers one sender, until the flow
// is idle or a mark was about to leave.
func (e *Edge) answerDatagrams(to net.PacketConn, s *sender) {
	buf := make([]byte, maxDatagram)
	for {
		n, err := s.guest.Read(buf)
		if err != nil || !e.unmarked(s.flow, buf[:n]) || !e.spend(s.flow, nil, policy.Usage{BytesOut: int64(n)}).Allow {
			return
		}
		e.touch(s.guest)
		if _, err := to.WriteTo(buf[:n], s.addr); err != nil {
			return
		}
	}
}
