package libvm

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
	"github.com/boxlite-oci/boxlite/internal/sockrelay"
	"github.com/boxlite-oci/boxlite/libvm/fault"
)

// A container with the host's network has another one in truth, the user-mode network of
// QEMU, which nobody can reach from outside. So the monitor listens on the host wherever
// the container's processes listen, and carries each connection into the guest.

const (
	// maxPortClients bounds the connections, and the senders of packets, of a container.
	// Further clients wait; packets of further senders are lost.
	maxPortClients = 256
	// udpPatience is how long a sender of packets that has no more, and gets none, is
	// remembered.
	udpPatience = time.Minute
	// udpQueue is how many packets wait for a guest that takes none.
	udpQueue = 32
)

// hostPorts are the ports of the host that lead to the container.
type hostPorts struct {
	*monitor
	open    map[guestproto.Listener]io.Closer // nil for one that could not be opened
	clients chan struct{}                     // has one for each client
}

// publishPorts has the host's ports follow the guest's until the VM ends.
func (m *monitor) publishPorts() {
	p := &hostPorts{monitor: m, open: map[guestproto.Listener]io.Closer{}, clients: make(chan struct{}, maxPortClients)}
	defer p.follow(nil)
	for seen := []guestproto.Listener(nil); ; {
		var found guestproto.ListenersReply
		if err := m.guest.call(guestproto.OpListeners, guestproto.ListenersRequest{Seen: seen}, &found, untilTheEnd); err != nil {
			m.log.Debug("follow the guest's ports", "error", err)
			return
		}
		seen = found.Listeners[:min(len(found.Listeners), guestproto.MostListeners)]
		p.follow(seen)
		select {
		case <-m.lost:
			return
		case <-time.After(portsInterval):
		}
	}
}

// portsInterval is the least between two looks at a guest's ports, whatever it says.
const portsInterval = 100 * time.Millisecond

// follow closes the ports that are not wanted any more, and then opens those that are
// wanted. What could not be opened is tried again when the guest has closed it.
func (p *hostPorts) follow(wanted []guestproto.Listener) {
	for l, port := range p.open {
		if slices.Contains(wanted, l) {
			continue
		}
		if port != nil {
			_ = port.Close() // connections that are open go on
		}
		delete(p.open, l)
	}
	for _, l := range wanted {
		if _, known := p.open[l]; known {
			continue
		}
		port, err := p.listen(l, slices.ContainsFunc(wanted, func(o guestproto.Listener) bool { return bothFamilies(l, o) }))
		if err != nil {
			p.log.Warn("a port of the container's is not one of the host's", "network", l.Network, "address", l.Address, "error", fault.Quiet(err.Error()))
		}
		p.open[l] = port
	}
}

// bothFamilies says of a listener at all IPv6 addresses that another one is at all IPv4
// addresses: then it is at none of those.
func bothFamilies(l, other guestproto.Listener) bool {
	return l.Address.Addr() == netip.IPv6Unspecified() && other == guestproto.Listener{Network: l.Network, Address: netip.AddrPortFrom(netip.IPv4Unspecified(), l.Address.Port())}
}

var errNoPort = errors.New("not an address that a socket listens at")

// onHost is where the host listens for a listener of the guest's, for package net. The
// address is the guest's word: what is not a loopback address stands for all of the
// host's.
func onHost(l guestproto.Listener, ipv6Only bool) (network, address string, err error) {
	if l.Network != "tcp" && l.Network != "udp" || !l.Address.IsValid() || l.Address.Port() == 0 || l.Address.Addr().Zone() != "" {
		return "", "", errNoPort
	}
	host := l.Address.Addr().Unmap()
	switch {
	case host.IsLoopback():
	case host.Is4():
		host = netip.IPv4Unspecified()
	default:
		host = netip.IPv6Unspecified()
	}
	network = l.Network
	if host.Is4() {
		network += "4"
	} else if ipv6Only {
		network += "6"
	}
	return network, netip.AddrPortFrom(host, l.Address.Port()).String(), nil
}

// listen opens a port of the host's.
func (p *hostPorts) listen(l guestproto.Listener, ipv6Only bool) (io.Closer, error) {
	network, address, err := onHost(l, ipv6Only)
	if err != nil {
		return nil, err
	}
	if l.Network == "tcp" {
		listener, err := net.Listen(network, address)
		if err != nil {
			return nil, err
		}
		go p.accept(listener, l)
		return listener, nil
	}
	conn, err := new(net.ListenConfig).ListenPacket(context.Background(), network, address)
	if err != nil {
		return nil, err
	}
	go (&packetPort{hostPorts: p, listener: l, conn: conn.(*net.UDPConn), senders: map[netip.AddrPort]chan<- []byte{}}).serve()
	return conn, nil
}

// enter takes a place for one more client, and waits for it if wait says so.
func (p *hostPorts) enter(wait bool) bool {
	if !wait {
		select {
		case p.clients <- struct{}{}:
			return true
		default:
			return false
		}
	}
	select {
	case p.clients <- struct{}{}:
		return true
	case <-p.lost:
		return false
	}
}

func (p *hostPorts) leave() { <-p.clients }

// accept carries one client after the other into the guest until the port is closed.
func (p *hostPorts) accept(listener net.Listener, l guestproto.Listener) {
	for {
		conn, err := listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // of that client's, or there are too many files
			p.log.Debug("accept a client", "address", l.Address, "error", err)
			time.Sleep(portsInterval)
			continue
		}
		if !p.enter(true) {
			_ = conn.Close() // the VM has ended
			return
		}
		go func() {
			defer p.leave()
			p.carry(conn.(*net.TCPConn), l)
		}()
	}
}

// carry connects a client to the guest's socket. One that the guest refuses finds its
// connection reset.
func (p *hostPorts) carry(conn *net.TCPConn, l guestproto.Listener) {
	from := conn.RemoteAddr().(*net.TCPAddr).AddrPort().Addr()
	stream, err := p.guest.open(guestproto.OpDial, guestproto.DialRequest{Listener: inGuest(l, from)}, nil, promptly)
	if err != nil {
		p.log.Debug("connect a client to the guest", "address", l.Address, "error", err)
		_ = errors.Join(conn.SetLinger(0), conn.Close())
		return
	}
	p.judgeStream(sockrelay.Join(conn, stream))
}

// inGuest is where a client's connection goes: to the socket's own address, or for one
// at all addresses to the loopback address of the client's family.
func inGuest(l guestproto.Listener, client netip.Addr) guestproto.Listener {
	if !l.Address.Addr().IsUnspecified() {
		return l
	}
	host := netip.IPv6Loopback()
	if client.Unmap().Is4() {
		host = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	return guestproto.Listener{Network: l.Network, Address: netip.AddrPortFrom(host, l.Address.Port())}
}

// packetPort carries the packets of one port. Each sender has a connection of its own in
// the guest.
type packetPort struct {
	*hostPorts
	listener guestproto.Listener
	conn     *net.UDPConn

	mu      sync.Mutex
	senders map[netip.AddrPort]chan<- []byte
}

func (p *packetPort) serve() {
	buf := make([]byte, sockrelay.MaxPacket)
	for {
		n, from, err := p.conn.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			p.log.Debug("receive a packet", "address", p.listener.Address, "error", err)
			time.Sleep(portsInterval)
			continue
		}
		if queue := p.sender(from); queue != nil {
			select {
			case queue <- slices.Clone(buf[:n]):
			default: // the guest is slower than the sender
			}
		}
	}
}

// sender returns the queue of a sender's packets, or nil if there is no room for one more
// sender.
func (p *packetPort) sender(from netip.AddrPort) chan<- []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	if queue, known := p.senders[from]; known {
		return queue
	}
	if !p.enter(false) {
		return nil
	}
	queue := make(chan []byte, udpQueue)
	p.senders[from] = queue
	go func() {
		defer p.leave()
		p.carry(from, queue)
	}()
	return queue
}

// carry carries the packets of one sender there and back until neither side has had any
// for a while.
func (p *packetPort) carry(from netip.AddrPort, queue <-chan []byte) {
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.senders, from)
	}()
	stream, err := p.guest.open(guestproto.OpDial, guestproto.DialRequest{Listener: inGuest(p.listener, from.Addr())}, nil, promptly)
	if err != nil {
		p.log.Debug("connect a sender to the guest", "address", p.listener.Address, "error", err)
		return
	}
	back := make(chan struct{}, 1) // a message when the guest has sent something
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		buf := make([]byte, sockrelay.MaxPacket)
		for {
			n, err := sockrelay.ReadPacket(stream, buf)
			if err != nil {
				return
			}
			_, _ = p.conn.WriteToUDPAddrPort(buf[:n], from) // lost, if it has gone
			select {
			case back <- struct{}{}:
			default:
			}
		}
	}()
	for idle := false; !idle; {
		select {
		case packet := <-queue:
			idle = sockrelay.WritePacket(stream, packet) != nil
		case <-back:
		case <-ended:
			idle = true
		case <-time.After(udpPatience):
			idle = true
		}
	}
	_ = stream.Close() // the guest then closes its side
	<-ended
}
