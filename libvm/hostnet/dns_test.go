package hostnet

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
)

// resolver plays Docker's: over UDP it truncates what begins with "big" and
// ignores what begins with "mute"; else the response is the query with the
// response bit set and "udp" or "tcp" behind it.
func resolver(t *testing.T) func() error {
	return func() error {
		address := net.JoinHostPort(guestproto.DNSAddress, "53")
		packets, err := net.ListenPacket("udp", address)
		if err != nil {
			return err
		}
		listener, err := net.Listen("tcp", address)
		if err != nil {
			return err
		}
		t.Cleanup(func() { packets.Close(); listener.Close() })
		go func() {
			buf := make([]byte, 1<<16)
			for {
				n, from, err := packets.ReadFrom(buf)
				if err != nil {
					return
				}
				q := bytes.Clone(buf[:n])
				if bytes.HasPrefix(q[dnsHeader:], []byte("mute")) {
					continue
				}
				packets.WriteTo(make([]byte, 20), from) // noise that answers nothing
				q[2] |= 0x80
				if bytes.HasPrefix(q[dnsHeader:], []byte("big")) {
					q[2] |= 0x02
				}
				packets.WriteTo(append(q, "udp"...), from)
			}
		}()
		go func() {
			for {
				conn, err := listener.Accept()
				if err != nil {
					return
				}
				go func() {
					defer conn.Close()
					q, err := readDNS(conn)
					if err != nil {
						return
					}
					q[2] |= 0x80
					writeDNS(conn, append(q, "tcp"...))
				}()
			}
		}()
		return nil
	}
}

func dnsQuery(id uint16, name string) []byte {
	return append(binary.BigEndian.AppendUint16(nil, id), append(make([]byte, dnsHeader-2), name...)...)
}

func TestServeDNS(t *testing.T) {
	ns := newNamespace(t)
	if err := in(ns, resolver(t)); err != nil {
		t.Fatal(err)
	}
	near, far := net.Pipe()
	ended := make(chan error, 1)
	go func() { ended <- ServeDNS(context.Background(), ns, far) }()

	const n = 200 // more than may be in flight
	go func() {
		writeDNS(near, dnsQuery(9999, "mute"))
		for id := range uint16(n) {
			name := "small"
			if id%10 == 0 {
				name = "big"
			}
			if err := writeDNS(near, dnsQuery(id, name)); err != nil {
				t.Error(err)
			}
		}
	}()
	near.SetReadDeadline(time.Now().Add(20 * time.Second))
	in := bufio.NewReader(near)
	seen := map[uint16]bool{}
	for len(seen) < n {
		m, err := readDNS(in)
		if err != nil {
			t.Fatalf("after %d responses: %v", len(seen), err)
		}
		id := binary.BigEndian.Uint16(m)
		want := "smalludp"
		if id%10 == 0 {
			want = "bigtcp"
		}
		if got := string(m[dnsHeader:]); got != want || seen[id] {
			t.Errorf("response %d = %q, want %q once", id, got, want)
		}
		seen[id] = true
	}
	near.Close()
	if err := <-ended; err != nil {
		t.Errorf("ServeDNS = %v, want nil at the end of the stream", err)
	}
}

func TestServeDNSEnds(t *testing.T) {
	for name, tc := range map[string]struct {
		said []byte
		want error
	}{
		"at once":          {nil, nil},
		"within a message": {[]byte{0, 20, 1, 2}, io.ErrUnexpectedEOF},
		"within a length":  {[]byte{0}, io.ErrUnexpectedEOF},
		"short message":    {[]byte{0, 2, 1, 2}, errors.New("read query: message of 2 bytes")},
	} {
		t.Run(name, func(t *testing.T) {
			stream := struct {
				io.Reader
				io.Writer
			}{bytes.NewReader(tc.said), io.Discard}
			err := ServeDNS(context.Background(), nil, stream)
			if tc.want == nil && err != nil || tc.want != nil && (err == nil || !errors.Is(err, tc.want) && err.Error() != tc.want.Error()) {
				t.Errorf("ServeDNS = %v, want %v", err, tc.want)
			}
		})
	}
}
