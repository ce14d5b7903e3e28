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
	host      bool     // the container asked for the host's network
	nic       bool     // and has it
	links     []string // the interfaces that have been connected
	ports     []int    // the root ports that are left for more
	dns       bool     // the guest's relay for Docker's resolver is served
	id        string
	// local is what the guest needs for clients in the namespace itself.
	local guestproto.Network
	// configured is what the guest has made of its NICs.
	configured *guestproto.Network
	// forwards says that the namespace forwards packets between its interfaces: a
	// new one does where the host does.
	forwards bool
	// sandbox is the container whose network namespace this one joins, as a
	// pod's member does. Its VM, which only keeps the namespaces, yields.
	sandbox string
}

// openNetwork must be called before the monitor leaves the host's file systems.
func openNetwork(cfg *monitorConfig, log *slog.Logger) (*network, error) {
	n := &network{log: log, host: cfg.HostNetwork, id: cfg.ID, sandbox: cfg.Sandbox, ports: []int{vmm.CreatePort, vmm.StartPort}, configured: &guestproto.Network{}}
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
		return nil, fault.Wrap("network namespace", err)
	}
	n.forwards = string(bytes.TrimSpace(value)) == "1"
	if n.portRange, err = hostnet.OpenPortRange(); err != nil {
		log.Debug("the namespace keeps its ephemeral ports", "error", err)
	}
	for range vmm.MaxInterfaces {
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

// plug makes a NIC of the VM for every interface that the namespace has now and the
// VM does not have yet. It returns the network that the guest shall set up. create
// calls it, for networks that the caller or a hook has set up by then. start calls
// it once more, for networks that have come since.
func (n *network) plug(v *vmm.VM, g *guest) (*guestproto.Network, error) {
	if n.host {
		return &vmm.UserNetwork, n.plugHostNetwork(v)
	}
	wanted, err := hostnet.Scan(nil)
	if err != nil {
		return nil, fmt.Errorf("read the network namespace: %w", err)
	}
	if len(wanted.Interfaces) > vmm.MaxInterfaces {
		return nil, fmt.Errorf("%d network interfaces: a VM takes at most %d", len(wanted.Interfaces), vmm.MaxInterfaces)
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
			if err := n.plugOne(v, port, i, iface, wanted.DNSRelay); err != nil {
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

// pending returns what the guest has to be told for it to know what is wanted: nil if
// it does.
func (n *network) pending(wanted *guestproto.Network) *guestproto.Network {
	if reflect.DeepEqual(n.configured, wanted) {
		return nil
	}
	return wanted
}

// plugOne connects an interface through a tap to a NIC, which becomes function i of
// the device in the root port. It adds to local what the guest needs for clients in
// the namespace itself. Only programs of an ordinary user are such clients: the
// port forwarder of rootless podman.
func (n *network) plugOne(v *vmm.VM, port, i int, iface guestproto.Interface, hostResolver bool) error {
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
	err = v.PlugTap(vmm.NIC{Name: fmt.Sprintf("net%d", len(n.links)-1), Port: port, Function: i, MAC: iface.MAC, MTU: iface.MTU}, tap.File)
	return errors.Join(err, tap.File.Close()) // QEMU has its own
}

// plugHostNetwork gives the VM QEMU's user-mode NIC, unless an earlier start has.
func (n *network) plugHostNetwork(v *vmm.VM) error {
	if n.nic {
		return nil
	}
	err := v.PlugUserNIC()
	n.nic = err == nil
	return err
}

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
