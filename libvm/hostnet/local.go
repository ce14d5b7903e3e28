package hostnet

import (
	"errors"
	"fmt"
	"net"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
)

// Programs in the namespace connect to the container at the link's own address:
// rootless podman's port forwarder does. The namespace's stack would take such
// a connection for one to itself. So a rule ahead of the local table sends what
// goes to that address through the tap, from an address of the tap's own by
// which the guest finds back.
const (
	localTable = 2817 // of the routes through taps, and by which the rules are known
	localRule  = 1    // where the rule of the table local goes, from 0
)

// localPeer is the tap's address, link-local (RFC 3927) and a different one for
// each of a VM's taps.
func localPeer(tap netlink.Link) *net.IPNet {
	return &net.IPNet{IP: net.IPv4(169, 254, 254, byte(1+tap.Attrs().Index%250)).To4(), Mask: net.CIDRMask(32, 32)}
}

// routeLocal makes the link's IPv4 addresses lead to the guest also from the
// namespace itself, and returns how the guest finds the tap.
func routeLocal(h *netlink.Handle, link, tap netlink.Link) (*guestproto.Route, *guestproto.Neighbour, error) {
	addresses, err := h.AddrList(link, netlink.FAMILY_V4)
	if err != nil || len(addresses) == 0 {
		return nil, nil, err
	}
	peer := localPeer(tap)
	if err := h.AddrAdd(tap, &netlink.Addr{IPNet: peer, Scope: unix.RT_SCOPE_LINK}); err != nil {
		return nil, nil, fmt.Errorf("address of the tap: %w", err)
	}
	if err := addFilter(h, tap, filter{
		priority: priorityIPv4, protocol: unix.ETH_P_IP,
		keys: []netlink.TcU32Key{{Mask: 0xffffffff, Val: be32(peer.IP), Off: 16}},
	}); err != nil {
		return nil, nil, err
	}
	if err := moveLocalRule(h, 0, localRule); err != nil {
		return nil, nil, err
	}
	if err := routeAddresses(h, addresses, link, tap); err != nil {
		return nil, nil, err
	}
	name := link.Attrs().Name
	return &guestproto.Route{Interface: name, Dst: peer.String(), Family: 4, Scope: unix.RT_SCOPE_LINK, Protocol: unix.RTPROT_STATIC},
		&guestproto.Neighbour{Interface: name, IP: peer.IP.String(), MAC: tap.Attrs().HardwareAddr.String()}, nil
}

// routeAddresses leads those addresses of the link through the tap. It can be
// repeated.
func routeAddresses(h *netlink.Handle, addresses []netlink.Addr, link, tap netlink.Link) error {
	for _, a := range addresses {
		to := &net.IPNet{IP: a.IP, Mask: net.CIDRMask(32, 32)}
		if err := errors.Join(
			h.NeighSet(&netlink.Neigh{LinkIndex: tap.Attrs().Index, State: netlink.NUD_PERMANENT, IP: a.IP, HardwareAddr: link.Attrs().HardwareAddr}),
			h.RouteReplace(&netlink.Route{LinkIndex: tap.Attrs().Index, Table: localTable, Dst: to, Src: localPeer(tap).IP, Scope: netlink.SCOPE_LINK}),
			addRule(h, to),
		); err != nil {
			return fmt.Errorf("route to %s: %w", a.IP, err)
		}
	}
	return nil
}

// unrouteLocal takes the rules for the link's addresses away. The rest goes with
// the tap.
func unrouteLocal(h *netlink.Handle, link netlink.Link) error {
	addresses, err := h.AddrList(link, netlink.FAMILY_V4)
	if err != nil {
		return err
	}
	return dropRules(h, func(ip net.IP) bool { return among(addresses, ip) })
}

func among(addresses []netlink.Addr, ip net.IP) bool {
	return slices.ContainsFunc(addresses, func(a netlink.Addr) bool { return a.IP.Equal(ip) })
}

// dropRules takes the rules for those addresses away, and puts the kernel's first
// rule back with the last of them.
func dropRules(h *netlink.Handle, which func(net.IP) bool) error {
	rules, err := h.RuleList(netlink.FAMILY_V4)
	if err != nil {
		return fmt.Errorf("list rules: %w", err)
	}
	left := 0
	for _, r := range rules {
		if r.Table != localTable || r.Dst == nil {
			continue
		}
		if !which(r.Dst.IP) {
			left++
			continue
		}
		if err := h.RuleDel(&r); err != nil {
			return fmt.Errorf("remove the rule for %s: %w", r.Dst.IP, err)
		}
	}
	if left > 0 {
		return nil
	}
	return moveLocalRule(h, localRule, 0)
}

func addRule(h *netlink.Handle, to *net.IPNet) error {
	r := netlink.NewRule()
	r.Priority, r.Table, r.Dst, r.IifName, r.Family = 0, localTable, to, "lo", unix.AF_INET
	if err := h.RuleAdd(r); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil
}

// moveLocalRule changes the place of the kernel's first rule. It can be repeated.
func moveLocalRule(h *netlink.Handle, from, to int) error {
	rules, err := h.RuleList(netlink.FAMILY_V4)
	if err != nil {
		return fmt.Errorf("list rules: %w", err)
	}
	for _, r := range rules {
		if r.Table != unix.RT_TABLE_LOCAL || max(r.Priority, 0) != from {
			continue
		}
		at := r
		at.Priority = to
		if err := h.RuleAdd(&at); err != nil {
			return fmt.Errorf("move the rule of the local table to %d: %w", to, err)
		}
		r.Priority = from
		if err := h.RuleDel(&r); err != nil {
			return fmt.Errorf("take the rule of the local table from %d: %w", from, err)
		}
	}
	return nil
}

func be32(ip net.IP) uint32 {
	v4 := ip.To4()
	return uint32(v4[0])<<24 | uint32(v4[1])<<16 | uint32(v4[2])<<8 | uint32(v4[3])
}
