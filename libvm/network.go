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

	"github.com/moby/sys/userns"
	"github.com/opencontainers/runtime-spec/specs-go"

	"boxlite/internal/guestproto"
	"boxlite/libvm/hostnet"
	"boxlite/libvm/qmp"
	"boxlite/libvm/rootfs"
)

// network is the container's network as the monitor, which lives in the
// container's network namespace, carries it into the VM.
type network struct {
	log   *slog.Logger
	tuns  []*os.File // the taps to be, opened before the root has changed
	noTun error      // why there are none
	// portRange is hostnet.Options.PortRange; nil where it cannot be opened.
	portRange *os.File
	host      bool     // the container asked for the host's network
	nic       bool     // and has it
	links     []string // the interfaces that have been connected
	ports     []int    // the root ports that are left for more
	dns       bool     // the guest's relay for Docker's resolver is served
	id        string
	// local is what the guest needs for clients in the namespace itself.
	local guestproto.Network
	// told is what the guest has made of its NICs.
	told *guestproto.Network
	// forwards says that the namespace forwards packets between its interfaces: a
	// new one does where the host does.
	forwards bool
	// sandbox is the container whose network namespace this one joins, as a
	// pod's member does. Its VM, which only keeps the namespaces, yields.
	sandbox string
}

// QEMU's user-mode network, for a container that asked for the host's network:
// a VM cannot have the host's interfaces, but it can reach what they reach. The
// addresses are QEMU's defaults (qemu(1), -netdev user).
const hostNetworkMAC = "52:54:00:12:34:56"

var hostNetwork = guestproto.Network{
	Interfaces: []guestproto.Interface{{Name: "eth0", MAC: hostNetworkMAC, MTU: 1500, Addresses: []string{"10.0.2.15/24"}}},
	Routes:     []guestproto.Route{{Interface: "eth0", Gateway: "10.0.2.2", Family: 4}},
}

// openNetwork must be called before the monitor leaves the host's file systems.
func openNetwork(cfg *monitorConfig, log *slog.Logger) (*network, error) {
	n := &network{log: log, host: cfg.HostNetwork, id: cfg.ID, sandbox: cfg.Sandbox, ports: []int{networkPort, lateNICPort}, told: &guestproto.Network{}}
	if n.host {
		return n, nil
	}
	if cfg.OwnNetNS {
		if err := hostnet.Loopback(nil); err != nil {
			return nil, fmt.Errorf("network namespace: %w", err)
		}
	}
	value, err := os.ReadFile("/proc/sys/net/ipv4/ip_forward") // of the reader's namespace
	if err != nil {
		return nil, partError("network namespace", err)
	}
	n.forwards = string(bytes.TrimSpace(value)) == "1"
	if n.portRange, err = hostnet.OpenPortRange(); err != nil {
		log.Debug("the namespace keeps its ephemeral ports", "error", err)
	}
	for range maxInterfaces {
		tun, err := hostnet.OpenTun()
		if err != nil {
			n.noTun = err // a container without interfaces needs none
			break
		}
		n.tuns = append(n.tuns, tun)
	}
	return n, nil
}

// tun takes the file of a tap to be.
func (n *network) tun() (*os.File, error) {
	if len(n.tuns) == 0 {
		return nil, cmp.Or(n.noTun, errors.New("no tap is left"))
	}
	tun := n.tuns[0]
	n.tuns = n.tuns[1:]
	return tun, nil
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

// plug makes a NIC of the VM for every interface that the namespace has now and
// the VM does not, and returns what the guest shall make of all of them. It is for
// create, where callers that set networks up beforehand or in a hook have done so,
// and once more for start, until which others do.
func (n *network) plug(q *qmp.Client, g *guest) (*guestproto.Network, error) {
	if n.host {
		return &hostNetwork, n.plugHostNetwork(q)
	}
	wanted, err := hostnet.Scan(nil)
	if err != nil {
		return nil, fmt.Errorf("read the network namespace: %w", err)
	}
	if len(wanted.Interfaces) > maxInterfaces {
		return nil, fmt.Errorf("%d network interfaces: a VM takes at most %d", len(wanted.Interfaces), maxInterfaces)
	}
	wanted.DNSRelay = usesDockerResolver()
	var more []guestproto.Interface
	for _, iface := range wanted.Interfaces {
		if !slices.Contains(n.links, iface.Name) {
			more = append(more, iface)
		}
	}
	if len(more) > 0 {
		if len(n.ports) == 0 {
			return nil, fmt.Errorf("interface %s has come too late", more[0].Name)
		}
		port := n.ports[0]
		n.ports = n.ports[1:]
		// The guest looks at the device when function 0 arrives: that comes last.
		for i, iface := range slices.Backward(more) {
			if err := n.plugOne(q, port, i, iface, wanted.DNSRelay); err != nil {
				return nil, fmt.Errorf("interface %s: %w", iface.Name, err)
			}
		}
	}
	wanted.Routes = slices.Concat(n.local.Routes, wanted.Routes)
	wanted.Neighbours = slices.Concat(wanted.Neighbours, n.local.Neighbours)
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

// news returns what the guest has to be told for it to know what is wanted: nil if
// it does.
func (n *network) news(wanted *guestproto.Network) *guestproto.Network {
	if reflect.DeepEqual(n.told, wanted) {
		return nil
	}
	return wanted
}

// plugOne connects an interface through a tap to a NIC, which becomes the i-th
// function of the device in the root port. It adds to local what the guest needs
// for clients in the namespace itself, which only programs of an ordinary user
// are: the port forwarder of rootless podman.
func (n *network) plugOne(q *qmp.Client, port, i int, iface guestproto.Interface, hostResolver bool) error {
	tun, err := n.tun()
	if err != nil {
		return err
	}
	tap, err := hostnet.Attach(nil, iface.Name, hostnet.Options{
		Tun: tun, PortRange: n.portRange, HostResolver: hostResolver, Local: userns.RunningInUserNS(), Owner: n.id, Yielding: n.sandbox,
	})
	if err != nil {
		return err
	}
	n.links = append(n.links, iface.Name)
	if tap.Route != nil {
		n.local.Routes = append([]guestproto.Route{*tap.Route}, n.local.Routes...)
		n.local.Neighbours = append(n.local.Neighbours, *tap.Neighbour)
	}
	ctx, cancel := context.WithTimeout(context.Background(), requestTimeout)
	defer cancel()
	name := fmt.Sprintf("net%d", len(n.links)-1)
	if err := q.ExecuteWithFile(ctx, "getfd", map[string]any{"fdname": name}, nil, tap.File); err != nil {
		return err
	}
	if err := tap.File.Close(); err != nil { // QEMU has its own now
		return err
	}
	if err := q.Execute(ctx, "netdev_add", map[string]any{"type": "tap", "id": name, "fd": name}, nil); err != nil {
		return err
	}
	device := nic(name, port, i, iface.MAC)
	if iface.MTU >= minHostMTU {
		device["host_mtu"] = iface.MTU
	}
	return q.Execute(ctx, "device_add", device, nil)
}

// plugHostNetwork gives the VM QEMU's user-mode NIC, unless an earlier start has.
func (n *network) plugHostNetwork(q *qmp.Client) error {
	if n.nic {
		return nil
	}
	err := plugUserNIC(q)
	n.nic = err == nil
	return err
}

// userNetdev is the netdev of QEMU's user-mode network.
const userNetdev = "host0"

// plugUserNIC gives the VM a NIC for hostNetwork.
func plugUserNIC(q *qmp.Client) error {
	ctx, cancel := context.WithTimeout(context.Background(), requestTimeout)
	defer cancel()
	if err := q.Execute(ctx, "netdev_add", map[string]any{"type": "user", "id": userNetdev}, nil); err != nil {
		return err
	}
	return q.Execute(ctx, "device_add", nic(userNetdev, networkPort, 0, hostNetworkMAC), nil)
}

// nic describes the NIC of a netdev as the i-th function of the device in the root
// port.
func nic(netdev string, port, i int, mac string) map[string]any {
	return map[string]any{
		"driver": "virtio-net-pci", "id": nicID(netdev), "netdev": netdev, "bus": portID(port),
		"addr": fmt.Sprintf("0.%d", i), "multifunction": true, "mac": mac, "disable-legacy": "on", "romfile": "",
	}
}

// nicID is the device of a netdev.
func nicID(netdev string) string { return "nic" + netdev }

// minHostMTU is the least that virtio-net's MTU field may say (virtio 1.1,
// section 5.1.3).
const minHostMTU = 68

// detach gives the namespace back as it was. The taps go with QEMU.
func (n *network) detach() {
	for _, link := range n.links {
		if err := hostnet.Detach(nil, link, n.id); err != nil {
			n.log.Debug("detach", "interface", link, "error", err) // docker has taken it out already
		}
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
	found, err := hostnet.Scan(ns)
	if err != nil {
		return err
	}
	var errs []error
	for _, iface := range found.Interfaces {
		errs = append(errs, hostnet.Detach(ns, iface.Name, id))
	}
	return errors.Join(errs...)
}

// maxResolvConf bounds the container's /etc/resolv.conf, in bytes.
const maxResolvConf = 64 << 10

// usesDockerResolver says that the container's names are to be asked of Docker's
// embedded resolver. The file is read as the container has it: the monitor's
// root is the container's. No file, or none that can be read, is no resolver.
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
