package libvm

import (
	"errors"
	"fmt"
)

// growMemory gives the VM totalMiB or a little more.
func (m *monitor) growMemory(totalMiB int) error {
	if err := m.vmm.growMemory(totalMiB-m.cfg.Plan.Shape.MemoryMiB, m.whileStopped); err != nil {
		return fmt.Errorf("a VM of %d MiB: %w", totalMiB, err)
	}
	return nil
}

// whileStopped runs f while the processors of a VM that runs stand still.
func (m *monitor) whileStopped(f func() error) error {
	m.paused.changing.Lock()
	defer m.paused.changing.Unlock()
	if err := m.vmm.halt(); err != nil {
		return err
	}
	return errors.Join(f(), m.vmm.resume())
}
