package vmm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
	"github.com/boxlite-oci/boxlite/libvm/qmp"
)

// The ports for devices that are plugged into a running VM. There is one PCIe root
// port for each time that something is plugged in: the share, memory, and three for
// the network. Each port costs the guest's boot 12 to 20 ms. So interfaces that are
// plugged in together share a port, as the functions of one device. The guest takes
// a device away as a whole.
const (
	hotplugPorts = 5
	sharePort    = 0
	memoryPort   = 2
	// MaxInterfaces is how many interfaces a port takes, as a PCI device has eight
	// functions.
	MaxInterfaces = 8
)

// NetworkPorts are the root ports for NICs.
func NetworkPorts() []int { return []int{1, 3, 4} }

// PlugShare gives the VM its share. A guest that has not looked for devices yet
// finds it as if it had been there from the beginning.
func (v *VM) PlugShare() error {
	ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
	defer cancel()
	err := v.qmp.Execute(ctx, "device_add", map[string]any{
		"driver": "vhost-user-fs-pci", "id": "share", "chardev": "share", "queue-size": 1024, "tag": guestproto.ShareTag, "bus": portID(sharePort),
	}, nil)
	if errors.Is(err, qmp.ErrEnded) {
		return ErrLost
	}
	return err
}

// NIC is a virtio-net device: function Function of the device in root port Port.
type NIC struct {
	Name           string // of QEMU's netdev
	Port, Function int
	MAC            string
	MTU            int // of the interface on the host; zero says nothing
}

func (n NIC) id() string { return "nic" + n.Name }

// minHostMTU is the least that virtio-net's MTU field may say (virtio 1.1,
// section 5.1.3).
const minHostMTU = 68

// device describes it for QEMU.
func (n NIC) device() map[string]any {
	device := map[string]any{
		"driver": "virtio-net-pci", "id": n.id(), "netdev": n.Name, "bus": portID(n.Port),
		"addr": fmt.Sprintf("0.%d", n.Function), "multifunction": true, "mac": n.MAC, "disable-legacy": "on", "romfile": "",
	}
	if n.MTU >= minHostMTU {
		device["host_mtu"] = n.MTU
	}
	return device
}

// PlugTap gives the VM a NIC whose frames go through a tap. The guest looks at a
// port when its function 0 arrives, so function 0 is to be plugged in last. The
// caller closes tap.
func (v *VM) PlugTap(n NIC, tap *os.File) error {
	ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
	defer cancel()
	if err := v.qmp.ExecuteWithFile(ctx, "getfd", map[string]any{"fdname": n.Name}, nil, tap); err != nil {
		return err
	}
	if err := v.qmp.Execute(ctx, "netdev_add", map[string]any{"type": "tap", "id": n.Name, "fd": n.Name}, nil); err != nil {
		return err
	}
	if err := v.qmp.Execute(ctx, "device_add", n.device(), nil); err != nil {
		return errors.Join(err, v.qmp.Execute(ctx, "netdev_del", map[string]any{"id": n.Name}, nil))
	}
	return nil
}

// CutOff takes the NIC's link away. The device stays, and from QEMU 10.0 on its tap
// must too, until Unplug. It can be repeated.
func (v *VM) CutOff(n NIC) error {
	ctx, cancel := context.WithTimeout(context.Background(), unplugTimeout)
	defer cancel()
	err := v.qmp.Execute(ctx, "netdev_del", map[string]any{"id": n.Name}, nil)
	if isGone(err) {
		return nil
	}
	return err
}

// isGone says that QEMU does not have what it was to remove.
func isGone(err error) bool {
	var refusal *qmp.Error
	return errors.As(err, &refusal) && refusal.Class == "DeviceNotFound"
}

// unplugTimeout bounds how long a guest may take to let a device go.
const unplugTimeout = 10 * time.Second

// Unplug takes the NICs of one port away, all of them. A guest that keeps them is
// ErrNoAnswer: they are in the VM still, and Unplug can be repeated.
func (v *VM) Unplug(nics []NIC) error {
	ctx, cancel := context.WithTimeout(context.Background(), unplugTimeout)
	defer cancel()
	left := map[string]bool{}
	for _, n := range nics {
		left[n.id()] = true
	}
	// The guest ejects the functions of a device together; those that are asked for
	// by then may have gone.
	for _, n := range nics {
		err := v.qmp.Execute(ctx, "device_del", map[string]any{"id": n.id()}, nil)
		var refusal *qmp.Error
		switch {
		case isGone(err):
			delete(left, n.id())
		case errors.As(err, &refusal): // it is being unplugged since an earlier attempt
			v.log.Debug("unplug", "device", n.id(), "error", err)
		case err != nil:
			return err
		}
	}
	if len(left) == 0 {
		return nil
	}
	err := v.awaitEvent(ctx, "DEVICE_DELETED", func(data json.RawMessage) bool {
		var gone struct {
			Device string `json:"device"`
		}
		if json.Unmarshal(data, &gone) == nil {
			delete(left, gone.Device)
		}
		return len(left) == 0
	})
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("unplug: %w within %s", ErrNoAnswer, unplugTimeout)
	}
	return err
}

// userNIC is that of QEMU's user-mode network, for a container that asked for the
// host's network: a VM cannot have the host's interfaces, but it can reach what
// they reach.
var userNIC = NIC{Name: "host0", Port: 1, MAC: "52:54:00:12:34:56"}

// UserNetwork is what the guest makes of userNIC. The addresses are QEMU's defaults
// (qemu(1), -netdev user).
var UserNetwork = guestproto.Network{
	Interfaces: []guestproto.Interface{{Name: "eth0", MAC: userNIC.MAC, MTU: 1500, Addresses: []string{"10.0.2.15/24"}}},
	Routes:     []guestproto.Route{{Interface: "eth0", Gateway: "10.0.2.2", Family: 4}},
}

// PlugUserNIC gives the VM userNIC.
func (v *VM) PlugUserNIC() error {
	ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
	defer cancel()
	if err := v.qmp.Execute(ctx, "netdev_add", map[string]any{"type": "user", "id": userNIC.Name}, nil); err != nil {
		return err
	}
	return v.qmp.Execute(ctx, "device_add", userNIC.device(), nil)
}

// memoryBlockMiB is what the guest's kernel plugs in at once: a memory block of
// x86-64.
const memoryBlockMiB = 128

// maxGrowthMiB keeps the address space that is set aside within what every
// processor model has: TCG's 40 bits.
const maxGrowthMiB = 256 << 10

// hostMemoryMiB is the host's memory in whole memory blocks, at most maxGrowthMiB.
func hostMemoryMiB() int {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return 0 // such a host's VMs do not grow
	}
	return min(roundDown(int(info.Totalram*uint64(info.Unit)>>20), memoryBlockMiB), maxGrowthMiB)
}

func roundDown(n, to int) int { return n - n%to }

// GrowMemory gives the VM byMiB more memory than it has started with, or a little
// more than that. The memory is in a virtio-mem device, which the first call plugs
// in. Added memory stays; what the guest does not use goes back to the host page by
// page.
//
// GrowMemory plugs the device in inside of whileStopped, which runs its argument
// while the VM's processors stand still. Memory is in the VM's map as soon as it is
// plugged in, and QEMU before 8.1.1 loses what an emulated processor tells a device
// at that moment (kernels/README.md, "Hotplug").
func (v *VM) GrowMemory(byMiB int, whileStopped func(func() error) error) error {
	more, most := roundDown(byMiB+memoryBlockMiB-1, memoryBlockMiB), hostMemoryMiB()
	if more <= v.grownMiB {
		return nil
	}
	if more > most {
		return fmt.Errorf("it can grow by %d at most", most)
	}
	ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
	defer cancel()
	if err := v.resizeMemory(ctx, more, most, whileStopped); err != nil {
		return err
	}
	v.grownMiB = more
	return nil
}

func (v *VM) resizeMemory(ctx context.Context, more, most int, whileStopped func(func() error) error) error {
	bytes := int64(more) << 20
	if v.grownMiB > 0 {
		return v.qmp.Execute(ctx, "qom-set", map[string]any{"path": "/machine/peripheral/memory", "property": "requested-size", "value": bytes}, nil)
	}
	// As large as it can ever become: only what the guest takes is memory.
	backend := map[string]any{"qom-type": "memory-backend-memfd", "id": "growth", "share": true, "size": int64(most) << 20}
	if err := v.qmp.Execute(ctx, "object-add", backend, nil); err != nil {
		return err
	}
	device := map[string]any{"driver": "virtio-mem-pci", "id": "memory", "memdev": "growth", "requested-size": bytes, "bus": portID(memoryPort)}
	err := whileStopped(func() error { return v.qmp.Execute(ctx, "device_add", device, nil) })
	if err != nil {
		_ = v.qmp.Execute(ctx, "object-del", map[string]any{"id": "growth"}, nil) // for another attempt
	}
	return err
}
