package hostnet

import (
	"errors"
	"fmt"
	"net"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
)

// Programs in the namespace connect to the container at 127.0.0.1, as the port
// forwarders of CRI and pasta do, and at the link's own address, as Podman's does.
// The namespace's stack would take such a connection for one to itself. So rules
// ahead of the local table send what goes to those addresses through the tap:
//
//	0: from 127.0.0.0/9 lookup local
//	0: to 127.0.0.1 iif lo lookup localTable
//	0: to ADDRESS iif lo lookup localTable
//	1: lookup local
//
// The first is for those who talk to another loopback address, such as Docker's
// resolver: they do it from 127.0.0.1, and the answer goes there.
//
// The guest sees such a client at an address of the tap's own, by which it finds back.
// One that asks for 127.0.0.1 is at an address of 127/8, as programs expect of it. One
// that asks for the link's address may speak for anybody outside, so it is not.
const (
	localTable = 2817 // of the routes through taps, and by which the rules are known
	localRule  = 1    // where the rule of the table local goes, from 0
)

var (
	loopback = net.IPv4(127, 0, 0, 1).To4()
	// loopbackPeers and linkPeers hold the addresses of clients at 127.0.0.1 and at the
	// link's. A tap has one of each, and a VM's taps have different ones.
	loopbackPeers = &net.IPNet{IP: net.IPv4(127, 254, 254, 0).To4(), Mask: net.CIDRMask(24, 32)}
	linkPeers     = &net.IPNet{IP: net.IPv4(169, 254, 254, 0).To4(), Mask: net.CIDRMask(24, 32)}
	// ownLoopback are the loopback addresses that remain the namespace's own: those from
	// which the namespace's programs talk to each other.
	ownLoopback = &net.IPNet{IP: net.IPv4(127, 0, 0, 0).To4(), Mask: net.CIDRMask(9, 32)}
	anyLoopback = &net.IPNet{IP: net.IPv4(127, 0, 0, 0).To4(), Mask: net.CIDRMask(8, 32)}
)

// peerOf is the tap's address among the peers.
func peerOf(tap netlink.Link, peers *net.IPNet) net.IP {
	peer := slices.Clone(peers.IP)
	peer[3] = byte(1 + tap.Attrs().Index%250)
	return peer
}

// host is the network of one address.
func host(ip net.IP) *net.IPNet { return &net.IPNet{IP: ip, Mask: net.CIDRMask(32, 32)} }

// routeLocal makes 127.0.0.1 and the link's IPv4 addresses lead to the guest from the
// namespace itself, and notes in made how the guest finds back. The filters of the tap
// must be there.
func routeLocal(h *netlink.Handle, link, tap netlink.Link, made *Tap) error {
	if err := allowLoopback(tap); err != nil {
		return fmt.Errorf("tap %s: net.ipv4.conf.route_localnet: %w", tap.Attrs().Name, err)
	}
	// All the peers are the namespace's own addresses, so that nobody else can be one.
	// Each tap has its routes, and the rest of them stay when it goes.
	index := tap.Attrs().Index
	for _, peers := range []*net.IPNet{host(peerOf(tap, loopbackPeers)), linkPeers} {
		if err := h.RouteAdd(&netlink.Route{
			LinkIndex: index, Table: unix.RT_TABLE_LOCAL, Type: unix.RTN_LOCAL, Dst: peers, Scope: netlink.SCOPE_HOST, Priority: index,
		}); err != nil {
			return fmt.Errorf("local route of %s: %w", peers, err)
		}
	}
	if err := errors.Join(
		h.NeighSet(&netlink.Neigh{LinkIndex: index, State: netlink.NUD_PERMANENT, IP: loopback, HardwareAddr: link.Attrs().HardwareAddr}),
		h.RouteAdd(&netlink.Route{
			LinkIndex: index, Table: localTable, Dst: host(loopback), Src: peerOf(tap, loopbackPeers), Scope: netlink.SCOPE_LINK, Priority: index,
		}),
	); err != nil {
		return fmt.Errorf("route to %s: %w", loopback, err)
	}
	for _, way := range []guestproto.Route{
		{Dst: host(peerOf(tap, loopbackPeers)).String(), Source: loopback.String(), Loopback: true},
		{Dst: host(peerOf(tap, linkPeers)).String()},
	} {
		way.Family, way.Scope, way.Protocol = 4, unix.RT_SCOPE_LINK, unix.RTPROT_STATIC
		made.Routes = append(made.Routes, way)
	}
	for _, peers := range []*net.IPNet{loopbackPeers, linkPeers} {
		made.Neighbours = append(made.Neighbours, guestproto.Neighbour{IP: peerOf(tap, peers).String(), MAC: tap.Attrs().HardwareAddr.String()})
	}
	return updateLocal(h, link, tap)
}

// allowLoopback lets packets from and to 127/8 cross the tap. Its filters say which.
func allowLoopback(tap netlink.Link) error {
	const (
		inetConf      = 1  // IFLA_INET_CONF
		routeLocalnet = 26 // IPV4_DEVCONF_ROUTE_LOCALNET
	)
	req := nl.NewNetlinkRequest(unix.RTM_SETLINK, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(tap.Attrs().Index)
	req.AddData(msg)
	spec := nl.NewRtAttr(unix.IFLA_AF_SPEC, nil)
	spec.AddRtAttr(unix.AF_INET, nil).AddRtAttr(inetConf, nil).AddRtAttr(routeLocalnet, nl.Uint32Attr(1))
	req.AddData(spec)
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// updateLocal leads to the guest what goes to 127.0.0.1 and to the addresses that the
// link has now. It can be repeated.
func updateLocal(h *netlink.Handle, link, tap netlink.Link) error {
	addresses, err := h.AddrList(link, netlink.FAMILY_V4)
	if err != nil {
		return err
	}
	own := newRule()
	own.Table, own.Src = unix.RT_TABLE_LOCAL, ownLoopback
	if err := errors.Join(addRule(h, own), addRule(h, ruleTo(loopback)), moveLocalRule(h, 0, localRule)); err != nil {
		return fmt.Errorf("routing rules: %w", err)
	}
	for _, a := range addresses {
		if err := errors.Join(
			h.NeighSet(&netlink.Neigh{LinkIndex: tap.Attrs().Index, State: netlink.NUD_PERMANENT, IP: a.IP, HardwareAddr: link.Attrs().HardwareAddr}),
			h.RouteReplace(&netlink.Route{LinkIndex: tap.Attrs().Index, Table: localTable, Dst: host(a.IP), Src: peerOf(tap, linkPeers), Scope: netlink.SCOPE_LINK}),
			addRule(h, ruleTo(a.IP)),
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
	return dropRules(h, func(ip net.IP) bool { return among(addresses, ip) }, false)
}

func among(addresses []netlink.Addr, ip net.IP) bool {
	return slices.ContainsFunc(addresses, func(a netlink.Addr) bool { return a.IP.Equal(ip) })
}

// dropRules takes the rules for those addresses away. With the last of them it puts
// all rules back as the kernel makes them, unless the one for 127.0.0.1 is still in
// use.
func dropRules(h *netlink.Handle, which func(net.IP) bool, inUse bool) error {
	rules, err := h.RuleList(netlink.FAMILY_V4)
	if err != nil {
		return fmt.Errorf("list rules: %w", err)
	}
	var shared []netlink.Rule // by all addresses
	for _, r := range rules {
		switch {
		case r.Table == localTable && r.Dst != nil && r.Dst.IP.Equal(loopback),
			r.Table == unix.RT_TABLE_LOCAL && r.Src != nil && r.Src.String() == ownLoopback.String():
			shared = append(shared, r)
		case r.Table != localTable || r.Dst == nil:
		case !which(r.Dst.IP):
			inUse = true
		default:
			if err := h.RuleDel(&r); err != nil {
				return fmt.Errorf("remove the rule for %s: %w", r.Dst.IP, err)
			}
		}
	}
	if inUse {
		return nil
	}
	for _, r := range shared {
		if err := h.RuleDel(&r); err != nil {
			return fmt.Errorf("remove rule %s: %w", r, err)
		}
	}
	return moveLocalRule(h, localRule, 0)
}

func newRule() *netlink.Rule {
	r := netlink.NewRule()
	r.Priority, r.Family = 0, unix.AF_INET
	return r
}

// ruleTo leads what the namespace sends to that address through the tap.
func ruleTo(ip net.IP) *netlink.Rule {
	r := newRule()
	r.Table, r.Dst, r.IifName = localTable, host(ip), "lo"
	return r
}

// addRule can be repeated.
func addRule(h *netlink.Handle, r *netlink.Rule) error {
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
		if r.Table != unix.RT_TABLE_LOCAL || r.Src != nil || max(r.Priority, 0) != from {
			continue
		}
		at := r
		at.Priority = to
		if err := addRule(h, &at); err != nil {
			return fmt.Errorf("move the rule of the local table to %d: %w", to, err)
		}
		r.Priority = from
		if err := h.RuleDel(&r); err != nil {
			return fmt.Errorf("take the rule of the local table from %d: %w", from, err)
		}
	}
	return nil
}
