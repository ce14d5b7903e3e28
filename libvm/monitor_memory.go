package libvm

import (
	"errors"
	"fmt"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/boxlite-oci/boxlite/internal/guestproto"
)

// growMemory gives the VM so much that the container has what it needs beside the others,
// or a little more.
func (m *tenant) growMemory(needMiB int) error {
	m.pod.growing.Lock()
	defer m.pod.growing.Unlock()
	m.needMiB = max(m.needMiB, needMiB)
	totalMiB := max(m.own.needMiB, m.cfg.Plan.Shape.MemoryMiB)
	for _, member := range m.members() {
		totalMiB += member.needMiB
	}
	if err := m.vmm.GrowMemory(totalMiB-m.cfg.Plan.Shape.MemoryMiB, m.whileStopped); err != nil {
		return fmt.Errorf("a VM of %d MiB: %w", totalMiB, err)
	}
	return nil
}

// whileStopped runs f while the processors of a VM that runs stand still.
func (m *monitor) whileStopped(f func() error) error {
	m.paused.changing.Lock()
	defer m.paused.changing.Unlock()
	if err := m.vmm.Halt(); err != nil {
		return err
	}
	return errors.Join(f(), m.vmm.Resume())
}

// updateParams are the monitor's part of an update.
type updateParams struct {
	Resources *specs.LinuxResources `json:"resources"`
	// MemoryMiB is what the VM has to have.
	MemoryMiB int `json:"memoryMiB"`
}

// update makes room and has the guest set its limits. Nobody else updates: the
// command holds the container's lock.
func (m *tenant) update(p *updateParams) error {
	if p == nil || p.Resources == nil {
		return errors.New("update: malformed request")
	}
	if err := m.growMemory(p.MemoryMiB); err != nil {
		return fmt.Errorf("memory: %w", err)
	}
	return m.ask(guestproto.OpUpdate, guestproto.UpdateRequest{Resources: p.Resources}, nil)
}
