package main

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/yamux"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
	"github.com/boxlite-oci/boxlite/internal/sockrelay"
)

// listenersInterval is how often the kernel is asked which sockets listen: nothing tells
// of that.
const listenersInterval = 500 * time.Millisecond

// awaitListeners waits until other sockets listen than those seen.
func (s *server) awaitListeners(req *guestproto.ListenersRequest) (any, error) {
	for {
		found, err := listeners()
		if err != nil {
			return nil, err
		}
		if !slices.Equal(found, req.Seen) {
			return guestproto.ListenersReply{Listeners: found}, nil
		}
		time.Sleep(listenersInterval)
	}
}

// The states of a socket that takes connections, or packets from everybody
// (net/tcp_states.h).
const (
	tcpListen = "0A"
	tcpClose  = "07"
)

// listeners are the sockets of the container's network namespace, which is guestinit's,
// sorted. UDP sockets at ports that the kernel gives to clients are left out.
func listeners() (found []guestproto.Listener, err error) {
	first, last, err := clientPorts()
	if err != nil {
		return nil, err
	}
	for _, table := range []struct{ name, network, state string }{
		{"tcp", "tcp", tcpListen}, {"tcp6", "tcp", tcpListen}, {"udp", "udp", tcpClose}, {"udp6", "udp", tcpClose},
	} {
		f, err := os.Open("/proc/net/" + table.name)
		if errors.Is(err, fs.ErrNotExist) {
			continue // no IPv6
		}
		if err != nil {
			return nil, err
		}
		addresses, err := localAddresses(f, table.state)
		_ = f.Close() // read-only
		if err != nil {
			return nil, fmt.Errorf("/proc/net/%s: %w", table.name, err)
		}
		for _, a := range addresses {
			forClients := table.network == "udp" && first <= a.Port() && a.Port() <= last
			if !forClients && !a.Addr().IsMulticast() {
				found = append(found, guestproto.Listener{Network: table.network, Address: a})
			}
		}
	}
	slices.SortFunc(found, compareListeners)
	found = slices.Compact(found) // SO_REUSEPORT
	return found[:min(len(found), guestproto.MostListeners)], nil
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

// localAddresses reads a table of sockets as /proc/net/tcp has it (proc(5)), and returns
// the local addresses of those in a state.
func localAddresses(table io.Reader, state string) (addresses []netip.AddrPort, err error) {
	lines := bufio.NewScanner(table)
	for lines.Scan() {
		fields := strings.Fields(lines.Text()) // sl, local_address, rem_address, st
		if len(fields) < 4 || fields[3] != state {
			continue
		}
		address, err := parseAddress(fields[1])
		if err != nil {
			return nil, err
		}
		addresses = append(addresses, address)
	}
	return addresses, lines.Err()
}

// parseAddress reads an address of such a table: words of four bytes in the machine's
// order, and a port.
func parseAddress(text string) (netip.AddrPort, error) {
	host, portText, _ := strings.Cut(text, ":")
	raw, err := hex.DecodeString(host)
	if err != nil {
		return netip.AddrPort{}, err
	}
	for i := 0; i+4 <= len(raw); i += 4 {
		binary.BigEndian.PutUint32(raw[i:], binary.NativeEndian.Uint32(raw[i:]))
	}
	address, ok := netip.AddrFromSlice(raw)
	port, err := strconv.ParseUint(portText, 16, 16)
	if err != nil || !ok {
		return netip.AddrPort{}, fmt.Errorf("address %q", text)
	}
	return netip.AddrPortFrom(address.Unmap(), uint16(port)), nil
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
