package hostnet

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
)

// know makes the guest find back to clients in the namespace, as guestinit does.
func (b *bench) know(tap *Tap) {
	b.t.Helper()
	do(b.t, b.guest, func(h *netlink.Handle) error {
		eth0, err := h.LinkByName("eth0")
		if err != nil {
			return err
		}
		if err := os.WriteFile("/proc/sys/net/ipv4/conf/eth0/route_localnet", []byte("1"), 0); err != nil {
			return err
		}
		for _, r := range tap.Routes {
			route := &netlink.Route{LinkIndex: eth0.Attrs().Index, Dst: mustAddr(r.Dst), Src: net.ParseIP(r.Source), Scope: netlink.Scope(r.Scope)}
			if r.Loopback {
				route.Table = unix.RT_TABLE_LOCAL
			}
			if err := h.RouteAdd(route); err != nil {
				return err
			}
		}
		for _, n := range tap.Neighbours {
			if err := h.NeighAdd(&netlink.Neigh{LinkIndex: eth0.Attrs().Index, IP: net.ParseIP(n.IP), State: netlink.NUD_PERMANENT, HardwareAddr: mustMAC(n.MAC)}); err != nil {
				return err
			}
		}
		return nil
	})
}

// attachLocal makes a bench whose guest knows its clients.
func attachLocal(t *testing.T, opts Options) (*bench, *Tap) {
	t.Helper()
	b := newBench(t, "veth")
	tap, err := Attach(b.container, "eth0", opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tap.File.Close() })
	b.boot(tap)
	b.know(tap)
	return b, tap
}

// dialIn dials from ns, within a second.
func dialIn(ns *os.File, network, address string) (conn net.Conn, err error) {
	err = in(ns, func() error {
		conn, err = net.DialTimeout(network, address, time.Second)
		return err
	})
	return conn, err
}

// greeting is a datagram that is answered, and nothing besides.
const greeting = "greeting"

// listenIn opens a TCP and a UDP socket in ns. What they get is in the channel.
func listenIn(t *testing.T, ns *os.File, address string) <-chan string {
	t.Helper()
	got := make(chan string, 100)
	err := in(ns, func() error {
		l, err := net.Listen("tcp4", address)
		if err != nil {
			return err
		}
		p, err := net.ListenPacket("udp4", address)
		if err != nil {
			return errors.Join(err, l.Close())
		}
		t.Cleanup(func() { l.Close(); p.Close() })
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				got <- "a connection from " + conn.RemoteAddr().String()
				conn.Close()
			}
		}()
		go func() {
			buf := make([]byte, 2048)
			for {
				n, from, err := p.ReadFrom(buf)
				if err != nil {
					return
				}
				if text := string(buf[:n]); text != greeting {
					got <- fmt.Sprintf("%q from %s", text, from)
				}
				p.WriteTo([]byte("answer"), from)
			}
		}()
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func rulesOf(t *testing.T, ns *os.File) (rules []string) {
	t.Helper()
	do(t, ns, func(h *netlink.Handle) error {
		all, err := h.RuleList(netlink.FAMILY_V4)
		for _, r := range all {
			text := fmt.Sprintf("%d:", max(r.Priority, 0))
			if r.Src != nil {
				text += " from " + r.Src.String()
			}
			if r.Dst != nil {
				text += " to " + r.Dst.String()
			}
			if r.IifName != "" {
				text += " iif " + r.IifName
			}
			rules = append(rules, fmt.Sprintf("%s lookup %d", text, r.Table))
		}
		return err
	})
	return rules
}

func wantRules(t *testing.T, ns *os.File, addresses ...string) {
	t.Helper()
	want := []string{"0: lookup 255", "32766: lookup 254", "32767: lookup 253"}
	if addresses != nil {
		want = append([]string{"0: from 127.0.0.0/9 lookup 255"}, want...)
		want[1] = "1: lookup 255"
		for _, a := range slices.Backward(addresses) {
			want = slices.Insert(want, 1, "0: to "+a+"/32 iif lo lookup 2817")
		}
	}
	if got := rulesOf(t, ns); !slices.Equal(got, want) {
		t.Errorf("rules:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// Programs in the namespace reach the guest at 127.0.0.1, whatever of its own addresses a
// server there listens on, and at the link's address. Other loopback addresses are the
// namespace's. Afterwards all is as before.
func TestLocalClients(t *testing.T) {
	for name, opts := range map[string]Options{"": {}, "with host resolver": {HostResolver: true}} {
		t.Run(name, func(t *testing.T) {
			b, _ := attachLocal(t, opts)
			wantRules(t, b.container, "127.0.0.1", guestIP4)
			echo(t, b.guest, "127.0.0.1", 80)
			echo(t, b.guest, "0.0.0.0", 81)
			echo(t, b.container, "127.0.0.11", 53)
			echo(t, b.peer, peerIP4, 53)
			const whole = 64 << 20
			for what, err := range map[string]error{
				"what listens on 127.0.0.1":      reach(b.container, "127.0.0.1", 80, whole),
				"what listens on 0.0.0.0":        reach(b.container, "127.0.0.1", 81, 1<<20),
				"the link's address":             reach(b.container, guestIP4, 81, 1<<20),
				"the namespace's own 127.0.0.11": reach(b.container, "127.0.0.11", 53, 1<<20),
				"the guest's own 127.0.0.1":      reach(b.guest, "127.0.0.1", 80, 1<<20),
				"the guest from its peer":        reach(b.peer, guestIP4, 81, 1<<20),
				"the peer from the guest":        reach(b.guest, peerIP4, 53, 1<<20),
			} {
				if err != nil {
					t.Errorf("%s: %v", what, err)
				}
			}
			if opts.HostResolver {
				if err := reach(b.container, peerIP4, 53, 1<<20); err != nil {
					t.Errorf("the peer from the namespace: %v", err)
				}
			}

			began := time.Now()
			for _, address := range []string{"127.0.0.1:9", guestIP4 + ":9"} {
				_, err := dialIn(b.container, "tcp4", address)
				if err := refused(err); err != nil {
					t.Errorf("TCP to the closed port %s: %v", address, err)
				}
				conn, err := dialIn(b.container, "udp4", address)
				if err != nil {
					t.Fatal(err)
				}
				conn.SetDeadline(time.Now().Add(time.Second))
				conn.Write([]byte("anybody"))
				_, err = conn.Read(make([]byte, 10))
				if err := refused(err); err != nil {
					t.Errorf("UDP to the closed port %s: %v", address, err)
				}
				conn.Close()
			}
			if took := time.Since(began); took > 500*time.Millisecond {
				t.Errorf("closed ports refuse after %s", took)
			}

			var wg sync.WaitGroup
			for range 50 {
				wg.Go(func() {
					if err := reach(b.container, "127.0.0.1", 80, 64<<10); err != nil {
						t.Errorf("one of fifty: %v", err)
					}
				})
			}
			wg.Wait()

			if err := Detach(b.container, "eth0", ""); err != nil {
				t.Fatal(err)
			}
			wantRules(t, b.container)
			for _, ip := range []string{guestIP4, "127.0.0.1"} {
				echo(t, b.container, ip, 82)
				if err := reach(b.container, ip, 82, 16); err != nil {
					t.Errorf("the namespace's own %s after Detach: %v", ip, err)
				}
			}
		})
	}
}

func refused(err error) error {
	if errors.Is(err, unix.ECONNREFUSED) {
		return nil
	}
	return fmt.Errorf("%w, want it refused", err)
}

// A server sees clients at 127.0.0.1 come from a loopback address, and those at the
// link's address from none.
func TestLocalClientsAddresses(t *testing.T) {
	b, _ := attachLocal(t, Options{})
	got := listenIn(t, b.guest, "0.0.0.0:80")
	for _, tc := range []struct {
		address string
		peers   *net.IPNet
	}{{"127.0.0.1:80", loopbackPeers}, {guestIP4 + ":80", linkPeers}} {
		conn, err := dialIn(b.container, "tcp4", tc.address)
		if err != nil {
			t.Fatal(err)
		}
		conn.Close()
		from := netip.MustParseAddrPort(strings.TrimPrefix(<-got, "a connection from ")).Addr()
		if !tc.peers.Contains(from.AsSlice()) {
			t.Errorf("a client of %s is at %s, want one of %s", tc.address, from, tc.peers)
		}
	}
}

// A neighbour of the link that writes frames as it likes.
type neighbour struct {
	*bench
	socket, index int
	own, to       net.HardwareAddr
	fences        int
}

func newNeighbour(b *bench) *neighbour {
	b.t.Helper()
	n := &neighbour{bench: b}
	do(b.t, b.peer, func(h *netlink.Handle) error {
		peer0, err := h.LinkByName("peer0")
		if err != nil {
			return err
		}
		n.index, n.own = peer0.Attrs().Index, peer0.Attrs().HardwareAddr
		all := int(binary.BigEndian.Uint16([]byte{0, unix.ETH_P_ALL}))<<8 | unix.ETH_P_ALL>>8
		if n.socket, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, all); err != nil {
			return err
		}
		b.t.Cleanup(func() { unix.Close(n.socket) })
		return errors.Join(
			unix.Bind(n.socket, &unix.SockaddrLinklayer{Protocol: uint16(all), Ifindex: n.index}),
			unix.SetsockoptTimeval(n.socket, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 3}),
		)
	})
	for _, ns := range []*os.File{b.guest, b.container} {
		do(b.t, ns, func(h *netlink.Handle) error {
			eth0, err := h.LinkByName("eth0")
			if err != nil {
				return err
			}
			n.to = eth0.Attrs().HardwareAddr
			return h.NeighAdd(&netlink.Neigh{LinkIndex: eth0.Attrs().Index, IP: net.ParseIP(peerIP4), State: netlink.NUD_PERMANENT, HardwareAddr: n.own})
		})
	}
	do(b.t, b.peer, func(h *netlink.Handle) error { // what its stack says of the answers asks for nothing
		return h.NeighAdd(&netlink.Neigh{LinkIndex: n.index, IP: net.ParseIP(guestIP4), State: netlink.NUD_PERMANENT, HardwareAddr: n.to})
	})
	return n
}

// send sends frames and returns those of IPv4, ARP and VLANs that come back before the
// answer to a datagram that follows.
func (n *neighbour) send(frames ...[]byte) (answers [][]byte) {
	n.t.Helper()
	n.fences++
	port := uint16(30000 + n.fences%10000)
	end := n.ethernet(n.to, unix.ETH_P_IP, ipv4Packet(peerIP4, guestIP4, unix.IPPROTO_UDP, datagram(port, 80, greeting)))
	for _, f := range append(frames, end) {
		if err := unix.Sendto(n.socket, f, 0, &unix.SockaddrLinklayer{Ifindex: n.index}); err != nil {
			n.t.Fatal(err)
		}
	}
	buf := make([]byte, 2048)
	for {
		size, from, err := unix.Recvfrom(n.socket, buf, 0)
		if err != nil {
			n.t.Fatalf("no answer to an ordinary datagram: %v", err)
		}
		f := bytes.Clone(buf[:size])
		if from.(*unix.SockaddrLinklayer).Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		switch binary.BigEndian.Uint16(f[12:]) {
		case unix.ETH_P_IP:
			if f[14+9] == unix.IPPROTO_UDP && binary.BigEndian.Uint16(f[14+20:]) == 80 && binary.BigEndian.Uint16(f[14+22:]) == port {
				return answers
			}
			answers = append(answers, f)
		case unix.ETH_P_ARP, unix.ETH_P_8021Q, unix.ETH_P_8021AD:
			answers = append(answers, f)
		}
	}
}

func (n *neighbour) ethernet(to net.HardwareAddr, protocol uint16, payload []byte) []byte {
	return slices.Concat([]byte(to), []byte(n.own), binary.BigEndian.AppendUint16(nil, protocol), payload)
}

// wrapped are the frames in which a stack without VLANs finds that packet.
func (n *neighbour) wrapped(protocol uint16, packet []byte) map[string][]byte {
	tagged := func(outer uint16, protocol uint16, packet []byte) (uint16, []byte) {
		return outer, slices.Concat([]byte{0, 0}, binary.BigEndian.AppendUint16(nil, protocol), packet)
	}
	frames := map[string][]byte{
		"plain":     n.ethernet(n.to, protocol, packet),
		"broadcast": n.ethernet(mustMAC("ff:ff:ff:ff:ff:ff"), protocol, packet),
	}
	for name, outer := range map[string]uint16{"802.1Q": unix.ETH_P_8021Q, "802.1ad": unix.ETH_P_8021AD} {
		once, inner := tagged(outer, protocol, packet)
		frames[name] = n.ethernet(n.to, once, inner)
		twice, inner := tagged(unix.ETH_P_8021Q, once, inner)
		frames["802.1Q, "+name] = n.ethernet(n.to, twice, inner)
		thrice, inner := tagged(unix.ETH_P_8021AD, twice, inner)
		frames["802.1ad, 802.1Q, "+name] = n.ethernet(n.to, thrice, inner)
	}
	return frames
}

func ipv4Packet(from, to string, protocol byte, payload []byte) []byte {
	p := []byte{0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0}
	p = slices.Concat(p, []byte(net.ParseIP(from).To4()), []byte(net.ParseIP(to).To4()), payload)
	binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
	binary.BigEndian.PutUint16(p[10:], checksum(p[:20]))
	if protocol == unix.IPPROTO_TCP { // UDP does without
		pseudo := slices.Concat(p[12:20], []byte{0, protocol, 0, byte(len(payload))}, payload)
		binary.BigEndian.PutUint16(p[20+16:], checksum(pseudo))
	}
	return p
}

// checksum is that of RFC 1071, of an even number of bytes.
func checksum(p []byte) uint16 {
	var sum uint32
	for ; len(p) > 1; p = p[2:] {
		sum += uint32(binary.BigEndian.Uint16(p))
	}
	for sum>>16 > 0 {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

func datagram(from, to uint16, text string) []byte {
	p := binary.BigEndian.AppendUint16(nil, from)
	p = binary.BigEndian.AppendUint16(p, to)
	p = binary.BigEndian.AppendUint16(p, uint16(8+len(text)))
	return slices.Concat(p, []byte{0, 0}, []byte(text))
}

func segment(from, to uint16, flags byte) []byte {
	p := binary.BigEndian.AppendUint16(nil, from)
	p = binary.BigEndian.AppendUint16(p, to)
	return append(p, 0, 0, 0, 1, 0, 0, 0, 0, 5<<4, flags, 0x20, 0, 0, 0, 0, 0)
}

func (n *neighbour) arp(from, to string) []byte {
	return n.ethernet(mustMAC("ff:ff:ff:ff:ff:ff"), unix.ETH_P_ARP, slices.Concat(
		[]byte{0, 1, 8, 0, 6, 4, 0, 1}, []byte(n.own), []byte(net.ParseIP(from).To4()), make([]byte, 6), []byte(net.ParseIP(to).To4())))
}

// Neighbours of the link that send frames from and to addresses between the namespace
// and the guest reach neither, and get no answer, whatever the frames are wrapped in.
func TestNeighboursStayOut(t *testing.T) {
	for name, opts := range map[string]Options{"": {}, "with host resolver": {HostResolver: true}} {
		t.Run(name, func(t *testing.T) {
			b, tap := attachLocal(t, opts)
			// The second port is one of those that are the resolver's.
			ports := []uint16{80, 62000}
			heard := map[string]<-chan string{}
			for side, ns := range map[string]*os.File{"guest": b.guest, "namespace": b.container} {
				// As on Docker's hosts. What is for somebody else is sent on then.
				if err := in(ns, func() error { return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0) }); err != nil {
					t.Fatal(err)
				}
				for _, port := range ports {
					heard[fmt.Sprint(side, " ", port)] = listenIn(t, ns, fmt.Sprint("0.0.0.0:", port))
				}
			}
			n := newNeighbour(b)
			ordinary := ipv4Packet(peerIP4, guestIP4, unix.IPPROTO_UDP, datagram(9, 80, greeting))
			for _, wrapping := range []string{"plain", "802.1Q", "802.1ad"} {
				if answers := n.send(n.wrapped(unix.ETH_P_IP, ordinary)[wrapping]); len(answers) != 1 {
					t.Fatalf("an ordinary datagram, %s, is answered by % x", wrapping, answers)
				}
			}
			if answers := n.send(n.arp(peerIP4, guestIP4)); len(answers) != 1 {
				t.Fatalf("an ordinary ARP request is answered by % x", answers)
			}

			peer, linkPeer := strings.TrimSuffix(tap.Routes[0].Dst, "/32"), strings.TrimSuffix(tap.Routes[1].Dst, "/32")
			ways := [][2]string{
				{peerIP4, "127.0.0.1"},
				{peerIP4, "127.0.0.11"},
				{peerIP4, peer},
				{"127.0.0.1", guestIP4},
				{peer, guestIP4},
				{peer, "127.0.0.1"},
				{"127.0.0.1", peer},
				{"127.0.0.1", "127.0.0.1"},
				{"127.0.0.1", peerIP4},
				{linkPeer, "127.0.0.1"},
			}
			plainly := [][2]string{{peerIP4, linkPeer}, {peerIP4, "169.254.254.99"}, {guestIP4, linkPeer}, {linkPeer, guestIP4}, {"169.254.254.99", guestIP4}}
			for _, way := range slices.Concat(ways, plainly) {
				for _, port := range ports {
					for what, packet := range map[string][]byte{
						"datagram": ipv4Packet(way[0], way[1], unix.IPPROTO_UDP, datagram(9, port, "intrusion")),
						"SYN":      ipv4Packet(way[0], way[1], unix.IPPROTO_TCP, segment(9, port, 0x02)),
						"ACK":      ipv4Packet(way[0], way[1], unix.IPPROTO_TCP, segment(9, port, 0x10)),
						"ping":     ipv4Packet(way[0], way[1], unix.IPPROTO_ICMP, []byte{8, 0, 0xf7, 0xff, 0, 0, 0, 0}),
					} {
						if answers := n.send(slices.Collect(maps.Values(n.wrapped(unix.ETH_P_IP, packet)))...); len(answers) > 0 {
							t.Errorf("%s from %s to %s, port %d: answered by % x", what, way[0], way[1], port, answers)
						}
					}
				}
				if answers := n.send(n.arp(way[0], way[1])); len(answers) > 0 {
					t.Errorf("ARP request of %s for %s: answered by % x", way[0], way[1], answers)
				}
			}

			for _, port := range ports { // each hears this last
				for ns, ip := range map[*os.File]string{b.guest: guestIP4, b.container: "127.0.0.2"} {
					conn, err := dialIn(ns, "udp4", fmt.Sprint(ip, ":", port))
					if err != nil {
						t.Fatal(err)
					}
					conn.Write([]byte("the end"))
					conn.Close()
				}
			}
			for who, got := range heard {
				for what := range got {
					if strings.HasPrefix(what, `"the end"`) {
						break
					}
					t.Errorf("%s hears %s", who, what)
				}
			}
		})
	}
}

// The guest cannot begin a connection to the namespace's stack, reaches no loopback
// address there, and what it sends from a loopback address does not get onto the link.
func TestGuestStaysOut(t *testing.T) {
	b, tap := attachLocal(t, Options{HostResolver: true})
	heard := map[string]<-chan string{}
	for _, address := range []string{"127.0.0.1:80", "127.0.0.11:80", "0.0.0.0:81"} {
		heard[address] = listenIn(t, b.container, address)
	}
	outside := listenIn(t, b.peer, "0.0.0.0:80")
	peer := strings.TrimSuffix(tap.Routes[0].Dst, "/32")
	linkPeer := strings.TrimSuffix(tap.Routes[1].Dst, "/32")
	for _, address := range []string{peer + ":81", linkPeer + ":81", peer + ":80"} {
		if conn, err := dialIn(b.guest, "tcp4", address); err == nil {
			t.Errorf("the guest has connected to %s of the namespace", address)
			conn.Close()
		}
	}
	var guestMAC net.HardwareAddr
	var guestIndex int
	do(t, b.guest, func(h *netlink.Handle) error {
		eth0, err := h.LinkByName("eth0")
		if err == nil {
			guestMAC, guestIndex = eth0.Attrs().HardwareAddr, eth0.Attrs().Index
		}
		return err
	})
	tapMAC, peerMAC := mustMAC(tap.Neighbours[0].MAC), net.HardwareAddr{}
	do(t, b.peer, func(h *netlink.Handle) error {
		peer0, err := h.LinkByName("peer0")
		if err == nil {
			peerMAC = peer0.Attrs().HardwareAddr
			err = os.WriteFile("/proc/sys/net/ipv4/conf/peer0/route_localnet", []byte("1"), 0) // it takes anything
		}
		return err
	})
	var socket int
	if err := in(b.guest, func() (err error) {
		socket, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(socket)
	write := func(to net.HardwareAddr, packet []byte) {
		t.Helper()
		if err := unix.Sendto(socket, slices.Concat([]byte(to), []byte(guestMAC), []byte{8, 0}, packet), 0, &unix.SockaddrLinklayer{Ifindex: guestIndex}); err != nil {
			t.Fatal(err)
		}
	}
	for _, way := range [][2]string{
		{guestIP4, "127.0.0.1"},
		{guestIP4, "127.0.0.11"},
		{"127.0.0.1", "127.0.0.11"},
		{"127.0.0.1", "127.0.0.1"},
		{"127.0.0.1", peerIP4},
		{peer, peerIP4},
		{guestIP4, "127.254.254.99"},
	} {
		for _, to := range []net.HardwareAddr{tapMAC, peerMAC, mustMAC("ff:ff:ff:ff:ff:ff"), guestMAC, make(net.HardwareAddr, 6)} {
			write(to, ipv4Packet(way[0], way[1], unix.IPPROTO_UDP, datagram(9, 80, "intrusion")))
		}
	}
	write(peerMAC, ipv4Packet(guestIP4, peerIP4, unix.IPPROTO_UDP, datagram(9, 80, "the end")))
	if what := <-outside; !strings.HasPrefix(what, `"the end"`) {
		t.Errorf("the peer hears %s", what)
	}
	// What the guest wrote before the end has been judged by now.
	for address, got := range heard {
		if len(got) > 0 {
			t.Errorf("%s in the namespace hears %s", address, <-got)
		}
	}
}

// What leads to the guest follows the link's addresses, and the links.
func TestLocalClientsFollow(t *testing.T) {
	b, tap := attachLocal(t, Options{})
	const second = "10.99.0.22"
	do(t, b.guest, func(h *netlink.Handle) error { return configure(h, "eth0", second+"/24") })
	echo(t, b.guest, second, 80)
	inContainer := func(f func(h *netlink.Handle, eth0 netlink.Link) error) {
		t.Helper()
		do(t, b.container, func(h *netlink.Handle) error {
			eth0, err := h.LinkByName("eth0")
			if err != nil {
				return err
			}
			return f(h, eth0)
		})
	}
	update := func() {
		t.Helper()
		if err := errors.Join(tap.Update(b.container, "eth0", Options{}), Prune(b.container, []string{"eth0", "gone0"})); err != nil {
			t.Fatal(err)
		}
	}
	update()
	wantRules(t, b.container, "127.0.0.1", guestIP4)
	inContainer(func(h *netlink.Handle, eth0 netlink.Link) error {
		return h.AddrAdd(eth0, &netlink.Addr{IPNet: mustAddr(second + "/24")})
	})
	update()
	wantRules(t, b.container, "127.0.0.1", guestIP4, second)
	if err := reach(b.container, second, 80, 1<<16); err != nil {
		t.Errorf("the address that came later: %v", err)
	}
	inContainer(func(h *netlink.Handle, eth0 netlink.Link) error {
		return h.AddrDel(eth0, &netlink.Addr{IPNet: mustAddr(second + "/24")})
	})
	update()
	wantRules(t, b.container, "127.0.0.1", guestIP4)
	inContainer(func(h *netlink.Handle, eth0 netlink.Link) error {
		return h.AddrDel(eth0, &netlink.Addr{IPNet: mustAddr(guestIP4 + "/24")})
	})
	update()
	wantRules(t, b.container, "127.0.0.1")
	echo(t, b.guest, "127.0.0.1", 81)
	if err := reach(b.container, "127.0.0.1", 81, 1<<16); err != nil {
		t.Errorf("127.0.0.1 by a link without IPv4: %v", err)
	}
	inContainer(func(h *netlink.Handle, eth0 netlink.Link) error { return h.LinkDel(eth0) })
	if err := Prune(b.container, nil); err != nil {
		t.Error(err)
	}
	wantRules(t, b.container)
	if err := tap.Update(b.container, "eth0", Options{}); err == nil {
		t.Error("Update without link works")
	}
}

// wantWay wants a client of that address to be led through the tap.
func wantWay(t *testing.T, ns *os.File, ip string, want *Tap) {
	t.Helper()
	do(t, ns, func(h *netlink.Handle) error {
		routes, err := h.RouteGet(net.ParseIP(ip))
		if err != nil || len(routes) != 1 || routes[0].LinkIndex != want.index {
			t.Errorf("route to %s = %v, %v, want through %s", ip, routes, err, want.Name)
			return nil
		}
		from := routes[0].Src.String() + "/32"
		if !slices.ContainsFunc(want.Routes, func(r guestproto.Route) bool { return r.Dst == from }) {
			t.Errorf("clients of %s are at %s, and the guest has routes %v", ip, from, want.Routes)
		}
		return nil
	})
}

// 127.0.0.1 leads to the guest as long as there is a link, whichever goes first. Restore
// gives all back, whatever has become of the links.
func TestLocalClientsOfTwoLinks(t *testing.T) {
	for _, first := range []string{"eth0", "eth1"} {
		t.Run(first+" goes", func(t *testing.T) {
			b, tap := attachLocal(t, Options{Owner: "c"})
			do(t, b.container, func(h *netlink.Handle) error {
				attrs := netlink.NewLinkAttrs()
				attrs.Name = "eth1"
				return errors.Join(h.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "far1"}), configure(h, "eth1", "10.98.0.2/24"))
			})
			other, err := Attach(b.container, "eth1", Options{Owner: "c"})
			if err != nil {
				t.Fatal(err)
			}
			defer other.File.Close()
			taps := map[string]*Tap{"eth0": tap, "eth1": other}
			wantRules(t, b.container, "127.0.0.1", guestIP4, "10.98.0.2")
			wantWay(t, b.container, "127.0.0.1", tap)
			if err := errors.Join(Detach(b.container, first, "c"), taps[first].Remove(b.container)); err != nil {
				t.Fatal(err)
			}
			delete(taps, first)
			for name, tap := range taps {
				if err := errors.Join(tap.Update(b.container, name, Options{}), Prune(b.container, []string{name})); err != nil {
					t.Fatal(err)
				}
				wantWay(t, b.container, "127.0.0.1", tap)
				do(t, b.container, func(h *netlink.Handle) error {
					link, err := h.LinkByName(name)
					if err != nil {
						return err
					}
					addresses, err := h.AddrList(link, netlink.FAMILY_V4)
					if err != nil {
						return err
					}
					return errors.Join(h.AddrDel(link, &addresses[0]), h.LinkSetDown(link), h.LinkSetName(link, "other0"))
				})
			}
			if err := Restore(b.container, "another"); err != nil {
				t.Error(err)
			}
			wantRules(t, b.container, "127.0.0.1")
			for range 2 {
				if err := Restore(b.container, "c"); err != nil {
					t.Error(err)
				}
				wantRules(t, b.container)
			}
		})
	}
}
