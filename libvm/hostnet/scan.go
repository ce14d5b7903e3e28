package hostnet

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
)

// Values of rtnetlink(7) that x/sys/unix lacks.
const (
	ifaTemporary = 0x01 // IFA_F_TEMPORARY, of an IPv6 address
	ifaDADFailed = 0x08 // IFA_F_DADFAILED
)

// snapshot is what the kernel says about one namespace, unjudged.
type snapshot struct {
	links      []netlink.Link
	addresses  []netlink.Addr
	routes     []netlink.Route // of the main table
	neighbours []netlink.Neigh
}

// Found is what Look finds.
type Found struct {
	guestproto.Network
	// Indices are those of the links, in the order of the interfaces. A link keeps
	// its own for life, whatever it is called, and none gets it afterwards.
	Indices []int
	// Refused are the interfaces with addresses that a VM cannot take over, each
	// with the reason.
	Refused []error
}

// Look reads the network that the guest shall have: every link with an address
// of its own, except lo and our taps, in the order of their indices, with MAC,
// MTU, addresses, routes and permanent neighbours. What the guest's kernel
// makes by itself from those (subnet routes, link-local addresses of IPv6) is
// left out. An interface with addresses that is not Ethernet is refused. Links with
// the indices keep need no address.
func Look(ns *os.File, keep ...int) (Found, error) {
	var s snapshot
	err := with(ns, func(h *netlink.Handle) error {
		var err error
		s, err = read(h)
		return err
	})
	if err != nil {
		return Found{}, err
	}
	return convert(s, keep...), nil
}

// read asks the kernel, again where a change meanwhile spoilt the answer.
func read(h *netlink.Handle) (snapshot, error) {
	for attempt := 0; ; attempt++ {
		s, err := readOnce(h)
		if !errors.Is(err, netlink.ErrDumpInterrupted) || attempt == 10 {
			return s, err
		}
	}
}

func readOnce(h *netlink.Handle) (s snapshot, err error) {
	if s.links, err = h.LinkList(); err != nil {
		return s, fmt.Errorf("list links: %w", err)
	}
	if s.addresses, err = h.AddrList(nil, netlink.FAMILY_ALL); err != nil {
		return s, fmt.Errorf("list addresses: %w", err)
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		main := &netlink.Route{Table: unix.RT_TABLE_MAIN}
		routes, err := h.RouteListFiltered(family, main, netlink.RT_FILTER_TABLE)
		if err != nil {
			return s, fmt.Errorf("list routes: %w", err)
		}
		s.routes = append(s.routes, routes...)
		neighbours, err := h.NeighList(0, family)
		if err != nil {
			return s, fmt.Errorf("list neighbours: %w", err)
		}
		s.neighbours = append(s.neighbours, neighbours...)
	}
	return s, nil
}

// taken are the interfaces that the guest gets.
type taken struct {
	interfaces []guestproto.Interface
	indices    []int
	refused    []error
	names      map[int]string       // by index
	subnets    map[int][]*net.IPNet // that their addresses span, by index
}

// takeLinks chooses the interfaces: those with an address, or to be kept, that are
// not the loopback and no tap of our own.
func takeLinks(s snapshot, keep []int) *taken {
	links := slices.Clone(s.links)
	slices.SortStableFunc(links, func(a, b netlink.Link) int { return a.Attrs().Index - b.Attrs().Index })

	t := &taken{names: map[int]string{}, subnets: map[int][]*net.IPNet{}}
	for _, link := range links {
		attrs := link.Attrs()
		if attrs.Flags&net.FlagLoopback != 0 || isTap(link) {
			continue
		}
		var addresses []string
		for _, a := range s.addresses {
			if a.LinkIndex != attrs.Index || madeByKernel(a, attrs.HardwareAddr) {
				continue
			}
			addresses = append(addresses, a.IPNet.String())
			t.subnets[attrs.Index] = append(t.subnets[attrs.Index], subnet(a.IPNet))
		}
		if len(addresses) == 0 && !slices.Contains(keep, attrs.Index) {
			continue
		}
		if len(attrs.HardwareAddr) != 6 {
			t.refused = append(t.refused, fmt.Errorf("interface %s (%s) is not Ethernet, which a VM cannot take over", attrs.Name, link.Type()))
			continue
		}
		t.names[attrs.Index] = attrs.Name
		t.indices = append(t.indices, attrs.Index)
		t.interfaces = append(t.interfaces, guestproto.Interface{
			Name:      attrs.Name,
			MAC:       attrs.HardwareAddr.String(),
			MTU:       attrs.MTU,
			Addresses: addresses,
		})
	}
	return t
}

// convert is Look without the kernel.
func convert(s snapshot, keep ...int) Found {
	t := takeLinks(s, keep)
	network := guestproto.Network{Interfaces: t.interfaces}
	for _, r := range s.routes {
		if route, ok := convertRoute(r, t.names, t.subnets); ok {
			network.Routes = append(network.Routes, route)
		}
	}
	// A gateway can be named once it is itself reachable. Otherwise the
	// kernel's order stands, which IPv6 has by interface and IPv4 by prefix.
	slices.SortStableFunc(network.Routes, func(a, b guestproto.Route) int {
		return boolInt(a.Gateway != "") - boolInt(b.Gateway != "")
	})

	for _, n := range s.neighbours {
		name, ok := t.names[n.LinkIndex]
		if !ok || n.State&netlink.NUD_PERMANENT == 0 || n.Flags&netlink.NTF_PROXY != 0 ||
			len(n.HardwareAddr) != 6 || n.IP.IsMulticast() || n.IP == nil {
			continue
		}
		network.Neighbours = append(network.Neighbours, guestproto.Neighbour{
			Interface: name,
			IP:        n.IP.String(),
			MAC:       n.HardwareAddr.String(),
		})
	}
	return Found{Network: network, Indices: t.indices, Refused: t.refused}
}

// convertRoute says how the guest adds r; not at all if its kernel makes the
// route, or if the route belongs to no interface that the guest has.
func convertRoute(r netlink.Route, names map[int]string, subnets map[int][]*net.IPNet) (guestproto.Route, bool) {
	index, gateway, flags := r.LinkIndex, r.Gw, r.Flags
	if len(r.MultiPath) > 0 {
		// One path carries the traffic of all: the protocol has no more.
		hop := r.MultiPath[0]
		index, gateway, flags = hop.LinkIndex, hop.Gw, hop.Flags
	}
	name, ok := names[index]
	if !ok || r.Type != unix.RTN_UNICAST || r.Flags&unix.RTM_F_CLONED != 0 {
		return guestproto.Route{}, false
	}
	if via, ok := r.Via.(*netlink.Via); ok {
		gateway = via.Addr
	}
	if r.Protocol == unix.RTPROT_KERNEL && gateway == nil {
		if r.Dst != nil && (r.Dst.IP.IsLinkLocalUnicast() && r.Family == unix.AF_INET6 || r.Dst.IP.IsMulticast()) {
			return guestproto.Route{}, false
		}
		// Others come with an address, save those of a point-to-point
		// address, which crosses as the bare address.
		if slices.ContainsFunc(subnets[index], func(s *net.IPNet) bool { return r.Dst != nil && s.String() == r.Dst.String() }) {
			return guestproto.Route{}, false
		}
	}
	route := guestproto.Route{
		Interface: name,
		Family:    4,
		Scope:     int(r.Scope),
		Protocol:  int(r.Protocol),
		Metric:    r.Priority,
		Flags:     flags & unix.RTNH_F_ONLINK,
	}
	if r.Family == unix.AF_INET6 {
		route.Family = 6
	}
	if r.Dst != nil && !isDefault(r.Dst) {
		route.Dst = r.Dst.String()
	}
	if gateway != nil {
		route.Gateway = gateway.String()
	}
	if r.Src != nil {
		route.Source = r.Src.String()
	}
	return route, true
}

// madeByKernel says whether the guest's kernel gets the address by itself, or
// no use from it.
func madeByKernel(a netlink.Addr, mac net.HardwareAddr) bool {
	if a.IP.To4() != nil {
		return false
	}
	return a.Flags&(ifaTemporary|ifaDADFailed) != 0 || a.IP.Equal(linkLocal(mac))
}

// linkLocal is the IPv6 address that the kernel derives from a MAC (RFC 4291,
// appendix A).
func linkLocal(mac net.HardwareAddr) net.IP {
	if len(mac) != 6 {
		return nil
	}
	ip := net.IP{0xfe, 0x80, 0, 0, 0, 0, 0, 0, mac[0] ^ 2, mac[1], mac[2], 0xff, 0xfe, mac[3], mac[4], mac[5]}
	return ip
}

func subnet(n *net.IPNet) *net.IPNet {
	return &net.IPNet{IP: n.IP.Mask(n.Mask), Mask: n.Mask}
}

func isDefault(n *net.IPNet) bool {
	ones, _ := n.Mask.Size()
	return ones == 0 && n.IP.IsUnspecified()
}

// isTap says whether the link is one that Attach made.
func isTap(link netlink.Link) bool {
	return link.Type() == "tuntap" && strings.HasPrefix(link.Attrs().Name, tapPrefix)
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}
