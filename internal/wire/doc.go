// Package wire carries many streams over one byte connection: the control port
// of a guest, and a keeper's socket. Each stream has an operation name, a JSON
// opening body, ordered JSON messages in both directions, and numbered data
// channels with credit, so that a slow reader of one stream neither loses a
// byte, nor grows memory, nor blocks another. docs/format/wire.md is the
// format in prose.
//
// The peer is not trusted: every length, window, stream number and queue is
// bounded, and a breach ends the connection and nothing else.
//
// The main types are [Conn] and [Stream]. The package must not import anything
// of ours and must not know what operations mean.
package wire
