package libvm

import (
	"errors"
	"io"
	"net"
	"sync"

	"github.com/hashicorp/yamux"
	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
	"github.com/boxlite-oci/boxlite/internal/sockrelay"
	"github.com/boxlite-oci/boxlite/libvm/controlport"
	"github.com/boxlite-oci/boxlite/libvm/hostsocket"
)

const (
	// maxSocketClients bounds the connections of a container to sockets of the host,
	// each of which costs the monitor memory. Further clients wait.
	maxSocketClients = 256
	// socketWaiters is how many requests wait for clients of one socket.
	socketWaiters = 4
	// acceptReply is more than the reply to accept takes, and less than costs the
	// monitor much.
	acceptReply = 4 << 10
)

// hostSockets are the sockets of the host that the container may connect to.
type hostSockets struct {
	dialer  *hostsocket.Dialer
	shown   []guestproto.Socket
	clients chan struct{} // has one for each connection

	mu       sync.Mutex
	reported map[socketFailure]bool
}

// socketFailure is one of a socket's. Each is reported once: the guest has a say in how
// often it happens.
type socketFailure struct {
	socket int
	text   string
}

// startDialer starts the process that connects to sockets. The share is built later, so
// that nothing of it is the dialer's.
func (c *creation) startDialer() error {
	if len(c.cfg.Plan.Sockets.Sockets) == 0 {
		return nil
	}
	dialer, err := hostsocket.Start(c.cfg.Plan.Sockets)
	if err != nil {
		return err
	}
	c.sockets = &hostSockets{dialer: dialer, clients: make(chan struct{}, maxSocketClients), reported: map[socketFailure]bool{}}
	return nil
}

// openSockets waits until the dialer has found the sockets.
func (m *monitor) openSockets() (err error) {
	if m.sockets == nil {
		return nil
	}
	m.sockets.shown, err = m.sockets.dialer.Open()
	return err
}

func (m *monitor) shownSockets() []guestproto.Socket {
	if m.sockets == nil {
		return nil
	}
	return m.sockets.shown
}

// serveSockets has the container's clients of sockets served until the VM ends.
func (m *monitor) serveSockets() {
	for i, s := range m.shownSockets() {
		if s.Datagram {
			go m.carryDatagrams(i)
			continue
		}
		for range socketWaiters {
			go m.acceptClients(i)
		}
	}
}

// acceptClients waits for one client after the other. A client that there is no room
// for waits with it.
func (m *monitor) acceptClients(socket int) {
	for {
		var client guestproto.AcceptReply
		stream, err := m.guest.open(guestproto.OpAccept, guestproto.SocketRequest{Socket: socket}, &client, untilTheEnd)
		if err != nil {
			m.log.Debug("await a client of a socket", "socket", socket, "error", err)
			return
		}
		select {
		case m.sockets.clients <- struct{}{}:
		case <-m.lost:
			return
		}
		go func() {
			defer func() { <-m.sockets.clients }()
			m.carryClient(socket, client, stream)
		}()
	}
}

// carryClient connects a client in the container to the host's socket, until both ends
// have gone. A client that cannot be connected finds its connection closed.
func (m *monitor) carryClient(socket int, client guestproto.AcceptReply, stream *yamux.Stream) {
	var conn *net.UnixConn
	err := m.whileBusy(func() (err error) {
		conn, err = m.sockets.dialer.Dial(socket, client.UID, client.GID)
		return err
	})
	if err != nil {
		m.reportSocket(socket, err)
		_ = stream.Close()                 // the guest's sign to close the client
		_, _ = io.Copy(io.Discard, stream) // until it has
		return
	}
	m.guest.port.Allow(stream.StreamID(), controlport.Unlimited)
	m.judgeStream(sockrelay.Join(conn, stream))
}

// carryDatagrams sends on what the container's processes have for a socket.
func (m *monitor) carryDatagrams(socket int) {
	stream, err := m.guest.open(guestproto.OpDatagrams, guestproto.SocketRequest{Socket: socket}, nil, untilTheEnd)
	if err != nil {
		m.log.Debug("await datagrams for a socket", "socket", socket, "error", err)
		return
	}
	defer stream.Close()
	buf := make([]byte, sockrelay.MaxDatagram)
	for {
		n, uid, gid, err := sockrelay.ReadDatagram(stream, buf)
		if err != nil {
			m.judgeStream(err)
			return
		}
		err = m.whileBusy(func() error { return m.sockets.dialer.Send(socket, uid, gid, buf[:n]) })
		if err != nil {
			m.reportSocket(socket, err) // it is lost, as datagrams may be
		}
	}
}

// whileBusy tries until the host's server is not too busy any more, or the VM has ended.
// The container's other clients of the socket wait, as under any kernel.
func (m *monitor) whileBusy(try func() error) error {
	for {
		err := try()
		if !errors.Is(err, unix.EAGAIN) {
			return err
		}
		select {
		case <-m.lost:
			return err
		default:
		}
	}
}

// judgeStream ends the session with a guest that has broken the form of a stream.
func (m *monitor) judgeStream(err error) {
	if errors.Is(err, sockrelay.ErrForm) {
		_ = m.guest.port.Violate(err) // which ends the VM
	}
}

func (m *monitor) reportSocket(socket int, err error) {
	failure := socketFailure{socket, err.Error()}
	m.sockets.mu.Lock()
	defer m.sockets.mu.Unlock()
	if m.sockets.reported[failure] {
		return
	}
	m.sockets.reported[failure] = true
	s := m.cfg.Plan.Sockets.Sockets[socket]
	m.log.Warn("a client in the container was not connected to the host's socket", "mount", s.Destination, "source", s.Source, "error", err)
}
