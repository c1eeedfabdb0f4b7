package packet

import (
	"crypto/ecdh"
	"crypto/rand"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"time"
)

// Hello describes a ClientHello.
type Hello struct {
	SNI    string   // none if empty
	Hidden string   // the name in an encrypted ClientHello, whose outer name is SNI; none if empty
	ECH    []byte   // its configuration list; one that no server has if empty
	ALPN   []string // protocols offered
}

// Record is the TLS record of a ClientHello as crypto/tls makes it.
func (h Hello) Record() ([]byte, error) {
	config := &tls.Config{ServerName: h.SNI, NextProtos: h.ALPN, InsecureSkipVerify: true}
	if h.Hidden != "" {
		list := h.ECH
		if list == nil {
			key, err := ecdh.X25519().GenerateKey(rand.Reader)
			if err != nil {
				return nil, err
			}
			list = ECHConfigList(h.SNI, key.PublicKey())
		}
		config.ServerName, config.EncryptedClientHelloConfigList, config.MinVersion = h.Hidden, list, tls.VersionTLS13
	}
	var taken capture
	err := tls.Client(&taken, config).Handshake()
	if !errors.Is(err, errTaken) {
		return nil, fmt.Errorf("make ClientHello: %w", err)
	}
	return taken.written, nil
}

// ECHConfigList is a list with one configuration, of identifier 1, for servers
// that show themselves as name.
func ECHConfigList(name string, key *ecdh.PublicKey) []byte {
	config := ECHConfig(name, key)
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(config))), config...)
}

// ECHConfig is the one configuration of such a list.
func ECHConfig(name string, key *ecdh.PublicKey) []byte {
	body := []byte{1, 0, 0x20} // identifier; X25519 with HKDF-SHA256
	body = binary.BigEndian.AppendUint16(body, uint16(len(key.Bytes())))
	body = append(body, key.Bytes()...)
	body = append(body, 0, 4, 0, 1, 0, 1) // HKDF-SHA256, AES-128-GCM
	body = append(body, 0, byte(len(name)))
	body = append(append(body, name...), 0, 0)
	b := binary.BigEndian.AppendUint16([]byte{0xfe, 0x0d}, uint16(len(body)))
	return append(b, body...)
}

// Split makes of one TLS record many of at most size bytes of its content.
func Split(record []byte, size int) [][]byte {
	var all [][]byte
	for content := record[5:]; len(content) > 0; {
		n := min(size, len(content))
		b := append([]byte{}, record[:3]...)
		b = binary.BigEndian.AppendUint16(b, uint16(n))
		all = append(all, append(b, content[:n]...))
		content = content[n:]
	}
	return all
}

var errTaken = errors.New("the hello was taken")

// capture is a connection that keeps what is written first.
type capture struct{ written []byte }

func (c *capture) Write(b []byte) (int, error) {
	c.written = append(c.written, b...)
	return len(b), nil
}

func (*capture) Read([]byte) (int, error)         { return 0, errTaken }
func (*capture) Close() error                     { return nil }
func (*capture) LocalAddr() net.Addr              { return nil }
func (*capture) RemoteAddr() net.Addr             { return nil }
func (*capture) SetDeadline(time.Time) error      { return nil }
func (*capture) SetReadDeadline(time.Time) error  { return nil }
func (*capture) SetWriteDeadline(time.Time) error { return nil }
