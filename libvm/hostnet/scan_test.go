package hostnet

import (
	"errors"
	"net"
	"reflect"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
)

func mustMAC(s string) net.HardwareAddr {
	mac, err := net.ParseMAC(s)
	if err != nil {
		panic(err)
	}
	return mac
}

// mustAddr keeps the host part, unlike net.ParseCIDR's network.
func mustAddr(s string) *net.IPNet {
	ip, n, err := net.ParseCIDR(s)
	if err != nil {
		panic(err)
	}
	if v4 := ip.To4(); v4 != nil {
		ip = v4
	}
	return &net.IPNet{IP: ip, Mask: n.Mask}
}

func link(kind string, index int, name, mac string, mtu int) netlink.Link {
	attrs := netlink.LinkAttrs{Index: index, Name: name, MTU: mtu}
	if mac != "" {
		attrs.HardwareAddr = mustMAC(mac)
	}
	return &netlink.GenericLink{LinkAttrs: attrs, LinkType: kind}
}

func TestConvert(t *testing.T) {
	const mac = "02:42:ac:11:00:02"
	lo := &netlink.GenericLink{LinkType: "device", LinkAttrs: netlink.LinkAttrs{
		Index: 1, Name: "lo", Flags: net.FlagLoopback, HardwareAddr: mustMAC("00:00:00:00:00:00"),
	}}
	eth0 := link("veth", 7, "eth0", mac, 1500)
	addr := func(index int, cidr string, flags int) netlink.Addr {
		return netlink.Addr{LinkIndex: index, IPNet: mustAddr(cidr), Flags: flags}
	}
	route4 := func(r netlink.Route) netlink.Route {
		r.Family, r.Table = unix.AF_INET, unix.RT_TABLE_MAIN
		if r.Type == 0 {
			r.Type = unix.RTN_UNICAST
		}
		return r
	}
	route6 := func(r netlink.Route) netlink.Route {
		r = route4(r)
		r.Family = unix.AF_INET6
		return r
	}
	interface0 := guestproto.Interface{Name: "eth0", MAC: mac, MTU: 1500, Addresses: []string{"172.17.0.2/16"}}

	for _, tc := range []struct {
		name string
		in   snapshot
		want guestproto.Network
		err  string
	}{
		{name: "lo only", in: snapshot{
			links: []netlink.Link{lo}, addresses: []netlink.Addr{addr(1, "127.0.0.1/8", 0), addr(1, "::1/128", 0)},
		}},
		{name: "Docker bridge", in: snapshot{
			links:     []netlink.Link{lo, eth0},
			addresses: []netlink.Addr{addr(1, "127.0.0.1/8", 0), addr(7, "172.17.0.2/16", 0)},
			routes: []netlink.Route{
				route4(netlink.Route{LinkIndex: 7, Dst: mustAddr("0.0.0.0/0"), Gw: net.IPv4(172, 17, 0, 1), Protocol: unix.RTPROT_BOOT}),
				route4(netlink.Route{LinkIndex: 7, Dst: mustAddr("172.17.0.0/16"), Protocol: unix.RTPROT_KERNEL, Scope: unix.RT_SCOPE_LINK, Src: net.IPv4(172, 17, 0, 2)}),
			},
		}, want: guestproto.Network{
			Interfaces: []guestproto.Interface{interface0},
			Routes:     []guestproto.Route{{Interface: "eth0", Gateway: "172.17.0.1", Family: 4, Protocol: unix.RTPROT_BOOT}},
		}},
		{name: "both families, static neighbour, on-link before gatewayed", in: snapshot{
			links: []netlink.Link{lo, eth0},
			addresses: []netlink.Addr{
				addr(7, "172.17.0.2/16", 0),
				addr(7, "fd00::2/64", unix.IFA_F_PERMANENT),
				addr(7, "fd00::aaaa/64", ifaTemporary),
				addr(7, "fd00::dead/64", ifaDADFailed),
				addr(7, "fe80::42:acff:fe11:2/64", unix.IFA_F_PERMANENT),
				addr(7, "fe80::99/64", unix.IFA_F_PERMANENT), // given by hand
			},
			routes: []netlink.Route{
				route4(netlink.Route{LinkIndex: 7, Gw: net.IPv4(169, 254, 1, 1), Flags: unix.RTNH_F_ONLINK | unix.RTNH_F_LINKDOWN, Priority: 100}),
				route4(netlink.Route{LinkIndex: 7, Dst: mustAddr("169.254.1.1/32"), Scope: unix.RT_SCOPE_LINK, Src: net.IPv4(172, 17, 0, 2)}),
				route4(netlink.Route{LinkIndex: 7, Dst: mustAddr("10.0.0.0/8"), Type: unix.RTN_BLACKHOLE}),
				route4(netlink.Route{LinkIndex: 1, Dst: mustAddr("10.1.0.0/16")}),
				route6(netlink.Route{LinkIndex: 7, Dst: mustAddr("fe80::/64"), Protocol: unix.RTPROT_KERNEL}),
				route6(netlink.Route{LinkIndex: 7, Dst: mustAddr("fd00::/64"), Protocol: unix.RTPROT_KERNEL, Priority: 256}),
				route6(netlink.Route{LinkIndex: 7, Dst: mustAddr("ff00::/8"), Protocol: unix.RTPROT_KERNEL}),
				route6(netlink.Route{LinkIndex: 7, Dst: mustAddr("::/0"), Gw: net.ParseIP("fd00::1"), Priority: 1024}),
				route6(netlink.Route{LinkIndex: 7, Dst: mustAddr("fd01::/64"), Flags: unix.RTM_F_CLONED}),
			},
			neighbours: []netlink.Neigh{
				{LinkIndex: 7, IP: net.IPv4(169, 254, 1, 1), State: netlink.NUD_PERMANENT, HardwareAddr: mustMAC("ee:ee:ee:ee:ee:ee")},
				{LinkIndex: 7, IP: net.IPv4(172, 17, 0, 1), State: netlink.NUD_REACHABLE, HardwareAddr: mustMAC("02:42:00:00:00:01")},
				{LinkIndex: 1, IP: net.IPv4(127, 0, 0, 9), State: netlink.NUD_PERMANENT, HardwareAddr: mustMAC("02:42:00:00:00:01")},
				{LinkIndex: 7, IP: net.ParseIP("ff02::1"), State: netlink.NUD_PERMANENT, HardwareAddr: mustMAC("33:33:00:00:00:01")},
			},
		}, want: guestproto.Network{
			Interfaces: []guestproto.Interface{{Name: "eth0", MAC: mac, MTU: 1500, Addresses: []string{"172.17.0.2/16", "fd00::2/64", "fe80::99/64"}}},
			Routes: []guestproto.Route{
				{Interface: "eth0", Dst: "169.254.1.1/32", Source: "172.17.0.2", Family: 4, Scope: unix.RT_SCOPE_LINK},
				{Interface: "eth0", Gateway: "169.254.1.1", Family: 4, Flags: unix.RTNH_F_ONLINK, Metric: 100},
				{Interface: "eth0", Gateway: "fd00::1", Family: 6, Metric: 1024},
			},
			Neighbours: []guestproto.Neighbour{{Interface: "eth0", IP: "169.254.1.1", MAC: "ee:ee:ee:ee:ee:ee"}},
		}},
		{name: "point-to-point address keeps the route to its peer", in: snapshot{
			links:     []netlink.Link{eth0},
			addresses: []netlink.Addr{{LinkIndex: 7, IPNet: mustAddr("10.88.0.5/32"), Peer: mustAddr("10.88.0.1/32")}},
			routes: []netlink.Route{
				route4(netlink.Route{LinkIndex: 7, Dst: mustAddr("10.88.0.1/32"), Protocol: unix.RTPROT_KERNEL, Scope: unix.RT_SCOPE_LINK}),
			},
		}, want: guestproto.Network{
			Interfaces: []guestproto.Interface{{Name: "eth0", MAC: mac, MTU: 1500, Addresses: []string{"10.88.0.5/32"}}},
			Routes:     []guestproto.Route{{Interface: "eth0", Dst: "10.88.0.1/32", Family: 4, Scope: unix.RT_SCOPE_LINK, Protocol: unix.RTPROT_KERNEL}},
		}},
		{name: "routes of several paths and of the other family", in: snapshot{
			links:     []netlink.Link{eth0},
			addresses: []netlink.Addr{addr(7, "172.17.0.2/16", 0)},
			routes: []netlink.Route{
				route4(netlink.Route{Dst: mustAddr("10.0.0.0/8"), MultiPath: []*netlink.NexthopInfo{
					{LinkIndex: 7, Gw: net.IPv4(172, 17, 0, 8)}, {LinkIndex: 7, Gw: net.IPv4(172, 17, 0, 9)},
				}}),
				route4(netlink.Route{LinkIndex: 7, Dst: mustAddr("0.0.0.0/0"), Via: &netlink.Via{AddrFamily: unix.AF_INET6, Addr: net.ParseIP("fe80::1")}}),
			},
		}, want: guestproto.Network{
			Interfaces: []guestproto.Interface{interface0},
			Routes: []guestproto.Route{
				{Interface: "eth0", Dst: "10.0.0.0/8", Gateway: "172.17.0.8", Family: 4},
				{Interface: "eth0", Gateway: "fe80::1", Family: 4},
			},
		}},
		{name: "order of indices; links that are not the guest's", in: snapshot{
			links: []netlink.Link{
				link("macvlan", 9, "net1", "02:42:ac:11:00:09", 9000), eth0,
				link("tuntap", 10, "boxtap0", "02:42:ac:11:00:0a", 1500), // ours
				link("veth", 11, "bare", "02:42:ac:11:00:0b", 1500),
				link("sit", 12, "sit0", "", 1480),
			},
			addresses: []netlink.Addr{
				addr(9, "10.1.0.9/24", 0), addr(7, "172.17.0.2/16", 0), addr(10, "10.2.0.1/24", 0),
				addr(11, "fe80::42:acff:fe11:b/64", 0),
			},
		}, want: guestproto.Network{Interfaces: []guestproto.Interface{
			interface0,
			{Name: "net1", MAC: "02:42:ac:11:00:09", MTU: 9000, Addresses: []string{"10.1.0.9/24"}},
		}}},
		{name: "tap of a user-mode stack", in: snapshot{
			links:     []netlink.Link{link("tuntap", 2, "tap0", mac, 65520)},
			addresses: []netlink.Addr{addr(2, "10.0.2.100/24", 0)},
		}, want: guestproto.Network{Interfaces: []guestproto.Interface{
			{Name: "tap0", MAC: mac, MTU: 65520, Addresses: []string{"10.0.2.100/24"}},
		}}},
		{name: "not Ethernet", in: snapshot{
			links: []netlink.Link{link("wireguard", 3, "wg0", "", 1420)}, addresses: []netlink.Addr{addr(3, "10.7.0.2/24", 0)},
		}, err: "interface wg0 (wireguard) is not Ethernet"},
		{name: "not Ethernet, beside one that is", in: snapshot{
			links:     []netlink.Link{link("wireguard", 3, "wg0", "", 1420), eth0},
			addresses: []netlink.Addr{addr(3, "10.7.0.2/24", 0), addr(7, "10.1.0.9/24", 0)},
			routes:    []netlink.Route{route4(netlink.Route{LinkIndex: 3, Gw: net.ParseIP("10.7.0.1")})},
		}, want: guestproto.Network{Interfaces: []guestproto.Interface{
			{Name: "eth0", MAC: mac, MTU: 1500, Addresses: []string{"10.1.0.9/24"}},
		}}, err: "interface wg0 (wireguard) is not Ethernet"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := convert(tc.in)
			if refused := errors.Join(got.Refused...); (refused == nil) != (tc.err == "") || refused != nil && !strings.Contains(refused.Error(), tc.err) {
				t.Errorf("convert refuses %v, want %q", refused, tc.err)
			}
			if !reflect.DeepEqual(got.Network, tc.want) {
				t.Errorf("convert =\n%+v, want\n%+v", got.Network, tc.want)
			}
			if len(got.Indices) != len(tc.want.Interfaces) {
				t.Errorf("indices %v of %d interfaces", got.Indices, len(tc.want.Interfaces))
			}
		})
	}
}
