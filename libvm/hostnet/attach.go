package hostnet

import (
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
)

// Options are the arguments of Attach other than the link.
type Options struct {
	// Tun becomes the tap, see OpenTun. It stays the caller's, and the tap is there
	// for as long as it is open. After Remove another tap can be made of it, and
	// after an Attach that failed likewise. If it is nil, Attach opens one.
	Tun *os.File
	// PortRange is a file of OpenPortRange, needed for HostResolver only. It stays
	// the caller's. If it is nil, Attach opens one.
	PortRange *os.File
	// HostResolver keeps the namespace's own stack able to ask outside
	// servers for the resolver that Docker runs in it, although the guest
	// owns the link. See filters.
	HostResolver bool
	// Owner is the id of the container whose VM gets the link. One VM at a time has
	// a link: Attach fails while another owner's VM has it.
	Owner string
}

// Tap is one link's connection to the guest.
type Tap struct {
	// Name is the tap's own name in the namespace.
	Name string
	// File is for QEMU (-netdev tap,fd= or getfd). The tap disappears when
	// the last duplicate of it is closed, of which Options.Tun is one; this one is
	// the caller's to close.
	File *os.File
	// Routes and Neighbours lead the guest to programs in the namespace itself, which
	// reach the guest at 127.0.0.1 and at the link's IPv4 addresses. Their interface is
	// for the caller to fill in.
	Routes     []guestproto.Route
	Neighbours []guestproto.Neighbour

	index    int  // of the tap's link
	resolver bool // the link has the filters of Options.HostResolver
}

// Attach makes a tap in ns and exchanges the two links' incoming frames: what
// arrives at the link called name leaves through the tap, and the other way
// round. The namespace's stack no longer sees either, so that the guest, with
// the link's MAC and addresses on its NIC, is the only one to answer there. Programs in
// the namespace reach the guest as well, see routeLocal.
//
// Frames in File carry a struct virtio_net_hdr, so that partial checksums and
// large segments cross as they are.
//
// veth, macvlan, bridges and the taps of user-mode stacks work like this, and
// so does ipvlan in its L2 mode, whose links share their parent's MAC. An
// ipvlan in the modes L3 and L3S has no ARP and delivers past the filters, and
// is refused.
func Attach(ns *os.File, name string, opts Options) (*Tap, error) {
	var tap *Tap
	err := with(ns, func(h *netlink.Handle) error {
		link, err := h.LinkByName(name)
		if err != nil {
			return err
		}
		if ipvlan, ok := link.(*netlink.IPVlan); ok && ipvlan.Mode != netlink.IPVLAN_MODE_L2 {
			return errors.New("ipvlan in another mode than L2 cannot carry a VM")
		}
		if len(link.Attrs().HardwareAddr) != 6 {
			return errors.New("it is not Ethernet")
		}
		if err := claim(h, link); err != nil {
			return err
		}
		if opts.HostResolver {
			if err := setPortRange(opts.PortRange); err != nil {
				return err
			}
		}
		if tap, err = makeTap(opts.Tun); err != nil {
			return err
		}
		if err := wire(h, link, tap, opts); err != nil {
			return errors.Join(err, tap.remove(h), tap.File.Close(), unwire(h, link), unrouteLocal(h, link))
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("attach interface %s: %w", name, err)
	}
	return tap, nil
}

// Detach gives the link back to the namespace's stack, unless another owner's VM
// has the link by now. The tap itself goes with its last descriptor. Detach can be
// repeated. A link that has gone is no error.
func Detach(ns *os.File, name, owner string) error {
	err := with(ns, func(h *netlink.Handle) error {
		link, err := h.LinkByName(name)
		if errors.As(err, &netlink.LinkNotFoundError{}) {
			return nil
		}
		if err != nil {
			return err
		}
		return detach(h, link, owner)
	})
	if err != nil {
		return fmt.Errorf("detach interface %s: %w", name, err)
	}
	return nil
}

func detach(h *netlink.Handle, link netlink.Link, owner string) error {
	if tap, err := holder(h, link); err != nil || tap != nil && tap.Attrs().Alias != owner {
		return err
	}
	return errors.Join(unwire(h, link), unrouteLocal(h, link))
}

// Restore is Detach for every link of the namespace: whatever a link is called by now,
// and whether or not it has an address still. Rules stay only for what another owner's
// VM has.
func Restore(ns *os.File, owner string) error {
	return with(ns, func(h *netlink.Handle) error {
		links, err := h.LinkList()
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) { // then one may be missing that comes or goes
			return fmt.Errorf("list links: %w", err)
		}
		var errs []error
		var others []netlink.Addr
		shared := false
		for _, link := range links {
			if isTap(link) {
				continue
			}
			if err := detach(h, link, owner); err != nil {
				errs = append(errs, fmt.Errorf("detach interface %s: %w", link.Attrs().Name, err))
			}
			if tap, err := holder(h, link); err != nil || tap == nil {
				continue // the error is detach's as well
			}
			shared = true
			more, err := h.AddrList(link, netlink.FAMILY_V4)
			others, errs = append(others, more...), append(errs, err)
		}
		return errors.Join(append(errs, dropRules(h, func(ip net.IP) bool { return !among(others, ip) }, shared))...)
	})
}

// wire configures the tap, then the filters of both, and lets traffic through
// last.
func wire(h *netlink.Handle, link netlink.Link, made *Tap, opts Options) error {
	tapName := made.Name
	tap, err := h.LinkByName(tapName)
	if err != nil {
		return err
	}
	made.index, made.resolver = tap.Attrs().Index, opts.HostResolver
	if err := h.LinkSetAlias(tap, opts.Owner); err != nil {
		return fmt.Errorf("alias of tap %s: %w", tapName, err)
	}
	if err := silence(h, tap); err != nil {
		return fmt.Errorf("tap %s: %w", tapName, err)
	}
	if err := h.LinkSetMTU(tap, link.Attrs().MTU); err != nil {
		return fmt.Errorf("MTU of tap %s: %w", tapName, err)
	}
	if err := addIngress(h, tap); err != nil {
		return err
	}
	for _, f := range tapFilters(tap, link) {
		if err := addFilter(h, tap, f); err != nil {
			return err
		}
	}
	if err := h.LinkSetUp(tap); err != nil {
		return fmt.Errorf("bring tap %s up: %w", tapName, err)
	}
	if err := routeLocal(h, link, tap, made); err != nil {
		return err
	}
	if err := addIngress(h, link); err != nil {
		return err
	}
	lo, err := h.LinkByName("lo")
	if err != nil {
		return err
	}
	for _, f := range append(reserved(link, lo, tap), filters(tap, opts.HostResolver)...) {
		if err := addFilter(h, link, f); err != nil {
			return err
		}
	}
	return nil
}

// claim sees to it that no other VM has the link.
func claim(h *netlink.Handle, link netlink.Link) error {
	tap, err := holder(h, link)
	if err != nil || tap == nil {
		return err
	}
	return fmt.Errorf("it belongs to the VM of container %s already, and two VMs cannot share a network namespace", tap.Attrs().Alias)
}

// holder is the tap of the VM that has the link, or nil. A VM that has ended
// leaves no tap. The tap's alias is its owner.
func holder(h *netlink.Handle, link netlink.Link) (netlink.Link, error) {
	present, err := h.FilterList(link, netlink.HANDLE_MIN_INGRESS)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		return nil, nil // no ingress qdisc
	}
	if err != nil {
		return nil, fmt.Errorf("list filters of %s: %w", link.Attrs().Name, err)
	}
	for _, f := range present {
		u32, ok := f.(*netlink.U32)
		if !ok || f.Attrs().Priority != priorityAll {
			continue
		}
		for _, a := range u32.Actions {
			mirred, ok := a.(*netlink.MirredAction)
			if !ok {
				continue
			}
			if tap, err := h.LinkByIndex(mirred.Ifindex); err == nil && isTap(tap) {
				return tap, nil
			}
		}
	}
	return nil, nil
}

// silence keeps the namespace's stack from saying anything through the tap of
// its own accord: router solicitations, reports of multicast groups, ARP.
func silence(h *netlink.Handle, tap netlink.Link) error {
	const noAddress = 1 // IN6_ADDR_GEN_MODE_NONE
	err := h.LinkSetIP6AddrGenMode(tap, noAddress)
	if err != nil && !errors.Is(err, unix.EAFNOSUPPORT) && !errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("address generation: %w", err) // those two: no IPv6 here
	}
	if err := h.LinkSetMulticastOff(tap); err != nil {
		return fmt.Errorf("multicast: %w", err)
	}
	if err := h.LinkSetARPOff(tap); err != nil {
		return fmt.Errorf("ARP: %w", err)
	}
	return nil
}
