package hostnet

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
)

// FuzzDNS is what a hostile guest writes for queries. They are read to the byte, and
// answered by their own responses only.
func FuzzDNS(f *testing.F) {
	framed := func(messages ...[]byte) []byte {
		var wire bytes.Buffer
		for _, m := range messages {
			if err := writeDNS(&wire, m); err != nil {
				f.Fatal(err)
			}
		}
		return wire.Bytes()
	}
	f.Add(framed(dnsQuery(1, "\x04name"), dnsQuery(2, "")))
	f.Add(framed(make([]byte, dnsHeader-1)))
	f.Add(framed(dnsQuery(3, strings.Repeat("x", 1<<16-1-dnsHeader)))[:1<<15])
	f.Add([]byte{0})
	f.Fuzz(func(t *testing.T, wire []byte) {
		in := bytes.NewReader(wire)
		var again bytes.Buffer
		for {
			before := in.Len()
			query, err := readDNS(in)
			rest := wire[len(wire)-before:]
			if err != nil {
				if cut := len(rest) < 2 || len(rest)-2 < int(binary.BigEndian.Uint16(rest)); len(rest) > 0 && errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) && !cut {
					t.Errorf("readDNS(% x) = %v", rest, err)
				}
				if again.Len() != len(wire)-before || !bytes.HasPrefix(wire, again.Bytes()) {
					t.Errorf("the messages of % x are written as % x", wire, again.Bytes())
				}
				return
			}
			if len(query) < dnsHeader {
				t.Fatalf("readDNS = % x", query)
			}
			if err := writeDNS(&again, query); err != nil {
				t.Fatal(err)
			}
			response := bytes.Clone(query)
			response[2] |= 0x80
			if !answers(response, query) || answers(response[:dnsHeader-1], query) {
				t.Errorf("answers(% x, % x) = false, or true without a whole header", response, query)
			}
			response[2] &^= 0x80
			if answers(response, query) {
				t.Errorf("the query % x answers % x", response, query)
			}
			response[2] |= 0x80
			response[len(wire)%2] ^= 1
			if answers(response, query) {
				t.Errorf("answers(% x, % x) = true, with another id", response, query)
			}
		}
	})
}

// bytesLeft makes choices of a fuzzer's bytes; after the last of them all are zero.
type bytesLeft []byte

func (b *bytesLeft) next() byte {
	if len(*b) == 0 {
		return 0
	}
	n := (*b)[0]
	*b = (*b)[1:]
	return n
}

// some is a number of things to make.
func (b *bytesLeft) some() int { return int(b.next() % 5) }

func (b *bytesLeft) ip() net.IP {
	switch n := b.next(); n % 8 {
	case 0:
		return nil
	case 1, 2, 3:
		return net.IP{[]byte{10, 127, 224, 169, 0}[b.next()%5], 0, 0, b.next()}
	case 4:
		return net.IPv4(172, 17, 0, b.next()) // in 16 bytes
	case 5:
		return linkLocal(b.mac())
	default:
		return net.IP{[]byte{0xfd, 0xfe, 0xff, 0}[b.next()%4], 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, b.next()}
	}
}

func (b *bytesLeft) ipNet() *net.IPNet {
	ip := b.ip()
	if ip == nil {
		return nil
	}
	bits := 8 * len(ip)
	if ip.To4() != nil {
		ip, bits = ip.To4(), 32
	}
	return &net.IPNet{IP: ip, Mask: net.CIDRMask(int(b.next())%(bits+1), bits)}
}

func (b *bytesLeft) mac() net.HardwareAddr {
	mac := make(net.HardwareAddr, []int{6, 6, 6, 0, 20, 8}[b.next()%6])
	for i := range mac {
		mac[i] = b.next()
	}
	return mac
}

func (b *bytesLeft) index() int { return 1 + int(b.next()%4) }

func (b *bytesLeft) link(index int) netlink.Link {
	attrs := netlink.LinkAttrs{Index: index, Name: []string{"eth", "lo", tapPrefix}[b.next()%3] + string('0'+rune(index)), MTU: int(b.next()) << 4, HardwareAddr: b.mac()}
	if b.next()%8 == 1 {
		attrs.Flags |= net.FlagLoopback
	}
	return &netlink.GenericLink{LinkAttrs: attrs, LinkType: []string{"veth", "tuntap", "wireguard"}[b.next()%3]}
}

func (b *bytesLeft) route() netlink.Route {
	r := netlink.Route{
		LinkIndex: b.index(), Dst: b.ipNet(), Gw: b.ip(), Src: b.ip(), Priority: int(b.next()), Scope: netlink.Scope(b.next()),
		Family: []int{unix.AF_INET, unix.AF_INET6}[b.next()%2], Type: []int{unix.RTN_UNICAST, unix.RTN_UNICAST, unix.RTN_BLACKHOLE}[b.next()%3],
		Protocol: []netlink.RouteProtocol{unix.RTPROT_BOOT, unix.RTPROT_KERNEL}[b.next()%2],
		Flags:    []int{0, unix.RTNH_F_ONLINK, unix.RTM_F_CLONED, unix.RTNH_F_LINKDOWN}[b.next()%4],
	}
	switch b.next() % 4 {
	case 1:
		if ip := b.ip(); ip != nil {
			r.Via = &netlink.Via{AddrFamily: unix.AF_INET6, Addr: ip}
		}
	case 2:
		for range b.some() {
			r.MultiPath = append(r.MultiPath, &netlink.NexthopInfo{LinkIndex: b.index(), Gw: b.ip(), Flags: unix.RTNH_F_ONLINK})
		}
	}
	return r
}

func (b *bytesLeft) snapshot() (s snapshot) {
	for i := range b.some() {
		s.links = append(s.links, b.link(4-i))
	}
	for range b.some() {
		if n := b.ipNet(); n != nil { // the kernel's addresses have one
			s.addresses = append(s.addresses, netlink.Addr{LinkIndex: b.index(), IPNet: n, Flags: int(b.next())})
		}
	}
	for range b.some() {
		s.routes = append(s.routes, b.route())
	}
	for range b.some() {
		s.neighbours = append(s.neighbours, netlink.Neigh{LinkIndex: b.index(), IP: b.ip(), HardwareAddr: b.mac(), State: int(b.next()), Flags: int(b.next() & netlink.NTF_PROXY)})
	}
	return s
}

// FuzzConvert holds what the guest is told of any network to what guestinit can carry
// out: everything parses, and belongs to an interface that the guest has.
func FuzzConvert(f *testing.F) {
	f.Add([]byte{})
	// An interface, an address, a default route, a neighbour.
	f.Add([]byte{1, 0, 100, 0, 2, 66, 172, 17, 0, 2, 0, 0, 1, 4, 2, 16, 3, 0, 1, 3, 0, 4, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 3, 4, 1, 0, 2, 66, 0, 0, 0, 1, 0x80, 0})
	f.Add(bytes.Repeat([]byte{3}, 200))
	f.Add(bytes.Repeat([]byte{4, 1, 6, 2, 66, 3, 0}, 60))
	f.Fuzz(func(t *testing.T, choices []byte) {
		s, same := (*bytesLeft)(&choices), slices.Clone(choices)
		given, untouched := s.snapshot(), (*bytesLeft)(&same).snapshot()
		found := convert(given)
		if !reflect.DeepEqual(given, untouched) {
			t.Errorf("convert changed %+v to %+v", untouched, given)
		}
		for _, err := range found.Refused {
			if !strings.Contains(err.Error(), "is not Ethernet") {
				t.Errorf("convert refuses: %v", err)
			}
		}
		if len(found.Indices) != len(found.Interfaces) {
			t.Errorf("%d indices of %d interfaces", len(found.Indices), len(found.Interfaces))
		}
		checkNetwork(t, found.Network, given)
	})
}

func checkNetwork(t *testing.T, network guestproto.Network, s snapshot) {
	links := map[string]netlink.Link{}
	for _, l := range s.links {
		links[l.Attrs().Name] = l
	}
	has := map[string]bool{}
	for _, i := range network.Interfaces {
		l := links[i.Name]
		if mac, err := net.ParseMAC(i.MAC); l == nil || has[i.Name] || len(mac) != 6 || err != nil || len(i.Addresses) == 0 || i.MTU != l.Attrs().MTU {
			t.Errorf("interface %+v of %+v", i, l)
		} else if l.Attrs().Flags&net.FlagLoopback != 0 || isTap(l) {
			t.Errorf("interface %+v is lo or a tap: %+v", i, l)
		}
		has[i.Name] = true
		for _, a := range i.Addresses {
			if _, _, err := net.ParseCIDR(a); err != nil {
				t.Errorf("interface %+v: %v", i, err)
			}
		}
	}
	good := func(ip string) bool { return ip == "" || net.ParseIP(ip) != nil }
	gateways := false
	for _, r := range network.Routes {
		if _, _, err := net.ParseCIDR(r.Dst); r.Dst != "" && err != nil || !good(r.Gateway) || !good(r.Source) || !has[r.Interface] || r.Family != 4 && r.Family != 6 {
			t.Errorf("route %+v, interfaces %v", r, has)
		}
		if gateways && r.Gateway == "" {
			t.Errorf("route %+v comes after those that may need it", r)
		}
		gateways = gateways || r.Gateway != ""
	}
	for _, n := range network.Neighbours {
		if mac, err := net.ParseMAC(n.MAC); n.IP == "" || !good(n.IP) || len(mac) != 6 || err != nil || !has[n.Interface] {
			t.Errorf("neighbour %+v, interfaces %v", n, has)
		}
	}
}
