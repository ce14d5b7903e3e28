package main

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"boxlite/internal/guestproto"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// nicTimeout bounds the wait for a NIC, which is plugged in shortly before the
// request that names it.
const nicTimeout = 60 * time.Second

// networkState gives the guest's NICs the looks of the container's network
// namespace on the host. Links that the container makes for itself (bridges,
// veths, tunnels) are none of its business.
type networkState struct {
	mu sync.Mutex
	// asked says that there has been something to do.
	asked bool
}

// apply brings the NICs to the wanted state, from whatever they are in.
func (s *networkState) apply(n *guestproto.Network) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = s.asked || len(n.Interfaces)+len(n.Routes)+len(n.Neighbours) > 0
	if !s.asked {
		return nil
	}
	links, err := awaitNICs(n.Interfaces)
	if err != nil {
		return err
	}
	if err := retire(links); err != nil {
		return err
	}
	if err := rename(n.Interfaces, links); err != nil {
		return err
	}
	for i := range n.Interfaces {
		if err := configure(&n.Interfaces[i], links.wanted[i]); err != nil {
			return fmt.Errorf("interface %s: %w", n.Interfaces[i].Name, err)
		}
	}
	if err := applyRoutes(n, links); err != nil {
		return err
	}
	return applyNeighbours(n, links)
}

// nics are the guest's NICs: those wanted, in the order of the request, and the
// others.
type nics struct {
	wanted []netlink.Link
	others []netlink.Link
}

// awaitNICs finds the link of each interface, by its hardware address.
func awaitNICs(interfaces []guestproto.Interface) (found nics, err error) {
	macs := make([]net.HardwareAddr, len(interfaces))
	for i, iface := range interfaces {
		if macs[i], err = net.ParseMAC(iface.MAC); err != nil {
			return found, guestproto.Errorf(guestproto.CodeBadRequest, "interface %s: %v", iface.Name, err)
		}
	}
	err = awaitUevent(nicTimeout, func() error {
		links, err := dump(netlink.LinkList)
		if err != nil {
			return fmt.Errorf("list links: %w", err)
		}
		found = nics{wanted: make([]netlink.Link, len(macs))}
		for _, link := range links {
			if !isNIC(link) {
				continue
			}
			i := slices.IndexFunc(macs, func(mac net.HardwareAddr) bool { return bytes.Equal(mac, link.Attrs().HardwareAddr) })
			if i < 0 {
				found.others = append(found.others, link)
			} else {
				found.wanted[i] = link
			}
		}
		if i := slices.Index(found.wanted, nil); i >= 0 {
			return fmt.Errorf("no NIC has the address %s of %s", macs[i], interfaces[i].Name)
		}
		return nil
	})
	return found, err
}

// maxDumps bounds how often dump tries.
const maxDumps = 20

// dump lists what the kernel has, again if that changed while it was listed, as
// it does when IPv6 addresses come up.
func dump[T any](list func() ([]T, error)) (result []T, err error) {
	for range maxDumps {
		if result, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return result, err
}

// isNIC says that a link has a device below it, which only the VM's NICs do.
func isNIC(link netlink.Link) bool {
	_, err := os.Stat("/sys/class/net/" + link.Attrs().Name + "/device")
	return err == nil
}

// retire takes down the NICs that are wanted no more.
func retire(links nics) error {
	for _, link := range links.others {
		if err := netlink.LinkSetDown(link); err != nil {
			return fmt.Errorf("take %s down: %w", link.Attrs().Name, err)
		}
		if err := setAddresses(link, nil); err != nil {
			return fmt.Errorf("interface %s: %w", link.Attrs().Name, err)
		}
	}
	return nil
}

// rename gives the wanted NICs their names. They all get out of each other's
// way first, and a retired NIC gives its name up.
func rename(interfaces []guestproto.Interface, links nics) error {
	names := map[string]bool{}
	for _, iface := range interfaces {
		names[iface.Name] = true
	}
	for _, link := range links.others {
		if names[link.Attrs().Name] {
			if err := setName(link, fmt.Sprintf("retired%d", link.Attrs().Index)); err != nil {
				return err
			}
		}
	}
	for i, link := range links.wanted {
		if link.Attrs().Name != interfaces[i].Name {
			if err := setName(link, fmt.Sprintf("boxlite%d", link.Attrs().Index)); err != nil {
				return err
			}
		}
	}
	for i, link := range links.wanted {
		if link.Attrs().Name != interfaces[i].Name {
			if err := setName(link, interfaces[i].Name); err != nil {
				return err
			}
		}
	}
	return nil
}

// setName renames a link, which has to be down for that.
func setName(link netlink.Link, name string) error {
	if err := netlink.LinkSetDown(link); err != nil {
		return fmt.Errorf("take %s down: %w", link.Attrs().Name, err)
	}
	if err := netlink.LinkSetName(link, name); err != nil {
		return fmt.Errorf("rename %s to %s: %w", link.Attrs().Name, name, err)
	}
	link.Attrs().Name = name
	return nil
}

// configure sets the MTU and the addresses of a NIC and brings it up.
func configure(iface *guestproto.Interface, link netlink.Link) error {
	var addresses []*netlink.Addr
	hasIPv6 := false
	for _, text := range iface.Addresses {
		addr, err := netlink.ParseAddr(text)
		if err != nil {
			return guestproto.Errorf(guestproto.CodeBadRequest, "interface %s: address %q: %v", iface.Name, text, err)
		}
		if addr.IP.To4() == nil {
			hasIPv6 = true
			addr.Flags |= unix.IFA_F_NODAD // the host's side has done it
		}
		addresses = append(addresses, addr)
	}
	setIPv6(iface.Name, hasIPv6)
	if iface.MTU != 0 && iface.MTU != link.Attrs().MTU {
		if err := netlink.LinkSetMTU(link, iface.MTU); err != nil {
			return fmt.Errorf("set mtu %d: %w", iface.MTU, err)
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("set up: %w", err)
	}
	return setAddresses(link, addresses)
}

// setIPv6 lets a NIC do what the host says and learn nothing by itself.
func setIPv6(name string, enabled bool) {
	conf := "/proc/sys/net/ipv6/conf/" + name + "/"
	settings := []struct{ file, value string }{{"disable_ipv6", "1"}}
	if enabled {
		settings = []struct{ file, value string }{{"disable_ipv6", "0"}, {"accept_ra", "0"}, {"autoconf", "0"}, {"dad_transmits", "0"}}
	}
	for _, s := range settings {
		if err := writeFile(conf+s.file, s.value); err != nil {
			debugf("%v", err) // a kernel without IPv6 has nothing to forbid
		}
	}
}

// setAddresses gives a link these addresses and no others, apart from the
// link-local one that the kernel makes.
func setAddresses(link netlink.Link, wanted []*netlink.Addr) error {
	have, err := dump(func() ([]netlink.Addr, error) { return netlink.AddrList(link, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	for _, addr := range have {
		keep := slices.ContainsFunc(wanted, func(w *netlink.Addr) bool { return w.IPNet.String() == addr.IPNet.String() })
		if keep || (addr.IP.To4() == nil && addr.IP.IsLinkLocalUnicast()) {
			continue
		}
		if err := netlink.AddrDel(link, &addr); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("remove address %s: %w", addr.IPNet, err)
		}
	}
	for _, addr := range wanted {
		if err := netlink.AddrReplace(link, addr); err != nil {
			return fmt.Errorf("add address %s: %w", addr.IPNet, err)
		}
	}
	return nil
}

// indexOf gives the index of a wanted NIC by its wanted name.
func (n nics) indexOf(name string) (int, error) {
	for _, link := range n.wanted {
		if link.Attrs().Name == name {
			return link.Attrs().Index, nil
		}
	}
	return 0, guestproto.Errorf(guestproto.CodeBadRequest, "no interface is called %q", name)
}

func applyNeighbours(n *guestproto.Network, links nics) error {
	for _, neighbour := range n.Neighbours {
		index, err := links.indexOf(neighbour.Interface)
		if err != nil {
			return err
		}
		mac, err := net.ParseMAC(neighbour.MAC)
		ip := net.ParseIP(neighbour.IP)
		if err != nil || ip == nil {
			return guestproto.Errorf(guestproto.CodeBadRequest, "neighbour %s %s", neighbour.IP, neighbour.MAC)
		}
		entry := &netlink.Neigh{LinkIndex: index, State: netlink.NUD_PERMANENT, IP: ip, HardwareAddr: mac}
		if err := netlink.NeighSet(entry); err != nil {
			return fmt.Errorf("set neighbour %s: %w", neighbour.IP, err)
		}
	}
	return nil
}
