package hostnet

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Our filters' priorities, by which they are found again: ahead of what the
// kernel hands out by itself (49152 downwards), and unlikely to be anyone's
// choice. One priority holds filters of one protocol only.
const (
	priorityReserved = 2816 + iota
	priorityARP
	priorityIPv4
	priorityIPv6
	priorityAll
)

// filter is one u32 filter for incoming frames. Only u32 and mirred are used,
// which kernels have that lack matchall, flower and even gact: a u32 filter
// without any action accepts what it matches.
type filter struct {
	priority uint16
	protocol uint16 // unix.ETH_P_*
	keys     []netlink.TcU32Key
	action   *netlink.MirredAction // nil leaves the frame to the namespace's stack
}

// redirect hands every frame to another link.
func redirect(to netlink.Link) filter {
	return filter{
		priority: priorityAll,
		protocol: unix.ETH_P_ALL,
		keys:     []netlink.TcU32Key{{}},
		action:   netlink.NewMirredAction(to.Attrs().Index),
	}
}

// Keys of u32 count their offsets from the start of the network header, in bytes. The
// link's header is in front of it, without VLAN tags.

func etherType(value uint32) netlink.TcU32Key {
	return netlink.TcU32Key{Mask: 0xffff, Val: value, Off: -4}
}

// inNet says that the IPv4 address at that offset is one of the network's.
func inNet(offset int32, n *net.IPNet) netlink.TcU32Key {
	return netlink.TcU32Key{Mask: be32(net.IP(n.Mask)), Val: be32(n.IP), Off: offset}
}

const ipv4Source, ipv4Destination = 12, 16

// reserved keep the link's neighbours from what is between the namespace and the guest:
// frames from and to 127/8 and linkPeers do not reach the guest. The guest would take
// them, see routeLocal. They are for all protocols, as a VLAN tag with the number 0 is
// no protocol to the guest. One tag the kernel has taken away; what is behind a second
// one cannot be seen.
//
// What has no action is left to the namespace's stack, which throws it away: to it
// these are martian addresses on this link (RFC 1812, 5.3.7), and it gives ARP no answer.
// linkPeers would be its own. On lo, though, a frame with an address of the link's is
// for another host. One with a broadcast address goes on: no guest forwards it.
func reserved(link, lo, tap netlink.Link) []filter {
	leave := func(keys ...netlink.TcU32Key) filter {
		return filter{priority: priorityReserved, protocol: unix.ETH_P_ALL, keys: keys}
	}
	mac := link.Attrs().HardwareAddr
	throwAway := func(keys ...netlink.TcU32Key) filter {
		f := leave(append(keys,
			netlink.TcU32Key{Mask: 0xffffffff, Val: binary.BigEndian.Uint32(mac), Off: -14},
			netlink.TcU32Key{Mask: 0xffff, Val: uint32(binary.BigEndian.Uint16(mac[4:])), Off: -12},
		)...)
		f.action = netlink.NewMirredAction(lo.Attrs().Index)
		return f
	}
	goOn := leave(etherType(unix.ETH_P_IP), inNet(ipv4Destination, linkPeers))
	goOn.action = netlink.NewMirredAction(tap.Attrs().Index)
	const arpSource, arpTarget = 14, 24
	vlanZero := netlink.TcU32Key{Mask: 0x0fff0000, Val: 0, Off: 0}
	return []filter{
		leave(etherType(unix.ETH_P_IP), inNet(ipv4Source, anyLoopback)),
		leave(etherType(unix.ETH_P_IP), inNet(ipv4Destination, anyLoopback)),
		leave(etherType(unix.ETH_P_IP), inNet(ipv4Source, linkPeers)),
		throwAway(etherType(unix.ETH_P_IP), inNet(ipv4Destination, linkPeers)),
		goOn,
		leave(etherType(unix.ETH_P_ARP), inNet(arpSource, anyLoopback)),
		leave(etherType(unix.ETH_P_ARP), inNet(arpTarget, anyLoopback)),
		leave(etherType(unix.ETH_P_ARP), inNet(arpSource, linkPeers)),
		throwAway(etherType(unix.ETH_P_8021Q), vlanZero),
		throwAway(etherType(unix.ETH_P_8021AD), vlanZero),
		leave(etherType(unix.ETH_P_8021Q), vlanZero),
		leave(etherType(unix.ETH_P_8021AD), vlanZero),
	}
}

// tapFilters are those of the tap. The guest answers clients in the namespace, and
// cannot begin a TCP connection to the namespace's stack. What else it sends from or to
// addresses that are not for the link goes back to it, where nobody takes it: there is
// no other way to throw a frame away.
func tapFilters(tap, link netlink.Link) []filter {
	ipv4 := func(action *netlink.MirredAction, keys ...netlink.TcU32Key) filter {
		return filter{priority: priorityIPv4, protocol: unix.ETH_P_IP, keys: keys, action: action}
	}
	back := netlink.NewMirredAction(tap.Attrs().Index)
	const syn, ack = 0x02 << 16, 0x10 << 16
	segment := func(to netlink.TcU32Key, mask, flags uint32) []netlink.TcU32Key {
		return append(firstPart(unix.IPPROTO_TCP), to, netlink.TcU32Key{Mask: mask, Val: flags, Off: 32})
	}
	var all []filter
	for _, peers := range []*net.IPNet{loopbackPeers, linkPeers} {
		to := inNet(ipv4Destination, host(peerOf(tap, peers)))
		all = append(all,
			ipv4(nil, segment(to, syn, 0)...),
			ipv4(nil, segment(to, syn|ack, syn|ack)...),
			ipv4(nil, protocol(unix.IPPROTO_UDP), to),
			ipv4(nil, protocol(unix.IPPROTO_ICMP), to),
		)
	}
	return append(all,
		ipv4(back, inNet(ipv4Destination, linkPeers)),
		ipv4(back, inNet(ipv4Destination, anyLoopback)),
		ipv4(back, inNet(ipv4Source, anyLoopback)),
		redirect(link),
	)
}

// protocol is a packet's of IPv4.
func protocol(p uint32) netlink.TcU32Key {
	return netlink.TcU32Key{Mask: 0x00ff0000, Val: p << 16, Off: 8}
}

// firstPart is the only part or the first of a packet of IPv4 whose payload begins at
// 20.
func firstPart(p uint32) []netlink.TcU32Key {
	return []netlink.TcU32Key{
		{Mask: 0x0f000000, Val: 0x05000000, Off: 0}, // no options
		{Mask: 0x00001fff, Val: 0, Off: 4},          // not a later fragment
		protocol(p),
	}
}

// filters are those of a link whose frames belong to the guest behind tap.
//
// With hostResolver the namespace's stack, which has the same addresses, can
// still be a client: segments and datagrams to its ephemeral ports
// (setPortRange) are left to it, and answers about neighbours go to both. So
// the guest is not reachable at those ports, and the stack learns nothing of
// ICMP errors; the second and later fragments of a datagram, which name no
// port, go to the guest.
func filters(tap netlink.Link, hostResolver bool) []filter {
	if !hostResolver {
		return []filter{redirect(tap)}
	}
	both := func() *netlink.MirredAction {
		return &netlink.MirredAction{
			ActionAttrs:  netlink.ActionAttrs{Action: netlink.TC_ACT_OK},
			MirredAction: netlink.TCA_EGRESS_MIRROR,
			Ifindex:      tap.Attrs().Index,
		}
	}
	port := func(offset int32) netlink.TcU32Key {
		return netlink.TcU32Key{Mask: portMask, Val: portMask, Off: offset}
	}
	nextHeader := func(protocol uint32) netlink.TcU32Key {
		return netlink.TcU32Key{Mask: 0x0000ff00, Val: protocol << 8, Off: 4}
	}
	const (
		arpReply               = 2
		neighbourAdvertisement = 136
	)
	return []filter{
		{priorityARP, unix.ETH_P_ARP, []netlink.TcU32Key{{Mask: 0xffff, Val: arpReply, Off: 4}}, both()},
		{priorityIPv4, unix.ETH_P_IP, append(firstPart(unix.IPPROTO_TCP), port(20)), nil},
		{priorityIPv4, unix.ETH_P_IP, append(firstPart(unix.IPPROTO_UDP), port(20)), nil},
		{priorityIPv6, unix.ETH_P_IPV6, []netlink.TcU32Key{nextHeader(unix.IPPROTO_TCP), port(40)}, nil},
		{priorityIPv6, unix.ETH_P_IPV6, []netlink.TcU32Key{nextHeader(unix.IPPROTO_UDP), port(40)}, nil},
		{priorityIPv6, unix.ETH_P_IPV6, []netlink.TcU32Key{
			nextHeader(unix.IPPROTO_ICMPV6), {Mask: 0xff000000, Val: neighbourAdvertisement << 24, Off: 40},
		}, both()},
		redirect(tap),
	}
}

func addFilter(h *netlink.Handle, link netlink.Link, f filter) error {
	u32 := &netlink.U32{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: link.Attrs().Index,
			// Of both kinds of qdisc, ingress and clsact.
			Parent:   netlink.HANDLE_MIN_INGRESS,
			Priority: f.priority,
			Protocol: f.protocol,
		},
		Sel: &netlink.TcU32Sel{Flags: netlink.TC_U32_TERMINAL, Keys: f.keys},
	}
	if f.action != nil {
		u32.Actions = []netlink.Action{f.action}
	}
	if err := h.FilterAdd(u32); err != nil {
		return fmt.Errorf("add filter %d to %s: %w", f.priority, link.Attrs().Name, err)
	}
	return nil
}

// addIngress gives the link an ingress qdisc unless something like it is there.
func addIngress(h *netlink.Handle, link netlink.Link) error {
	kind, err := ingressKind(h, link)
	if err != nil || kind != "" {
		return err
	}
	err = h.QdiscAdd(&netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: link.Attrs().Index,
		Handle:    netlink.MakeHandle(0xffff, 0),
		Parent:    netlink.HANDLE_INGRESS,
	}})
	if err != nil {
		return fmt.Errorf("add ingress qdisc to %s: %w", link.Attrs().Name, err)
	}
	return nil
}

// ingressKind is "ingress", "clsact", or empty.
func ingressKind(h *netlink.Handle, link netlink.Link) (string, error) {
	qdiscs, err := h.QdiscList(link)
	if err != nil {
		return "", fmt.Errorf("list qdiscs of %s: %w", link.Attrs().Name, err)
	}
	for _, q := range qdiscs {
		if q.Attrs().Parent == netlink.HANDLE_INGRESS {
			return q.Type(), nil
		}
	}
	return "", nil
}

// unwire takes our filters off the link, those that keep frames out last, and the
// ingress qdisc if that leaves it empty. A clsact qdisc is never ours.
func unwire(h *netlink.Handle, link netlink.Link) error {
	kind, err := ingressKind(h, link)
	if err != nil || kind == "" {
		return err
	}
	present, err := h.FilterList(link, netlink.HANDLE_MIN_INGRESS)
	if err != nil {
		return fmt.Errorf("list filters of %s: %w", link.Attrs().Name, err)
	}
	var errs []error
	foreign := 0
	done := map[uint16]bool{}
	for _, f := range slices.Backward(present) { // they are in the order of their priorities
		a := f.Attrs()
		if a.Priority < priorityReserved || a.Priority > priorityAll {
			foreign++
			continue
		}
		if done[a.Priority] {
			continue
		}
		done[a.Priority] = true
		// Without a handle the whole priority goes.
		err := h.FilterDel(&netlink.U32{FilterAttrs: netlink.FilterAttrs{
			LinkIndex: a.LinkIndex,
			Parent:    netlink.HANDLE_MIN_INGRESS,
			Priority:  a.Priority,
			Protocol:  a.Protocol,
		}})
		if err != nil {
			errs = append(errs, fmt.Errorf("remove filter %d of %s: %w", a.Priority, link.Attrs().Name, err))
		}
	}
	if kind == "ingress" && foreign == 0 && len(errs) == 0 {
		err := h.QdiscDel(&netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{
			LinkIndex: link.Attrs().Index,
			Handle:    netlink.MakeHandle(0xffff, 0),
			Parent:    netlink.HANDLE_INGRESS,
		}})
		if err != nil && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("remove ingress qdisc of %s: %w", link.Attrs().Name, err))
		}
	}
	return errors.Join(errs...)
}

func be32(ip net.IP) uint32 { return binary.BigEndian.Uint32(ip.To4()) }
