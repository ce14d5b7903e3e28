package main

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
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
// for itself (bridges, veths, tunnels).
type networkState struct {
	mu sync.Mutex
	// netlink is a socket that is opened once, with the guest.
	netlink *netlink.Handle
	// known are the NICs, by index, that have been configured before. Others are as
	// the kernel makes them: down, without addresses and routes.
	known map[int]bool
}

func newNetworkState() (*networkState, error) {
	handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	return &networkState{netlink: handle, known: map[int]bool{}}, nil
}

// apply brings the NICs to the wanted state, from whatever they are in.
func (s *networkState) apply(n *guestproto.Network) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	links, err := awaitNICs(n.Interfaces)
	if err != nil {
		return err
	}
	defer func() {
		for _, link := range links.wanted {
			s.known[link.Attrs().Index] = true
		}
	}()
	if err := s.retire(links); err != nil {
		return err
	}
	if err := s.rename(n.Interfaces, links); err != nil {
		return err
	}
	for i := range n.Interfaces {
		if err := s.configure(&n.Interfaces[i], links.wanted[i]); err != nil {
			return fmt.Errorf("interface %s: %w", n.Interfaces[i].Name, err)
		}
	}
	if err := s.applyRoutes(n, links); err != nil {
		return err
	}
	return s.applyNeighbours(n, links)
}

// nics are the guest's NICs: those wanted, in the order of the request, and the
// others.
type nics struct {
	wanted []netlink.Link
	others []netlink.Link
}

// awaitNICs finds the link of each interface by the hardware address, and waits for
// those that are not there yet.
func awaitNICs(interfaces []guestproto.Interface) (found nics, err error) {
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
		found = nics{wanted: make([]netlink.Link, len(macs))}
		for _, link := range links {
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

// retire takes down the NICs that are no longer wanted.
func (s *networkState) retire(links nics) error {
	for _, link := range links.others {
		if err := s.netlink.LinkSetDown(link); err != nil {
			return fmt.Errorf("take %s down: %w", link.Attrs().Name, err)
		}
		if err := s.setAddresses(link, nil); err != nil {
			return fmt.Errorf("interface %s: %w", link.Attrs().Name, err)
		}
	}
	return nil
}

// rename gives the wanted NICs their names. They all get out of each other's
// way first, and a retired NIC gives its name up.
func (s *networkState) rename(interfaces []guestproto.Interface, links nics) error {
	names := map[string]bool{}
	for _, iface := range interfaces {
		names[iface.Name] = true
	}
	for _, link := range links.others {
		if names[link.Attrs().Name] {
			if err := s.setName(link, fmt.Sprintf("retired%d", link.Attrs().Index)); err != nil {
				return err
			}
		}
	}
	for i, link := range links.wanted {
		if link.Attrs().Name != interfaces[i].Name {
			if err := s.setName(link, fmt.Sprintf("boxlite%d", link.Attrs().Index)); err != nil {
				return err
			}
		}
	}
	for i, link := range links.wanted {
		if link.Attrs().Name != interfaces[i].Name {
			if err := s.setName(link, interfaces[i].Name); err != nil {
				return err
			}
		}
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

// configure sets the MTU and the addresses of a NIC and brings it up.
func (s *networkState) configure(iface *guestproto.Interface, link netlink.Link) error {
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
		if err := s.netlink.LinkSetMTU(link, iface.MTU); err != nil {
			return fmt.Errorf("set mtu %d: %w", iface.MTU, err)
		}
	}
	if err := s.netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("set up: %w", err)
	}
	return s.setAddresses(link, addresses)
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
func (s *networkState) setAddresses(link netlink.Link, wanted []*netlink.Addr) error {
	var have []netlink.Addr
	if s.known[link.Attrs().Index] {
		var err error
		if have, err = dump(func() ([]netlink.Addr, error) { return s.netlink.AddrList(link, netlink.FAMILY_ALL) }); err != nil {
			return fmt.Errorf("list addresses: %w", err)
		}
	}
	for _, addr := range have {
		keep := slices.ContainsFunc(wanted, func(w *netlink.Addr) bool { return w.IPNet.String() == addr.IPNet.String() })
		if keep || (addr.IP.To4() == nil && addr.IP.IsLinkLocalUnicast()) {
			continue
		}
		if err := s.netlink.AddrDel(link, &addr); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
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
	for _, link := range n.wanted {
		if link.Attrs().Name == name {
			return link.Attrs().Index, nil
		}
	}
	return 0, guestproto.Errorf(guestproto.CodeBadRequest, "no interface is called %q", name)
}

func (s *networkState) applyNeighbours(n *guestproto.Network, links nics) error {
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
		if err := s.netlink.NeighSet(entry); err != nil {
			return fmt.Errorf("set neighbour %s: %w", neighbour.IP, err)
		}
	}
	return nil
}
