package hostnet

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Our filters' priorities, by which they are found again: ahead of what the
// kernel hands out by itself (49152 downwards), and unlikely to be anyone's
// choice. One priority holds filters of one protocol only.
const (
	priorityARP = 2817 + iota
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
	// Offsets count from the start of the network header, in whole words.
	port := func(offset int32) netlink.TcU32Key {
		return netlink.TcU32Key{Mask: portMask, Val: portMask, Off: offset}
	}
	ipv4 := func(protocol uint32) []netlink.TcU32Key {
		return []netlink.TcU32Key{
			{Mask: 0x0f000000, Val: 0x05000000, Off: 0}, // no options, so that ports are at 20
			{Mask: 0x00001fff, Val: 0, Off: 4},          // not a later fragment
			{Mask: 0x00ff0000, Val: protocol << 16, Off: 8},
			port(20),
		}
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
		{priorityIPv4, unix.ETH_P_IP, ipv4(unix.IPPROTO_TCP), nil},
		{priorityIPv4, unix.ETH_P_IP, ipv4(unix.IPPROTO_UDP), nil},
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

// unwire takes our filters off the link, and the ingress qdisc if that leaves
// it empty. A clsact qdisc is never ours.
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
	for _, f := range present {
		a := f.Attrs()
		if a.Priority < priorityARP || a.Priority > priorityAll {
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
