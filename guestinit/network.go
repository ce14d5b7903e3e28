package main

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
)

// nicTimeout bounds the wait for a NIC, which is plugged in shortly before the
// request that names it.
const nicTimeout = 60 * time.Second

// networkState makes the guest's NICs look like the interfaces of the container's
// network namespace on the host. It leaves alone the links that the container makes
// for itself (bridges, veths, tunnels), and what the container has changed of a NIC.
// Only what changes on the host is changed here.
type networkState struct {
	mu sync.Mutex
	// netlink is a socket that is opened once, with the guest.
	netlink *netlink.Handle
	// known are the NICs that have been configured before, as the host asked for
	// them last, by index. Others are as the kernel makes them: down, without
	// addresses and routes.
	known map[int]guestproto.Interface
	// routes and neighbours are what the host asked for last.
	routes     []*netlink.Route
	neighbours []*netlink.Neigh
}

func newNetworkState() (*networkState, error) {
	handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	return &networkState{netlink: handle, known: map[int]guestproto.Interface{}}, nil
}

// apply brings the NICs from what was asked for last to the wanted state.
func (s *networkState) apply(n *guestproto.Network) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	links, err := s.awaitNICs(n.Interfaces)
	if err != nil {
		return err
	}
	if err := s.retire(links); err != nil {
		return err
	}
	if err := s.rename(links); err != nil {
		return err
	}
	for i, iface := range links.interfaces {
		if err := s.configure(&iface, links.wanted[i], links); err != nil {
			return fmt.Errorf("interface %s: %w", iface.Name, err)
		}
	}
	if err := s.applyRoutes(n.Routes, links); err != nil {
		return err
	}
	if err := s.applyNeighbours(n.Neighbours, links); err != nil {
		return err
	}
	clear(s.known)
	for i, iface := range links.interfaces {
		s.known[links.wanted[i].Attrs().Index] = iface
	}
	return nil
}

// nics are the guest's NICs: those wanted, each with the interface that it shall be,
// and the others.
type nics struct {
	interfaces []guestproto.Interface
	wanted     []netlink.Link
	others     []netlink.Link
	// fresh are those wanted that have nothing of what was asked for yet, by index.
	fresh map[int]bool
	// away are the names of interfaces that the container has moved elsewhere.
	away map[string]bool
}

// awaitNICs finds the link of each interface, by its hardware address. One that has
// been there before and is not now is the container's: it has moved the NIC to
// another namespace, or has given it another address.
func (s *networkState) awaitNICs(interfaces []guestproto.Interface) (found nics, err error) {
	macs := make([]net.HardwareAddr, len(interfaces))
	for i, iface := range interfaces {
		if macs[i], err = net.ParseMAC(iface.MAC); err != nil {
			return found, guestproto.Errorf(guestproto.CodeBadRequest, "interface %s: %v", iface.Name, err)
		}
	}
	err = awaitUevent(nicTimeout, func() error {
		links, err := listNICs()
		if err != nil {
			return err
		}
		found = nics{fresh: map[int]bool{}, away: map[string]bool{}}
		byIndex := make([]netlink.Link, len(macs))
		for _, link := range links {
			i := slices.IndexFunc(macs, func(mac net.HardwareAddr) bool { return bytes.Equal(mac, link.Attrs().HardwareAddr) })
			if i < 0 {
				found.others = append(found.others, link)
			} else {
				byIndex[i] = link
			}
		}
		for i, link := range byIndex {
			switch {
			case link != nil:
				found.interfaces, found.wanted = append(found.interfaces, interfaces[i]), append(found.wanted, link)
				if _, known := s.known[link.Attrs().Index]; !known {
					found.fresh[link.Attrs().Index] = true
				}
			case s.hadMAC(interfaces[i].MAC):
				found.away[interfaces[i].Name] = true
			default:
				return fmt.Errorf("no NIC has the address %s of %s", macs[i], interfaces[i].Name)
			}
		}
		return nil
	})
	return found, err
}

// hadMAC says that a NIC with that address has been configured before.
func (s *networkState) hadMAC(mac string) bool {
	for _, iface := range s.known {
		if iface.MAC == mac {
			return true
		}
	}
	return false
}

// listNICs reads from sysfs, which is much less than netlink has to say, the links
// that have a device below them. Only the VM's NICs have one.
func listNICs() (links []netlink.Link, err error) {
	const class = "/sys/class/net/"
	entries, err := os.ReadDir(class)
	if err != nil {
		return nil, err
	}
	for _, entry := range entries {
		dir := class + entry.Name()
		if err := unix.Access(dir+"/device", unix.F_OK); err != nil {
			continue
		}
		link, err := readNIC(dir)
		if errors.Is(err, unix.ENOENT) {
			continue // renamed or gone meanwhile
		}
		if err != nil {
			return nil, err
		}
		link.Name = entry.Name()
		links = append(links, link)
	}
	return links, nil
}

func readNIC(dir string) (*netlink.Device, error) {
	link := &netlink.Device{}
	address, err := readFile(dir + "/address")
	if err != nil {
		return nil, err
	}
	if link.HardwareAddr, err = net.ParseMAC(strings.TrimSpace(address)); err != nil {
		return nil, err
	}
	for file, number := range map[string]*int{"ifindex": &link.Index, "mtu": &link.MTU} {
		text, err := readFile(dir + "/" + file)
		if err != nil {
			return nil, err
		}
		if *number, err = strconv.Atoi(strings.TrimSpace(text)); err != nil {
			return nil, err
		}
	}
	return link, nil
}

// retire takes the driver from the NICs that are wanted no more, with which their
// interfaces go. The host then takes the devices.
func (s *networkState) retire(links nics) error {
	for _, link := range links.others {
		if _, known := s.known[link.Attrs().Index]; !known {
			continue // QEMU's parameters in config.json may bring NICs
		}
		if err := unbind("/sys/class/net/" + link.Attrs().Name + "/device"); err != nil {
			return fmt.Errorf("take %s away: %w", link.Attrs().Name, err)
		}
	}
	return nil
}

// unbind takes a device, a directory of sysfs, from its driver. It may have gone.
func unbind(device string) error {
	name, err := os.Readlink(device)
	if err == nil {
		err = writeFile(device+"/driver/unbind", filepath.Base(name))
	}
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

// rename gives the wanted NICs their names. They all get out of each other's way
// first. One that the container has renamed keeps its own name until the host's
// changes.
func (s *networkState) rename(links nics) error {
	var renamed []int
	for i, link := range links.wanted {
		asked, known := s.known[link.Attrs().Index]
		if name := links.interfaces[i].Name; link.Attrs().Name == name || known && asked.Name == name {
			continue
		}
		if err := s.setName(link, fmt.Sprintf("boxlite%d", link.Attrs().Index)); err != nil {
			return err
		}
		renamed = append(renamed, i)
	}
	for _, i := range renamed {
		if err := s.setName(links.wanted[i], links.interfaces[i].Name); err != nil {
			return err
		}
		links.fresh[links.wanted[i].Attrs().Index] = true // what is down loses its routes
	}
	return nil
}

// setName renames a link, which has to be down for that.
func (s *networkState) setName(link netlink.Link, name string) error {
	if err := s.netlink.LinkSetDown(link); err != nil {
		return fmt.Errorf("take %s down: %w", link.Attrs().Name, err)
	}
	if err := s.netlink.LinkSetName(link, name); err != nil {
		return fmt.Errorf("rename %s to %s: %w", link.Attrs().Name, name, err)
	}
	link.Attrs().Name = name
	return nil
}

// configure sets the MTU and the addresses of a NIC and brings it up. One of which
// the host asks for nothing else than before is left alone.
func (s *networkState) configure(iface *guestproto.Interface, link netlink.Link, links nics) error {
	asked := s.known[link.Attrs().Index]
	fresh := links.fresh[link.Attrs().Index]
	if !fresh && asked.MTU == iface.MTU && slices.Equal(asked.Addresses, iface.Addresses) {
		return nil
	}
	wanted, err := parseAddresses(iface)
	if err != nil {
		return err
	}
	hasIPv6 := slices.ContainsFunc(wanted, isIPv6)
	before, err := parseAddresses(&asked)
	if err != nil {
		return err
	}
	if fresh || hasIPv6 != slices.ContainsFunc(before, isIPv6) {
		setIPv6(link.Attrs().Name, hasIPv6)
	}
	if iface.MTU != 0 && iface.MTU != link.Attrs().MTU {
		if err := s.netlink.LinkSetMTU(link, iface.MTU); err != nil {
			return fmt.Errorf("set mtu %d: %w", iface.MTU, err)
		}
	}
	if fresh {
		if err := s.netlink.LinkSetUp(link); err != nil {
			return fmt.Errorf("set up: %w", err)
		}
	}
	links.fresh[link.Attrs().Index] = true // for its routes, which go with addresses
	return s.setAddresses(link, before, wanted)
}

func parseAddresses(iface *guestproto.Interface) (addresses []*netlink.Addr, err error) {
	for _, text := range iface.Addresses {
		addr, err := netlink.ParseAddr(text)
		if err != nil {
			return nil, guestproto.Errorf(guestproto.CodeBadRequest, "interface %s: address %q: %v", iface.Name, text, err)
		}
		if isIPv6(addr) {
			addr.Flags |= unix.IFA_F_NODAD // the host's side has done it
		}
		addresses = append(addresses, addr)
	}
	return addresses, nil
}

func isIPv6(addr *netlink.Addr) bool { return addr.IP.To4() == nil }

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

// setAddresses gives a link the wanted addresses and takes those away that were
// wanted before and are no more.
func (s *networkState) setAddresses(link netlink.Link, before, wanted []*netlink.Addr) error {
	for _, addr := range before {
		if slices.ContainsFunc(wanted, func(w *netlink.Addr) bool { return w.IPNet.String() == addr.IPNet.String() }) {
			continue
		}
		err := s.netlink.AddrDel(link, addr)
		if err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("remove address %s: %w", addr.IPNet, err)
		}
	}
	for _, addr := range wanted {
		if err := s.netlink.AddrReplace(link, addr); err != nil {
			return fmt.Errorf("add address %s: %w", addr.IPNet, err)
		}
	}
	return nil
}

// indexOf gives the index of a wanted NIC by its wanted name.
func (n nics) indexOf(name string) (int, error) {
	for i, iface := range n.interfaces {
		if iface.Name == name {
			return n.wanted[i].Attrs().Index, nil
		}
	}
	return 0, guestproto.Errorf(guestproto.CodeBadRequest, "no interface is called %q", name)
}

// nameOf gives the name of a wanted NIC, which the container may have changed.
func (n nics) nameOf(index int) string {
	place := slices.IndexFunc(n.wanted, func(l netlink.Link) bool { return l.Attrs().Index == index })
	return n.wanted[place].Attrs().Name
}

// has says whether a NIC with that index is there.
func (n nics) has(index int) bool {
	return slices.ContainsFunc(n.wanted, func(l netlink.Link) bool { return l.Attrs().Index == index })
}

// applyNeighbours sets the wanted neighbours and takes those away that were wanted
// before and are no more.
func (s *networkState) applyNeighbours(neighbours []guestproto.Neighbour, links nics) error {
	var wanted []*netlink.Neigh
	for _, neighbour := range neighbours {
		if links.away[neighbour.Interface] {
			continue
		}
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
		if err := s.netlink.NeighSet(entry); err != nil {
			return fmt.Errorf("set neighbour %s: %w", neighbour.IP, err)
		}
		wanted = append(wanted, entry)
	}
	for _, old := range s.neighbours {
		kept := slices.ContainsFunc(wanted, func(w *netlink.Neigh) bool { return w.LinkIndex == old.LinkIndex && w.IP.Equal(old.IP) })
		if kept || !links.has(old.LinkIndex) {
			continue
		}
		if err := s.netlink.NeighDel(old); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("remove neighbour %s: %w", old.IP, err)
		}
	}
	s.neighbours = wanted
	return nil
}
