package plan

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strconv"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
)

// SocketKind says what a unix socket takes.
type SocketKind int

// The kinds of socket.
const (
	// SocketUnknown is one that nobody has open, or that the caller may not connect to.
	SocketUnknown   SocketKind = iota
	SocketStream               // connections
	SocketDatagram             // datagrams
	SocketSeqpacket            // connections of messages, which do not cross
)

// HostSockets are sockets of the host that binds name, and what the host sees of the
// container's processes that connect.
type HostSockets struct {
	// Off says that there shall be none.
	Off     bool         `json:",omitempty"`
	Sockets []HostSocket `json:",omitempty"`
	// User is whom the host sees whoever connects: the container's user. If it is nil,
	// the container's process is root, and the host sees the ids that the guest says.
	User *SocketUser `json:",omitempty"`
	// UIDs and GIDs are the host's that the container has. Without any, it has all.
	UIDs []specs.LinuxIDMapping `json:",omitempty"`
	GIDs []specs.LinuxIDMapping `json:",omitempty"`
}

// HostSocket is one of HostSockets.
type HostSocket struct {
	Source      string // path on the host
	Destination string // path in the container
	Datagram    bool   `json:",omitempty"`
}

// SocketUser is the host's ids of a process.
type SocketUser struct{ UID, GID uint32 }

// allowSockets decides whether there are any, and who connects to them.
func (p *Plan) allowSockets(annotations map[string]string, over Overrides) error {
	switch value := annotations[AnnotationHostSockets]; value {
	case "", "on", "off":
		p.Sockets.Off = value == "off" || over.NoHostSockets
		return nil
	default:
		return fmt.Errorf("annotation %s=%q: on or off", AnnotationHostSockets, value)
	}
}

// hostSocket gives a bind of a socket the guest's own socket for source. It returns
// false where the bind shall show the inode.
func (p *Plan) hostSocket(m *specs.Mount, src Source) bool {
	if p.Sockets.Off {
		return false
	}
	if p.Member != "" {
		p.Warnf("mount %s: %s is a socket of the host's, and a member of a pod cannot connect to one", m.Destination, m.Source)
		return false
	}
	switch src.Socket {
	case SocketSeqpacket:
		p.Warnf("mount %s: %s is a socket of type SOCK_SEQPACKET: nobody in the container can connect to it", m.Destination, m.Source)
		return false
	case SocketUnknown:
		p.Warnf("mount %s: boxlite could not connect to the socket %s, which is taken for one of type SOCK_STREAM", m.Destination, m.Source)
	}
	if len(p.Sockets.Sockets) == 0 {
		p.socketUser()
	}
	m.Source = path.Join(guestproto.SocketDir, strconv.Itoa(len(p.Sockets.Sockets)))
	p.Sockets.Sockets = append(p.Sockets.Sockets, HostSocket{Source: src.Path, Destination: m.Destination, Datagram: src.Socket == SocketDatagram})
	return true
}

// socketUser says who connects. What a guest says of its processes counts only where
// the container's process could be anybody in the container anyway. Otherwise a guest
// that has been taken over would be root to the host's servers.
func (p *Plan) socketUser() {
	if l := p.Guest.Linux; len(l.UIDMappings) > 0 {
		p.Sockets.UIDs, p.Sockets.GIDs = l.UIDMappings, l.GIDMappings
	}
	if proc := p.Guest.Process; proc != nil && proc.User.UID != 0 {
		p.Sockets.User = &SocketUser{UID: hostID(p.Sockets.UIDs, proc.User.UID), GID: hostID(p.Sockets.GIDs, proc.User.GID)}
	}
}

// hostID is the host's id of one of the container's.
func hostID(mappings []specs.LinuxIDMapping, id uint32) uint32 {
	for _, m := range mappings {
		if id >= m.ContainerID && id-m.ContainerID < m.Size {
			return m.HostID + id - m.ContainerID
		}
	}
	return id // no mappings; what is mapped nowhere is nobody, and the guest refuses it
}

// probeSocket finds the kind of a socket, without a word to who has it open: the kernel
// says that the kind is another one before it does anything else. Only a socket of type
// SOCK_SEQPACKET sees a connection that is closed at once.
func probeSocket(path string) (SocketKind, error) {
	node, err := os.OpenFile(path, unix.O_PATH, 0)
	if err != nil {
		return SocketUnknown, err
	}
	defer node.Close()
	for _, try := range []struct {
		kind  SocketKind
		style int
	}{{SocketDatagram, unix.SOCK_DGRAM}, {SocketSeqpacket, unix.SOCK_SEQPACKET}} {
		fd, err := unix.Socket(unix.AF_UNIX, try.style|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return SocketUnknown, err
		}
		// By the descriptor: a socket's own path may be 107 bytes long at most.
		err = unix.Connect(fd, &unix.SockaddrUnix{Name: fmt.Sprintf("/proc/self/fd/%d", node.Fd())})
		_ = unix.Close(fd)
		switch {
		case err == nil, errors.Is(err, unix.EAGAIN):
			return try.kind, nil
		case !errors.Is(err, unix.EPROTOTYPE):
			return SocketUnknown, nil
		}
	}
	return SocketStream, nil
}
