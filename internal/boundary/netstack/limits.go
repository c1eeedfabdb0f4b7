package netstack

import "time"

// What one guest can make the host hold, at worst:
//
//	TCP       fastFlows × (maxBuffer received + sendBuffer) = 48 MiB,
//	          up to wideFlows (wideBuffer + wideSend) each, 36 MiB together,
//	          and narrowBuffer × 2 for each further flow, up to MaxFlows
//	UDP       maxMail bytes in all flows together
//	to guest  maxQueue frames, maxQueueBytes of them UDP, pings and the like;
//	          what TCP queues is the memory of its send buffers
//	attempts  MaxPending × (one goroutine, one SYN)
//
// Received segments are charged with their bookkeeping, so that small ones do
// not hold more than large ones. Those without payload are not charged
// by gVisor: maxHeld bounds them.
const (
	defaultMTU     = 65000
	defaultPending = 256
	defaultFlows   = 1024
	defaultIdle    = 60 * time.Second

	// The first flows get buffers for full speed, so that on a busy host, where
	// each side waits milliseconds for its turn, there is enough under way: a
	// quarter of them costs a third of the speed. Receive buffers grow
	// only while the host reads.
	fastFlows    = 8
	firstBuffer  = 1 << 20 // bytes received, before tuning
	maxBuffer    = 4 << 20 // bytes received, at most
	sendBuffer   = 2 << 20 // bytes to the guest
	wideFlows    = 32      // with those below beyond fastFlows
	wideBuffer   = 1 << 20
	wideSend     = 512 << 10
	narrowBuffer = 128 << 10 // bytes each way of a flow beyond wideFlows

	maxQueue      = 4096     // frames to the guest; more are dropped, as by any card
	maxQueueBytes = 16 << 20 // bytes of them that are not TCP's
	maxBatch      = 64       // frames in one write
	maxBatchBytes = 512 << 10

	maxLetters = 64       // datagrams of one UDP flow that nobody has read yet
	maxMail    = 16 << 20 // bytes of them in all flows; an empty one counts as letterCost
	letterCost = 128

	// Segments without payload that gVisor has not worked off yet, each less
	// than 1 KiB. When there are more, the reader waits for half of them to be
	// gone; no longer than holdTime, so that one which is kept for good does no
	// lasting harm.
	maxHeld  = 2048
	holdTime = 5 * time.Millisecond

	backlog = 128 // connections to a service on the gateway, not accepted yet

	// The link loses and reorders nothing, so that waiting for strays of an
	// earlier connection is needless; a minute of it would let the guest pile
	// up what is left of connections, and 100 ms are enough to make a guest that
	// uses a port again lose a SYN, and a second.
	timeWait   = time.Millisecond
	synRetries = 4 // about 30 s until an unfinished handshake is given up
)
