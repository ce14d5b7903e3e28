package hostnet

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"reflect"
	"regexp"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
)

// The tests build this, every box a network namespace:
//
//	peer           container                      guest
//	+--------+     +------------------------+     +------------+
//	| peer0 ===veth=== eth0 <-filters-> tap =pump= eth0         |
//	| .1, ::1|     | .2, ::2                |     | .2, ::2     |
//	+--------+     +------------------------+     +------------+
//
// The guest's eth0 is a tap as well, with offloads as a guest's driver would
// have them, and the pump copies frames with their virtio-net headers, as QEMU
// does. So both ends are real TCP/IP stacks.
type bench struct {
	t                      *testing.T
	peer, container, guest *os.File
}

const (
	peerIP4, guestIP4 = "10.99.0.1", "10.99.0.2"
	peerIP6, guestIP6 = "fd99::1", "fd99::2"
	benchMTU          = 1400
)

func newNamespace(t *testing.T) *os.File {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root to make network namespaces")
	}
	ns, err := New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	return ns
}

// do runs f in ns and fails the test with its error.
func do(t *testing.T, ns *os.File, f func(h *netlink.Handle) error) {
	t.Helper()
	if err := with(ns, f); err != nil {
		t.Fatal(err)
	}
}

func configure(h *netlink.Handle, name string, cidrs ...string) error {
	link, err := h.LinkByName(name)
	if err != nil {
		return err
	}
	for _, cidr := range cidrs {
		addr := &netlink.Addr{IPNet: mustAddr(cidr)}
		if addr.IP.To4() == nil {
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := h.AddrAdd(link, addr); err != nil {
			return fmt.Errorf("add %s to %s: %w", cidr, name, err)
		}
	}
	return h.LinkSetUp(link)
}

func newBench(t *testing.T, kind string) *bench {
	b := &bench{t: t, peer: newNamespace(t), container: newNamespace(t), guest: newNamespace(t)}
	do(t, b.peer, func(h *netlink.Handle) error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = "peer0", benchMTU
		far := "eth0"
		if kind == "macvlan" {
			far = "parent0"
		}
		if err := h.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: far, PeerMTU: benchMTU}); err != nil {
			return err
		}
		link, err := h.LinkByName(far)
		if err != nil {
			return err
		}
		if kind == "macvlan" {
			if err := h.LinkSetUp(link); err != nil {
				return err
			}
			attrs := netlink.NewLinkAttrs()
			attrs.Name, attrs.ParentIndex, attrs.MTU = "eth0", link.Attrs().Index, benchMTU
			macvlan := &netlink.Macvlan{LinkAttrs: attrs, Mode: netlink.MACVLAN_MODE_BRIDGE}
			if err := h.LinkAdd(macvlan); err != nil {
				return err
			}
			if link, err = h.LinkByName("eth0"); err != nil {
				return err
			}
		}
		if err := h.LinkSetNsFd(link, int(b.container.Fd())); err != nil {
			return err
		}
		return configure(h, "peer0", peerIP4+"/24", peerIP6+"/64")
	})
	do(t, b.container, func(h *netlink.Handle) error {
		return configure(h, "eth0", guestIP4+"/24", guestIP6+"/64")
	})
	return b
}

// boot makes the guest of what Scan says and joins it to the tap.
func (b *bench) boot(tap *Tap) {
	b.t.Helper()
	network, err := Look(b.container)
	if err != nil {
		b.t.Fatal(err)
	}
	if len(network.Interfaces) != 1 {
		b.t.Fatalf("Scan = %+v, want one interface", network)
	}
	nic := network.Interfaces[0]
	var end *Tap
	do(b.t, b.guest, func(h *netlink.Handle) error {
		var err error
		if end, err = makeTap(nil); err != nil {
			return err
		}
		const offloads = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6
		for _, f := range []*os.File{end.File, tap.File} {
			if err := unix.IoctlSetInt(int(f.Fd()), unix.TUNSETOFFLOAD, offloads); err != nil {
				return err
			}
			if err := unix.SetNonblock(int(f.Fd()), true); err != nil { // Fd made it blocking
				return err
			}
		}
		link, err := h.LinkByName(end.Name)
		if err != nil {
			return err
		}
		if err := errors.Join(
			h.LinkSetName(link, nic.Name),
			h.LinkSetHardwareAddr(link, mustMAC(nic.MAC)),
			h.LinkSetMTU(link, nic.MTU),
		); err != nil {
			return err
		}
		return configure(h, nic.Name, nic.Addresses...)
	})
	var pumps sync.WaitGroup
	pump := func(to, from *os.File) {
		frame := make([]byte, 1<<17)
		for {
			n, err := from.Read(frame)
			if err != nil {
				return
			}
			to.Write(frame[:n]) // a frame may always be lost
		}
	}
	// A File on a poller of its own, since those above are blocking to Go.
	a, z := reopen(b.t, tap.File), reopen(b.t, end.File)
	pumps.Go(func() { pump(a, z) })
	pumps.Go(func() { pump(z, a) })
	b.t.Cleanup(func() {
		a.Close()
		z.Close()
		pumps.Wait()
		end.File.Close()
	})
}

func reopen(t *testing.T, f *os.File) *os.File {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err == nil {
		err = unix.SetNonblock(fd, true)
	}
	if err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fd), f.Name())
}

// echo serves one port over TCP and UDP in ns until the test ends.
func echo(t *testing.T, ns *os.File, ip string, port int) {
	t.Helper()
	address := net.JoinHostPort(ip, fmt.Sprint(port))
	var listener net.Listener
	var packets net.PacketConn
	err := in(ns, func() (err error) {
		if listener, err = net.Listen("tcp", address); err != nil {
			return err
		}
		packets, err = net.ListenPacket("udp", address)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close(); packets.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				io.Copy(conn, conn)
				conn.(*net.TCPConn).CloseWrite()
			}()
		}
	}()
	go func() {
		buf := make([]byte, 1<<16)
		for {
			n, from, err := packets.ReadFrom(buf)
			if err != nil {
				return
			}
			packets.WriteTo(buf[:n], from)
		}
	}()
}

// reach sends size bytes to an echo over TCP and a datagram over UDP.
func reach(ns *os.File, ip string, port, size int) error {
	address := net.JoinHostPort(ip, fmt.Sprint(port))
	dial := func(network string) (conn net.Conn, err error) {
		err = in(ns, func() error {
			ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
			defer cancel()
			conn, err = new(net.Dialer).DialContext(ctx, network, address)
			return err
		})
		if err == nil {
			conn.SetDeadline(time.Now().Add(20 * time.Second))
		}
		return conn, err
	}
	conn, err := dial("udp")
	if err != nil {
		return err
	}
	defer conn.Close()
	answer := make([]byte, 64)
	for attempt := 0; ; attempt++ { // a first datagram may be lost to ARP
		conn.SetDeadline(time.Now().Add(time.Second))
		if _, err := conn.Write([]byte("ping")); err != nil {
			return err
		}
		if n, err := conn.Read(answer); err == nil && string(answer[:n]) == "ping" {
			break
		} else if attempt == 3 {
			return fmt.Errorf("datagram: %q, %w", answer[:n], err)
		}
	}

	tcp, err := dial("tcp")
	if err != nil {
		return err
	}
	defer tcp.Close()
	sent := bytes.Repeat([]byte("0123456789abcdef"), size/16)
	go func() {
		tcp.Write(sent)
		tcp.(*net.TCPConn).CloseWrite()
	}()
	got, err := io.ReadAll(tcp)
	if err != nil || sha256.Sum256(got) != sha256.Sum256(sent) {
		return fmt.Errorf("%d of %d bytes came back: %w", len(got), len(sent), err)
	}
	return nil
}

func TestAttach(t *testing.T) {
	for name, tc := range map[string]struct {
		kind    string
		qdisc   netlink.Qdisc // there before
		resolve bool
		left    string // kind of ingress qdisc after Detach
	}{
		"veth":                 {kind: "veth"},
		"macvlan":              {kind: "macvlan"},
		"ingress qdisc before": {kind: "veth", qdisc: &netlink.Ingress{}},
		"clsact qdisc before":  {kind: "veth", qdisc: &netlink.Clsact{}, left: "clsact"},
		"with host resolver":   {kind: "veth", resolve: true},
		"macvlan and resolver": {kind: "macvlan", resolve: true},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, tc.kind)
			if tc.qdisc != nil {
				do(t, b.container, func(h *netlink.Handle) error {
					eth0, err := h.LinkByName("eth0")
					if err != nil {
						return err
					}
					*tc.qdisc.Attrs() = netlink.QdiscAttrs{LinkIndex: eth0.Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_INGRESS}
					return h.QdiscAdd(tc.qdisc)
				})
			}
			before, err := Look(b.container)
			if err != nil {
				t.Fatal(err)
			}
			tap, err := Attach(b.container, "eth0", Options{HostResolver: tc.resolve})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { tap.File.Close() })
			if after, err := Look(b.container); err != nil || !reflect.DeepEqual(after, before) {
				t.Errorf("Look after Attach = %+v, %v, want as before: %+v", after, err, before)
			}
			b.boot(tap)

			for _, ip := range []string{peerIP4, peerIP6} {
				echo(t, b.peer, ip, 53)
			}
			for _, ip := range []string{guestIP4, guestIP6} {
				echo(t, b.guest, ip, 80)
			}
			const size = 8 << 20
			var wg sync.WaitGroup
			check := func(what string, ns *os.File, ip string, port int) {
				wg.Go(func() {
					if err := reach(ns, ip, port, size); err != nil {
						t.Errorf("%s, %s: %v", what, ip, err)
					}
				})
			}
			check("peer to guest", b.peer, guestIP4, 80)
			check("peer to guest", b.peer, guestIP6, 80)
			check("guest to peer", b.guest, peerIP4, 53)
			check("guest to peer", b.guest, peerIP6, 53)
			if tc.resolve {
				check("namespace's stack to peer", b.container, peerIP4, 53)
				check("namespace's stack to peer", b.container, peerIP6, 53)
			}
			wg.Wait()
			if !tc.resolve {
				if err := reach(b.container, peerIP4, 53, 1600); err == nil {
					t.Error("the namespace's stack is still served")
				}
			}

			for range 2 {
				if err := Detach(b.container, "eth0", ""); err != nil {
					t.Error(err)
				}
			}
			do(t, b.container, func(h *netlink.Handle) error {
				eth0, err := h.LinkByName("eth0")
				if err != nil {
					return err
				}
				if kind, err := ingressKind(h, eth0); err != nil || kind != tc.left {
					t.Errorf("ingress qdisc after Detach = %q, %v, want %q", kind, err, tc.left)
				}
				if fs, err := h.FilterList(eth0, netlink.HANDLE_MIN_INGRESS); tc.left != "" && (err != nil || len(fs) > 0) {
					t.Errorf("filters after Detach = %v, %v", fs, err)
				}
				return nil
			})
			if err := reach(b.container, peerIP4, 53, 1600); err != nil {
				t.Errorf("namespace's stack after Detach: %v", err)
			}
		})
	}
}

// What the guest must hear first: a peer's ARP request, and nothing of the
// namespace's own.
func TestTapHearsPeerOnly(t *testing.T) {
	b := newBench(t, "veth")
	tap, err := Attach(b.container, "eth0", Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer tap.File.Close()
	var tapMAC net.HardwareAddr
	do(t, b.container, func(h *netlink.Handle) error {
		link, err := h.LinkByName(tap.Name)
		if err != nil {
			return err
		}
		tapMAC = link.Attrs().HardwareAddr
		if link.Attrs().MTU != benchMTU {
			t.Errorf("MTU of the tap = %d, want %d", link.Attrs().MTU, benchMTU)
		}
		if addrs, err := h.AddrList(link, netlink.FAMILY_ALL); err != nil || len(addrs) > 0 {
			t.Errorf("addresses of the tap = %v, %v, want none", addrs, err)
		}
		return nil
	})
	go reach(b.peer, guestIP4, 80, 16)
	tap.File.SetReadDeadline(time.Now().Add(5 * time.Second))
	const vnetHeader = 10
	frame := make([]byte, 2048)
	for {
		n, err := tap.File.Read(frame)
		if err != nil {
			t.Fatalf("no ARP request for the guest: %v", err)
		}
		f := frame[vnetHeader:n]
		if bytes.Equal(f[12:14], []byte{8, 6}) && bytes.Equal(f[38:42], net.ParseIP(guestIP4).To4()) {
			break
		}
		if bytes.Equal(f[6:12], tapMAC) {
			t.Errorf("frame of the namespace's own: %x", f)
		}
	}
	tap.File.Close()
	do(t, b.container, func(h *netlink.Handle) error {
		if _, err := h.LinkByName(tap.Name); !errors.As(err, &netlink.LinkNotFoundError{}) {
			t.Errorf("tap after its last descriptor = %v, want none", err)
		}
		return nil
	})
	if err := Detach(b.container, "eth0", ""); err != nil {
		t.Errorf("Detach without tap: %v", err)
	}
	if err := Detach(b.container, "gone0", ""); err != nil {
		t.Errorf("Detach without link: %v", err)
	}
	misread := regexp.MustCompile(`(?i)not found|no such file|not permitted|permission denied`)
	if _, err := Attach(b.container, "gone0", Options{}); err == nil || misread.MatchString(err.Error()) {
		t.Errorf("Attach to a link that is not there = %v", err)
	}
	// What is no tun device and no kernel parameter is refused.
	other, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if _, err := Attach(b.container, "eth0", Options{Tun: other}); !errors.Is(err, unix.ENOTTY) || misread.MatchString(err.Error()) {
		t.Errorf("Attach with another device = %v", err)
	}
	if _, err := Attach(b.container, "eth0", Options{PortRange: other, HostResolver: true}); !errors.Is(err, unix.EBADF) || misread.MatchString(err.Error()) {
		t.Errorf("Attach with a file that cannot be written = %v", err)
	}
}

func TestScanReal(t *testing.T) {
	b := newBench(t, "veth")
	want := guestproto.Network{Interfaces: []guestproto.Interface{{
		Name: "eth0", MTU: benchMTU, Addresses: []string{guestIP4 + "/24", "10.98.0.5/32", guestIP6 + "/64"},
	}}}
	do(t, b.container, func(h *netlink.Handle) error {
		eth0, err := h.LinkByName("eth0")
		if err != nil {
			return err
		}
		want.Interfaces[0].MAC = eth0.Attrs().HardwareAddr.String()
		index := eth0.Attrs().Index
		return errors.Join(
			h.AddrAdd(eth0, &netlink.Addr{IPNet: mustAddr("10.98.0.5/32"), Peer: mustAddr("10.98.0.1/32")}),
			h.RouteAdd(&netlink.Route{LinkIndex: index, Gw: net.ParseIP(peerIP4)}),
			h.RouteAdd(&netlink.Route{LinkIndex: index, Dst: mustAddr("169.254.1.1/32"), Scope: netlink.SCOPE_LINK}),
			h.RouteAdd(&netlink.Route{LinkIndex: index, Gw: net.ParseIP(peerIP6), Priority: 77}),
			h.NeighAdd(&netlink.Neigh{LinkIndex: index, IP: net.ParseIP("169.254.1.1"), State: netlink.NUD_PERMANENT, HardwareAddr: mustMAC("ee:ee:ee:ee:ee:ee")}),
		)
	})
	want.Routes = []guestproto.Route{
		{Interface: "eth0", Dst: "10.98.0.1/32", Source: "10.98.0.5", Family: 4, Scope: unix.RT_SCOPE_LINK, Protocol: unix.RTPROT_KERNEL},
		{Interface: "eth0", Dst: "169.254.1.1/32", Family: 4, Scope: unix.RT_SCOPE_LINK, Protocol: unix.RTPROT_BOOT},
		{Interface: "eth0", Gateway: peerIP4, Family: 4, Protocol: unix.RTPROT_BOOT},
		{Interface: "eth0", Gateway: peerIP6, Family: 6, Protocol: unix.RTPROT_BOOT, Metric: 77},
	}
	want.Neighbours = []guestproto.Neighbour{{Interface: "eth0", IP: "169.254.1.1", MAC: "ee:ee:ee:ee:ee:ee"}}
	got, err := Look(b.container)
	if err != nil || !reflect.DeepEqual(got.Network, want) {
		t.Errorf("Look =\n%+v, %v, want\n%+v", got, err, want)
	}
}

// One VM holds a link at a time.
func TestOneOwner(t *testing.T) {
	b := newBench(t, "veth")
	pause, err := Attach(b.container, "eth0", Options{Owner: "pause"})
	if err != nil {
		t.Fatal(err)
	}
	defer pause.File.Close()
	const want = "attach interface eth0: it belongs to the VM of container pause already, and two VMs cannot share a network namespace"
	if _, err := Attach(b.container, "eth0", Options{Owner: "second"}); err == nil || err.Error() != want {
		t.Errorf("second Attach = %v, want %s", err, want)
	}
	if err := Detach(b.container, "eth0", "second"); err != nil { // as of a create that has failed
		t.Error(err)
	}
	wantWay(t, b.container, "127.0.0.1", pause)
	wantWay(t, b.container, guestIP4, pause)
	wantHolder := func(want string) {
		t.Helper()
		do(t, b.container, func(h *netlink.Handle) error {
			link, err := h.LinkByName("eth0")
			if err != nil {
				return err
			}
			tap, err := holder(h, link)
			if err != nil || (tap == nil) != (want == "") || tap != nil && tap.Attrs().Alias != want {
				t.Errorf("holder = %v, %v, want %q", tap, err, want)
			}
			return nil
		})
	}
	wantHolder("pause")
	pause.File.Close()
	wantHolder("")
	if err := Detach(b.container, "eth0", "pause"); err != nil {
		t.Error(err)
	}
}

// A namespace is given back whatever its links have become since: another name, no address.
func TestRestore(t *testing.T) {
	b := newBench(t, "veth")
	tap, err := Attach(b.container, "eth0", Options{Owner: "c"})
	if err != nil {
		t.Fatal(err)
	}
	defer tap.File.Close()
	kind := func() (kind string) {
		t.Helper()
		do(t, b.container, func(h *netlink.Handle) error {
			link, err := h.LinkByName("other0")
			if err == nil {
				kind, err = ingressKind(h, link)
			}
			return err
		})
		return kind
	}
	do(t, b.container, func(h *netlink.Handle) error {
		link, err := h.LinkByName("eth0")
		if err != nil {
			return err
		}
		addresses, err := h.AddrList(link, netlink.FAMILY_ALL)
		if err = errors.Join(err, h.LinkSetDown(link), h.LinkSetName(link, "other0")); err != nil {
			return err
		}
		for _, a := range addresses {
			a.Label = ""
			if err := h.AddrDel(link, &a); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
				return err
			}
		}
		return nil
	})
	if err := Restore(b.container, "another"); err != nil || kind() != "ingress" {
		t.Errorf("Restore for another owner = %v, qdisc %q, want the link left alone", err, kind())
	}
	for range 2 {
		if err := Restore(b.container, "c"); err != nil || kind() != "" {
			t.Errorf("Restore = %v, qdisc %q, want none", err, kind())
		}
	}
}
