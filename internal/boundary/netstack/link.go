package netstack

import (
	"encoding/binary"
	"net"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// outgoing is a frame to the guest, its length in front: gVisor's or ours.
type outgoing struct {
	pkt  *stack.PacketBuffer
	own  []byte
	size int
}

// link is the cable: gVisor's link endpoint. It resolves no address, because
// whoever is at the other end is the guest. What does not fit its queue is
// dropped, so that a guest which does not take its frames blocks nobody who
// sends.
type link struct {
	mtu        uint32
	mac        atomic.Uint64 // of the guest: what it last sent from
	queue      chan outgoing
	queued     atomic.Int64 // bytes of frames of our own
	overrun    *atomic.Uint64
	dispatcher stack.NetworkDispatcher // set once, before the first frame
}

func newLink(mtu uint32, guest mac, overrun *atomic.Uint64) *link {
	l := &link{mtu: mtu, queue: make(chan outgoing, maxQueue), overrun: overrun}
	l.learn(guest)
	return l
}

func (l *link) learn(m mac) {
	v := uint64(binary.BigEndian.Uint16(m[:]))<<32 | uint64(binary.BigEndian.Uint32(m[2:]))
	if l.mac.Load() != v {
		l.mac.Store(v)
	}
}

func (l *link) guestMAC() mac {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], l.mac.Load())
	return mac(b[2:])
}

// send queues a frame, or drops it. It does not wait.
func (l *link) send(o outgoing) bool {
	own := int64(len(o.own))
	if l.queued.Add(own) <= maxQueueBytes || own == 0 {
		select {
		case l.queue <- o:
			return true
		default:
		}
	}
	l.queued.Add(-own)
	l.overrun.Add(1)
	return false
}

// sendOwn is send for a frame of this package.
func (l *link) sendOwn(frame []byte) { l.send(outgoing{own: frame, size: len(frame)}) }

// write sends what is queued until done, many frames in one system call and
// without copying them.
func (l *link) write(done <-chan struct{}, conn net.Conn) error {
	batch := make([]outgoing, 0, maxBatch)
	var slices [][]byte
	for {
		select {
		case o := <-l.queue:
			batch = append(batch[:0], o)
		case <-done:
			return nil
		}
		batch = l.more(batch)
		slices = slices[:0]
		for _, o := range batch {
			slices = o.appendTo(slices)
		}
		buffers := net.Buffers(slices)
		_, err := buffers.WriteTo(conn)
		for _, o := range batch {
			l.queued.Add(-int64(len(o.own)))
			if o.pkt != nil {
				o.pkt.DecRef()
			}
		}
		clear(batch)
		if err != nil {
			return err
		}
	}
}

// more adds what else is queued, as far as one write goes.
func (l *link) more(batch []outgoing) []outgoing {
	for size := batch[0].size; len(batch) < cap(batch) && size < maxBatchBytes; {
		select {
		case o := <-l.queue:
			batch = append(batch, o)
			size += o.size
		default:
			return batch
		}
	}
	return batch
}

func (o *outgoing) appendTo(slices [][]byte) [][]byte {
	if o.own != nil {
		return append(slices, o.own)
	}
	views, skip := o.pkt.AsViewList()
	for v := views.Front(); v != nil; v = v.Next() {
		b := v.AsSlice()
		n := min(skip, len(b))
		skip -= n
		if b = b[n:]; len(b) > 0 {
			slices = append(slices, b)
		}
	}
	return slices
}

// WritePackets is called by gVisor, by several goroutines at once. A frame that
// was dropped counts as sent: TCP finds out as it does on any network.
func (l *link) WritePackets(list stack.PacketBufferList) (int, tcpip.Error) {
	all := list.AsSlice()
	for _, pkt := range all {
		if !l.send(outgoing{pkt: pkt.IncRef(), size: pkt.Size()}) {
			pkt.DecRef()
		}
	}
	return len(all), nil
}

// AddHeader puts length and Ethernet header in front of a packet.
func (l *link) AddHeader(pkt *stack.PacketBuffer) {
	h := pkt.LinkHeader().Push(lengthSize + ethernetSize)
	encodeLink(h, l.guestMAC(), etherIPv4)
	binary.BigEndian.PutUint32(h, uint32(pkt.Size()-lengthSize))
}

// MaxHeaderLength is the room that gVisor leaves for AddHeader.
func (l *link) MaxHeaderLength() uint16 { return lengthSize + ethernetSize }

// Capabilities: checksums of what the guest sends are not looked at. The cable is a
// socket, which damages nothing, and a guest that sends a wrong one on
// purpose gains what it could have sent with the right one.
func (l *link) Capabilities() stack.LinkEndpointCapabilities {
	return stack.CapabilityRXChecksumOffload
}

func (l *link) MTU() uint32                             { return l.mtu }
func (l *link) SetMTU(uint32)                           {}
func (l *link) LinkAddress() tcpip.LinkAddress          { return tcpip.LinkAddress(gatewayMAC[:]) }
func (l *link) SetLinkAddress(tcpip.LinkAddress)        {}
func (l *link) IsAttached() bool                        { return l.dispatcher != nil }
func (l *link) Wait()                                   {}
func (l *link) Close()                                  {}
func (l *link) SetOnCloseAction(func())                 {}
func (l *link) ParseHeader(*stack.PacketBuffer) bool    { return true }
func (l *link) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareEther }
func (l *link) Attach(d stack.NetworkDispatcher) {
	if d != nil { // nil comes at the end, when nothing is read any more
		l.dispatcher = d
	}
}
