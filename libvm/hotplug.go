package libvm

import (
	"context"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"boxlite/internal/guestproto"
)

// The machine has one PCIe root port for each time that something is plugged in:
// the share, the network at create, memory, and what the network has got until
// start. Each costs the guest's boot 12 to 20 ms, so the interfaces of one time
// share a port, as the functions of one device.
const (
	hotplugPorts = 4
	sharePort    = 0
	createPort   = 1
	memoryPort   = 2
	startPort    = 3
	// maxInterfaces is how many functions a PCI device has.
	maxInterfaces = 8
)

// plugShare gives the VM its share. A guest that has not come to look for devices
// yet will find it as if it had been there from the beginning.
func (v *vmm) plugShare() error {
	ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
	defer cancel()
	return v.qmp.Execute(ctx, "device_add", map[string]any{
		"driver": "vhost-user-fs-pci", "id": "share", "chardev": "share", "queue-size": 1024, "tag": guestproto.ShareTag, "bus": portID(sharePort),
	}, nil)
}

// nic is a virtio-net device, the function of that number of the device in a root
// port.
type nic struct {
	name           string // of QEMU's netdev
	port, function int
	mac            string
	mtu            int // of the interface on the host; zero says nothing
}

func (n nic) id() string { return "nic" + n.name }

// minHostMTU is the least that virtio-net's MTU field may say (virtio 1.1,
// section 5.1.3).
const minHostMTU = 68

// device describes it for QEMU.
func (n nic) device() map[string]any {
	device := map[string]any{
		"driver": "virtio-net-pci", "id": n.id(), "netdev": n.name, "bus": portID(n.port),
		"addr": fmt.Sprintf("0.%d", n.function), "multifunction": true, "mac": n.mac, "disable-legacy": "on", "romfile": "",
	}
	if n.mtu >= minHostMTU {
		device["host_mtu"] = n.mtu
	}
	return device
}

// plugTap gives the VM a NIC whose frames go through a tap. The guest looks at a
// port when its function 0 arrives: that one comes last. The caller closes tap.
func (v *vmm) plugTap(n nic, tap *os.File) error {
	ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
	defer cancel()
	if err := v.qmp.ExecuteWithFile(ctx, "getfd", map[string]any{"fdname": n.name}, nil, tap); err != nil {
		return err
	}
	if err := v.qmp.Execute(ctx, "netdev_add", map[string]any{"type": "tap", "id": n.name, "fd": n.name}, nil); err != nil {
		return err
	}
	return v.qmp.Execute(ctx, "device_add", n.device(), nil)
}

// userNIC is that of QEMU's user-mode network, for a container that asked for the
// host's network: a VM cannot have the host's interfaces, but it can reach what
// they reach.
var userNIC = nic{name: "host0", port: createPort, mac: "52:54:00:12:34:56"}

// userNetwork is what the guest makes of userNIC. The addresses are QEMU's defaults
// (qemu(1), -netdev user).
var userNetwork = guestproto.Network{
	Interfaces: []guestproto.Interface{{Name: "eth0", MAC: userNIC.mac, MTU: 1500, Addresses: []string{"10.0.2.15/24"}}},
	Routes:     []guestproto.Route{{Interface: "eth0", Gateway: "10.0.2.2", Family: 4}},
}

// plugUserNIC gives the VM userNIC.
func (v *vmm) plugUserNIC() error {
	ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
	defer cancel()
	if err := v.qmp.Execute(ctx, "netdev_add", map[string]any{"type": "user", "id": userNIC.name}, nil); err != nil {
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

// growMemory gives the VM byMiB more than it has started with, or a little more
// than that, in a virtio-mem device that is plugged in the first time. Memory that
// has been added stays; what the guest does not use goes back to the host page by
// page. The device arrives inside of whileStopped, which runs its argument while
// the VM's processors stand still: memory is in the VM's map as soon as it is
// plugged in, and QEMU before 8.1.1 loses what an emulated processor tells a device
// at that moment (kernels/README.md, "Hotplug").
func (v *vmm) growMemory(byMiB int, whileStopped func(func() error) error) error {
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

func (v *vmm) resizeMemory(ctx context.Context, more, most int, whileStopped func(func() error) error) error {
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
