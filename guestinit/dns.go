package main

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
)

// A dnsRelay answers at guestproto.DNSAddress. Queries of all clients go over
// one stream to the monitor, each under a message id of the relay's own, by
// which the response finds its way back.
type dnsRelay struct {
	mu        sync.Mutex
	stream    io.ReadWriteCloser // nil while the monitor has not opened one
	listening bool
	next      uint16
	// pending has what to do with the response to each message id. A query
	// that is never answered is overwritten when its id comes round again.
	pending map[uint16]pendingQuery
	// writing keeps messages on the stream apart.
	writing sync.Mutex
}

type pendingQuery struct {
	id     uint16 // the client's
	answer func(message []byte)
}

const (
	dnsHeader = 12
	// maxUDP is the longest response to send in a datagram. Longer ones become
	// an empty one with the bit that sends the client to TCP.
	maxUDP = 65507
)

// attach makes stream the way to the monitor's resolver, and serves it until
// it ends.
func (d *dnsRelay) attach(stream io.ReadWriteCloser) {
	d.mu.Lock()
	if d.stream != nil {
		_ = d.stream.Close()
	}
	d.stream = stream
	d.mu.Unlock()
	for {
		message, err := readDNS(stream)
		if err != nil {
			break
		}
		d.deliver(message)
	}
	d.mu.Lock()
	if d.stream == stream {
		d.stream = nil
	}
	d.mu.Unlock()
	_ = stream.Close()
}

// deliver hands a response to the client that waits for it.
func (d *dnsRelay) deliver(message []byte) {
	id := binary.BigEndian.Uint16(message)
	d.mu.Lock()
	query, ok := d.pending[id]
	delete(d.pending, id)
	d.mu.Unlock()
	if ok {
		binary.BigEndian.PutUint16(message, query.id)
		query.answer(message)
	}
}

// ask sends a query. answer is called at most once, on another goroutine.
func (d *dnsRelay) ask(message []byte, answer func(message []byte)) error {
	d.mu.Lock()
	stream := d.stream
	if stream == nil {
		d.mu.Unlock()
		return fmt.Errorf("no resolver on the host")
	}
	d.next++
	id := d.next
	if d.pending == nil {
		d.pending = map[uint16]pendingQuery{}
	}
	d.pending[id] = pendingQuery{binary.BigEndian.Uint16(message), answer}
	d.mu.Unlock()

	framed := make([]byte, 2+len(message))
	binary.BigEndian.PutUint16(framed, uint16(len(message)))
	copy(framed[2:], message)
	binary.BigEndian.PutUint16(framed[2:], id)
	d.writing.Lock()
	defer d.writing.Unlock()
	_, err := stream.Write(framed)
	return err
}

// readDNS reads one message with the length in front that TCP has.
func readDNS(r io.Reader) ([]byte, error) {
	var size [2]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, err
	}
	message := make([]byte, binary.BigEndian.Uint16(size[:]))
	if len(message) < dnsHeader {
		return nil, fmt.Errorf("DNS message of %d bytes", len(message))
	}
	_, err := io.ReadFull(r, message)
	return message, err
}

// listen opens the sockets, once. It runs in the VM's network namespace.
func (d *dnsRelay) listen() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.listening {
		return nil
	}
	addr := netip.AddrPortFrom(netip.MustParseAddr(guestproto.DNSAddress), 53)
	udp, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(addr))
	if err != nil {
		return fmt.Errorf("DNS relay: %w", err)
	}
	tcp, err := net.ListenTCP("tcp4", net.TCPAddrFromAddrPort(addr))
	if err != nil {
		_ = udp.Close()
		return fmt.Errorf("DNS relay: %w", err)
	}
	d.listening = true
	go d.serveUDP(udp)
	go d.serveTCP(tcp)
	return nil
}

func (d *dnsRelay) serveUDP(conn *net.UDPConn) {
	buf := make([]byte, 64<<10)
	for {
		n, client, err := conn.ReadFromUDPAddrPort(buf)
		if err != nil {
			logf("DNS relay: %v", err)
			return
		}
		if n < dnsHeader {
			continue
		}
		limit := udpLimit(buf[:n])
		err = d.ask(buf[:n], func(message []byte) {
			_, _ = conn.WriteToUDPAddrPort(truncate(message, limit), client) // a lost datagram
		})
		if err != nil {
			_, _ = conn.WriteToUDPAddrPort(failure(buf[:n]), client)
		}
	}
}

func (d *dnsRelay) serveTCP(listener *net.TCPListener) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			logf("DNS relay: %v", err)
			return
		}
		go d.serveConn(conn)
	}
}

// serveConn answers the queries of one TCP client, in whatever order the
// responses come.
func (d *dnsRelay) serveConn(conn net.Conn) {
	defer conn.Close()
	var writing sync.Mutex
	write := func(message []byte) {
		writing.Lock()
		defer writing.Unlock()
		framed := binary.BigEndian.AppendUint16(nil, uint16(len(message)))
		_, _ = conn.Write(append(framed, message...)) // the client is gone
	}
	for {
		message, err := readDNS(conn)
		if err != nil {
			return
		}
		if err := d.ask(message, write); err != nil {
			write(failure(message))
		}
	}
}
