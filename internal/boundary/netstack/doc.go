// Package netstack is the host's end of one sandbox's network card: an IPv4
// stack in this process, with QEMU's `-netdev stream` at the other end of a
// connection. What the guest sends is held against a strict filter of ours
// first ([Stack.Dropped] counts what that refuses); what passes becomes
// connection attempts ([Attempt]), which somebody else accepts or refuses. The
// guest reaches nothing but what is answered here.
//
// ARP, ping and UDP are so small that they are answered in this package; gVisor
// gets to see TCP only.
//
// The package must not dial, resolve or decide, and must not trust a byte that
// it reads: memory is bounded whatever the guest does (see limits.go).
package netstack
