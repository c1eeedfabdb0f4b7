package netstack

import "time"

// What one guest can make the host hold, at worst:
//
//	TCP       wideFlows × (maxBuffer received + maxBuffer to send) = 128 MiB,
//	          and narrowBuffer × 2 for each further flow, up to MaxFlows
//	UDP       maxMail bytes in all flows together
//	to guest  maxQueue frames and maxQueueBytes; TCP's part of it is the
//	          same memory as its send buffers
//	attempts  MaxPending × (one goroutine, one SYN)
//
// Received segments are charged with their bookkeeping, so that small ones do
// not hold more than large ones.
const (
	defaultMTU     = 65000
	defaultPending = 256
	defaultFlows   = 1024
	defaultIdle    = 60 * time.Second

	// The first flows get buffers for full speed: with segments of 65,000 bytes
	// a window of less than about eight makes sender and receiver wait for each
	// other. Receive buffers begin small and grow only while the host reads.
	wideFlows    = 64
	firstBuffer  = 256 << 10 // bytes received, before tuning
	maxBuffer    = 1 << 20   // bytes each way
	narrowBuffer = 128 << 10 // bytes each way of a flow beyond wideFlows

	maxQueue      = 4096     // frames to the guest; more are dropped, as by any card
	maxQueueBytes = 16 << 20 // bytes of them
	maxBatch      = 64       // frames in one write
	maxBatchBytes = 512 << 10

	maxLetters = 64       // datagrams of one UDP flow that nobody has read yet
	maxMail    = 16 << 20 // bytes of them in all flows; an empty one counts as letterCost
	letterCost = 128

	backlog = 128 // connections to a service on the gateway, not accepted yet

	// The link loses and reorders nothing, so that waiting for strays of an
	// earlier connection is needless; a minute of it would let the guest pile
	// up what is left of connections, and 100 ms are enough to make a guest that
	// uses a port again lose a SYN, and a second.
	timeWait   = time.Millisecond
	synRetries = 4 // about 30 s until an unfinished handshake is given up
)
