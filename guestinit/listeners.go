package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/yamux"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
	"github.com/boxlite-oci/boxlite/internal/sockrelay"
)

// listenersInterval is how often the kernel is asked which sockets listen: nothing tells
// of that.
const listenersInterval = 500 * time.Millisecond

// awaitListeners waits until other sockets listen than those seen.
func (s *server) awaitListeners(req *guestproto.ListenersRequest) (any, error) {
	for ; ; time.Sleep(listenersInterval) {
		found, err := listeners()
		if errors.Is(err, netlink.ErrDumpInterrupted) { // some may be missing
			continue
		}
		if err != nil {
			return nil, err
		}
		if !slices.Equal(found, req.Seen) {
			return guestproto.ListenersReply{Listeners: found}, nil
		}
	}
}

// The states of a socket that takes connections, or packets from everybody
// (net/tcp_states.h).
const (
	tcpListen = 10
	tcpClose  = 7
)

// listeners are the sockets of the container's network namespace, which is guestinit's,
// sorted. UDP sockets at ports that the kernel gives to clients are left out.
func listeners() (found []guestproto.Listener, err error) {
	first, last, err := clientPorts()
	if err != nil {
		return nil, err
	}
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		tcp, err := netlink.SocketDiagTCP(family)
		if err != nil {
			return nil, fmt.Errorf("list TCP sockets: %w", err)
		}
		udp, err := netlink.SocketDiagUDP(family)
		if err != nil {
			return nil, fmt.Errorf("list UDP sockets: %w", err)
		}
		udp = slices.DeleteFunc(udp, func(s *netlink.Socket) bool { return first <= s.ID.SourcePort && s.ID.SourcePort <= last })
		found = append(append(found, inState(tcp, tcpListen, "tcp")...), inState(udp, tcpClose, "udp")...)
	}
	slices.SortFunc(found, compareListeners)
	found = slices.Compact(found) // SO_REUSEPORT
	return found[:min(len(found), guestproto.MostListeners)], nil
}

// inState are the addresses of the sockets in a state, without those of groups.
func inState(sockets []*netlink.Socket, state uint8, network string) (found []guestproto.Listener) {
	for _, s := range sockets {
		if address, ok := netip.AddrFromSlice(s.ID.Source); ok && s.State == state && !address.IsMulticast() {
			found = append(found, guestproto.Listener{Network: network, Address: netip.AddrPortFrom(address.Unmap(), s.ID.SourcePort)})
		}
	}
	return found
}

func compareListeners(a, b guestproto.Listener) int {
	if c := strings.Compare(a.Network, b.Network); c != 0 {
		return c
	}
	if a.Address.Port() != b.Address.Port() {
		return int(a.Address.Port()) - int(b.Address.Port())
	}
	return a.Address.Compare(b.Address)
}

// clientPorts are the ports that the kernel gives to sockets which ask for none.
func clientPorts() (first, last uint16, err error) {
	text, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if err != nil {
		return 0, 0, err
	}
	_, err = fmt.Sscan(string(text), &first, &last)
	return first, last, err
}

// dialTimeout is more than a connection within the guest takes.
const dialTimeout = 10 * time.Second

// dial connects to a socket in the guest, and carries the connection over the stream of
// the request.
func (s *server) dial(req *guestproto.DialRequest, stream *yamux.Stream) error {
	conn, err := net.DialTimeout(req.Network, req.Address.String(), dialTimeout)
	if err != nil {
		return err
	}
	if err := reply(stream, nil, nil); err != nil {
		return errors.Join(err, conn.Close())
	}
	switch conn := conn.(type) {
	case *net.TCPConn:
		err = sockrelay.Join(conn, stream)
	case *net.UDPConn:
		sockrelay.JoinPackets(conn, stream)
	}
	if err != nil {
		logf("a client of %s %s: %v", req.Network, req.Address, err)
	}
	return nil
}
