package libvm

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

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

// growMemory gives the VM totalMiB or a little more, in a virtio-mem device that
// is plugged in the first time. Memory that has been added stays; what the guest
// does not use goes back to the host page by page.
func (m *monitor) growMemory(totalMiB int) error {
	base, most := m.cfg.Plan.Shape.MemoryMiB, hostMemoryMiB()
	more := roundDown(totalMiB-base+memoryBlockMiB-1, memoryBlockMiB)
	if more <= m.grownMiB {
		return nil
	}
	if more > most {
		return fmt.Errorf("a VM of %d MiB: it can grow by %d at most", totalMiB, most)
	}
	ctx, cancel := context.WithTimeout(context.Background(), requestTimeout)
	defer cancel()
	bytes := int64(more) << 20
	if m.grownMiB > 0 {
		err := m.vmm.qmp.Execute(ctx, "qom-set", map[string]any{"path": "/machine/peripheral/memory", "property": "requested-size", "value": bytes}, nil)
		if err != nil {
			return fmt.Errorf("grow the VM's memory: %w", err)
		}
		m.grownMiB = more
		return nil
	}
	// As large as it can ever become: only what the guest takes is memory.
	backend := map[string]any{"qom-type": "memory-backend-memfd", "id": "growth", "share": true, "size": int64(most) << 20}
	if err := m.vmm.qmp.Execute(ctx, "object-add", backend, nil); err != nil {
		return fmt.Errorf("grow the VM's memory: %w", err)
	}
	device := map[string]any{"driver": "virtio-mem-pci", "id": "memory", "memdev": "growth", "requested-size": bytes, "bus": portID(memoryPort)}
	if err := m.whileStopped(func() error { return m.vmm.qmp.Execute(ctx, "device_add", device, nil) }); err != nil {
		_ = m.vmm.qmp.Execute(ctx, "object-del", map[string]any{"id": "growth"}, nil) // for another attempt
		return fmt.Errorf("grow the VM's memory: %w", err)
	}
	m.grownMiB = more
	return nil
}

// whileStopped runs f while the processors of a VM that runs stand still: memory
// is in the VM's map as soon as it is plugged in, and QEMU before 8.1.1 loses what
// an emulated processor tells a device at that moment (kernels/README.md,
// "Hotplug").
func (m *monitor) whileStopped(f func() error) error {
	m.paused.changing.Lock()
	defer m.paused.changing.Unlock()
	if err := m.qmp("stop"); err != nil {
		return err
	}
	return errors.Join(f(), m.qmp("cont"))
}
