package libvm

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"reflect"
	"slices"
	"sync"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
	"github.com/boxlite-oci/boxlite/libvm/fault"
	"github.com/boxlite-oci/boxlite/libvm/hostnet"
	"github.com/boxlite-oci/boxlite/libvm/rootfs"
	"github.com/boxlite-oci/boxlite/libvm/vmm"
)

// network is the container's network as the monitor, which lives in the
// container's network namespace, carries it into the VM.
type network struct {
	log   *slog.Logger
	tuns  []*os.File // the taps to be, opened before the root has changed
	noTun error      // why there are none
	// portRange is hostnet.Options.PortRange; nil where it cannot be opened.
	portRange *os.File
	// watch hears of changes; nil with the host's network.
	watch *hostnet.Watch
	host  bool // the container asked for the host's network
	id    string

	// mu is held while something is plugged in or out. It guards what follows.
	mu      sync.Mutex
	closed  bool // the container has ended
	hostNIC bool // the VM has that of the host's network
	nics    []*nic
	made    int   // how many NICs there have been
	ports   []int // the root ports that are left for more
	dns     bool  // the guest's relay for Docker's resolver is served
	// configured is what the guest has made of its NICs.
	configured *guestproto.Network
	found      hostnet.Found // at the last sync
	failed     error         // which ended like this
	// forwards says that the namespace forwards packets between its interfaces: a
	// new one does where the host does.
	forwards bool
}

// nic is an interface that has been connected to a NIC of the VM.
type nic struct {
	index int // of the interface, which may be called otherwise by now
	iface guestproto.Interface
	tap   *hostnet.Tap
	tun   *os.File // what the tap was made of
	vmm.NIC
	cut  bool // the interface has gone, and the tap is down
	told bool // so the guest knows
}

// is says whether the NIC is for that interface as it is now. The device's MAC and
// the most that its MTU can be are for life.
func (c *nic) is(index int, iface guestproto.Interface) bool {
	return !c.cut && c.index == index && c.MAC == iface.MAC && c.MTU >= iface.MTU
}

// openNetwork must be called before the monitor leaves the host's file systems.
func openNetwork(cfg *monitorConfig, log *slog.Logger) (*network, error) {
	n := &network{
		log: log, host: cfg.HostNetwork, id: cfg.ID, ports: vmm.NetworkPorts(),
		configured: &guestproto.Network{},
	}
	if n.host {
		return n, nil
	}
	if cfg.OwnNetNS {
		if err := hostnet.Loopback(nil); err != nil {
			return nil, fmt.Errorf("network namespace: %w", err)
		}
	}
	var err error
	if n.watch, err = hostnet.OpenWatch(); err != nil {
		return nil, err
	}
	value, err := os.ReadFile("/proc/sys/net/ipv4/ip_forward") // of the reader's namespace
	if err != nil {
		return nil, fault.Wrap("network namespace", err)
	}
	n.forwards = string(bytes.TrimSpace(value)) == "1"
	if n.portRange, err = hostnet.OpenPortRange(); err != nil {
		log.Debug("the namespace keeps its ephemeral ports", "error", err)
	}
	// Twice as many: a tap stays as long as other interfaces have functions of its device.
	for range 2 * vmm.MaxInterfaces {
		tun, err := hostnet.OpenTun()
		if err != nil {
			n.noTun = err // a container without interfaces needs none
			break
		}
		n.tuns = append(n.tuns, tun)
	}
	return n, nil
}

// parameters adds to the container's kernel parameters what it would have found in
// the namespace, but does not set itself.
func (n *network) parameters(linux *specs.Linux) {
	const forward = "net.ipv4.ip_forward"
	if _, set := linux.Sysctl[forward]; set || !n.forwards {
		return
	}
	if linux.Sysctl == nil {
		linux.Sysctl = map[string]string{}
	}
	linux.Sysctl[forward] = "1"
}

// plug makes a NIC of the VM for every interface that the namespace has now and the
// VM does not have yet. It returns the network that the guest shall set up. create
// calls it, for networks that the caller or a hook has set up by then. start calls
// it once more, for networks that have come since.
func (n *network) plug(v *vmm.VM, g *guest) (*guestproto.Network, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.host {
		return &vmm.UserNetwork, n.plugHostNetwork(v)
	}
	found, err := hostnet.Look(nil)
	if err == nil && len(found.Refused) > 0 {
		err = found.Refused[0]
	}
	if err != nil {
		return nil, fmt.Errorf("read the network namespace: %w", err)
	}
	if err := tooMany(&found); err != nil {
		return nil, err
	}
	found.DNSRelay = usesDockerResolver()
	more, err := n.attach(&found)
	if err != nil {
		return nil, errors.Join(err, n.giveBack(more))
	}
	if len(more) > 0 {
		if len(n.ports) == 0 {
			return nil, fmt.Errorf("interface %s has come too late", more[0].iface.Name)
		}
		if err := n.plugDevice(v, more); err != nil {
			return nil, err
		}
	}
	return n.complete(&found, g)
}

// tooMany is the error of the first interface that no VM has room for.
func tooMany(found *hostnet.Found) error {
	if len(found.Interfaces) <= vmm.MaxInterfaces {
		return nil
	}
	return fmt.Errorf("interface %s: one of %d, and a VM takes at most %d network interfaces",
		found.Interfaces[vmm.MaxInterfaces].Name, len(found.Interfaces), vmm.MaxInterfaces)
}

// attach makes taps for the interfaces without a NIC. It goes on behind those for
// which it cannot, and says all of these. The caller plugs the NICs in.
func (n *network) attach(found *hostnet.Found) (more []*nic, err error) {
	for i, iface := range found.Interfaces {
		index := found.Indices[i]
		if slices.ContainsFunc(n.nics, func(c *nic) bool { return c.is(index, iface) }) {
			continue
		}
		c, attachErr := n.attachOne(index, iface, found.DNSRelay)
		if attachErr != nil {
			err = errors.Join(err, fmt.Errorf("interface %s: %w", iface.Name, attachErr))
			continue
		}
		more = append(more, c)
	}
	return more, err
}

func (n *network) attachOne(index int, iface guestproto.Interface, hostResolver bool) (c *nic, err error) {
	if len(n.tuns) == 0 {
		return nil, cmp.Or(n.noTun, errors.New("no tap is left"))
	}
	opts := n.options(hostResolver)
	opts.Tun = n.tuns[0]
	c = &nic{index: index, iface: iface, tun: opts.Tun, NIC: vmm.NIC{Name: fmt.Sprintf("net%d", n.made), MAC: iface.MAC, MTU: iface.MTU}}
	if c.tap, err = hostnet.Attach(nil, iface.Name, opts); err != nil {
		return nil, err
	}
	n.tuns = n.tuns[1:]
	n.made++
	return c, nil
}

// giveBack undoes attach for what has not been plugged in.
func (n *network) giveBack(more []*nic) error {
	var errs []error
	for _, c := range more {
		errs = append(errs, hostnet.Detach(nil, c.iface.Name, n.id), c.tap.File.Close(), n.removeTap(c))
	}
	return errors.Join(errs...)
}

// plugDevice makes NICs the functions of one device, in a port that is left.
func (n *network) plugDevice(v *vmm.VM, nics []*nic) error {
	port := n.ports[0]
	n.ports = n.ports[1:]
	for function, c := range nics {
		c.Port, c.Function = port, function
	}
	n.nics = append(n.nics, nics...)
	// The guest looks at the device when function 0 arrives: that comes last.
	for _, c := range slices.Backward(nics) {
		err := v.PlugTap(c.NIC, c.tap.File)
		if err = errors.Join(err, c.tap.File.Close()); err != nil { // QEMU has its own
			return fmt.Errorf("interface %s: %w", c.iface.Name, err)
		}
	}
	return nil
}

// complete adds to what was found what the guest needs beside it: the way to clients
// in the namespace itself, and the relay for Docker's resolver.
func (n *network) complete(found *hostnet.Found, g *guest) (*guestproto.Network, error) {
	wanted := found.Network
	for _, c := range n.nics {
		place := slices.Index(found.Indices, c.index)
		if c.cut || place < 0 {
			continue
		}
		name := found.Interfaces[place].Name
		routes, neighbours := slices.Clone(c.tap.Routes), slices.Clone(c.tap.Neighbours)
		for i := range routes {
			routes[i].Interface = name
		}
		for i := range neighbours {
			neighbours[i].Interface = name
		}
		wanted.Routes = append(routes, wanted.Routes...)
		wanted.Neighbours = append(neighbours, wanted.Neighbours...)
	}
	if wanted.DNSRelay && !n.dns {
		stream, err := g.open(guestproto.OpDNS, nil, nil, promptly)
		if err != nil {
			return nil, err
		}
		n.dns = true
		go func() {
			err := hostnet.ServeDNS(context.Background(), nil, stream) // ends with the VM
			n.log.Debug("DNS relay has ended", "error", err)
		}()
	}
	return &wanted, nil
}

// pending returns what the guest has to be told for it to know what is wanted: nil if
// it does.
func (n *network) pending(wanted *guestproto.Network) *guestproto.Network {
	n.mu.Lock()
	defer n.mu.Unlock()
	if reflect.DeepEqual(n.configured, wanted) {
		return nil
	}
	return wanted
}

// settled notes what the guest has made of its NICs.
func (n *network) settled(wanted *guestproto.Network) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.configured = wanted
}

// options are Attach's for all interfaces.
func (n *network) options(hostResolver bool) hostnet.Options {
	return hostnet.Options{
		PortRange: n.portRange, HostResolver: hostResolver, Owner: n.id,
	}
}

// removeTap takes a NIC's tap away, which QEMU must not have any more.
func (n *network) removeTap(c *nic) error {
	err := c.tap.Remove(nil)
	if err == nil {
		n.tuns, c.tun = append(n.tuns, c.tun), nil
	}
	return err
}

// plugHostNetwork gives the VM QEMU's user-mode NIC, unless an earlier start has.
func (n *network) plugHostNetwork(v *vmm.VM) error {
	if n.hostNIC {
		return nil
	}
	err := v.PlugUserNIC()
	n.hostNIC = err == nil
	return err
}

// detach gives the namespace back as it was. The taps go with this process and QEMU.
func (n *network) detach() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.closed = true
	if n.watch != nil {
		_ = n.watch.Close() // nothing was written
	}
	if len(n.nics) == 0 {
		return
	}
	if err := hostnet.Restore(nil, n.id); err != nil {
		n.log.Debug("give the network namespace back", "error", err) // docker may be taking its links out
	}
}

// restoreNetwork does the same for a namespace that a monitor which was killed
// has left behind.
func restoreNetwork(path, id string) error {
	ns, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer ns.Close()
	return hostnet.Restore(ns, id)
}

// maxResolvConf bounds the container's /etc/resolv.conf, in bytes.
const maxResolvConf = 64 << 10

// usesDockerResolver says whether the container asks Docker's embedded resolver for
// names. It reads resolv.conf as the container has it, as the monitor's root is the
// container's. If the file is missing or cannot be read, the answer is no.
func usesDockerResolver() bool {
	root, err := rootfs.Open("/")
	if err != nil {
		return false
	}
	defer root.Close()
	conf, err := root.ReadFile("/etc/resolv.conf", maxResolvConf)
	if err != nil {
		return false
	}
	for line := range bytes.Lines(conf) {
		f := bytes.Fields(line)
		if len(f) >= 2 && string(f[0]) == "nameserver" && string(f[1]) == guestproto.DNSAddress {
			return true
		}
	}
	return false
}
