package libvm

import (
	"errors"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/boxlite-oci/boxlite/libvm/hostcgroup"
	"github.com/boxlite-oci/boxlite/libvm/plan"
)

// Update changes limits of a created or running container, in its cgroups on
// the host and in the guest. What r leaves out, or gives as zero, stays as it
// is; of r only memory, CPU, pids, blockIO and unified count, as with runc. A
// memory limit beyond the VM's size makes the VM grow.
func (c *Container) Update(r *specs.LinuxResources) error {
	return c.locked(func() error {
		switch c.Status() {
		case specs.StateStopped:
			return ErrNotRunning
		case StatePaused:
			return errors.New("a paused container cannot be updated: its VM stands still")
		}
		before := c.resources()
		after, change := plan.MergeResources(before, r)
		needed := plan.NeededMiB
		if c.Sandbox != nil {
			needed = plan.MemberMiB
		}
		vmMiB := max(c.MemoryMiB, needed(after))
		// The host first: room that the guest will use has to be there.
		others, err := c.roomInPod(vmMiB)
		if err != nil {
			return err
		}
		if err := c.limitHost(change, vmMiB+others); err != nil {
			return errors.Join(err, c.limitHost(before, c.MemoryMiB+others)) // some may have been set
		}
		if m := change.Memory; m != nil && !cgroups.IsCgroup2UnifiedMode() {
			m.CheckBeforeUpdate = new(true) // version 1 refuses what the guest's version 2 kills for
		}
		params := &updateParams{Resources: plan.GuestResources(change, c.VCPUs), MemoryMiB: vmMiB}
		if err := c.request(controlRequest{Op: controlUpdate, Update: params}); err != nil {
			return errors.Join(c.afterVMLost(err), c.limitHost(before, c.MemoryMiB+others))
		}
		c.Resources, c.MemoryMiB = after, vmMiB
		return writeState(c.dir, stateFile, &c.State)
	})
}

// resources are the limits that hold now.
func (c *Container) resources() *specs.LinuxResources {
	if c.Resources != nil {
		return c.Resources
	}
	return plan.Resources(c.Spec)
}

// limitHost sets limits of the host's cgroup. Memory is never limited to less
// than a VM of that size may come to use.
func (c *Container) limitHost(r *specs.LinuxResources, vmMiB int) error {
	if c.Cgroup == nil {
		return nil
	}
	cg, err := hostcgroup.Load(*c.Cgroup)
	if err != nil {
		return cgroupError(err)
	}
	extra := hostcgroup.Overhead{MemoryBytes: int64(plan.GuestRoomMiB+overheadMiB) << 20, Pids: overheadPids}
	if limit := plan.MemoryLimit(r); limit > 0 {
		extra.MemoryBytes = max(extra.MemoryBytes, int64(vmMiB+overheadMiB)<<20-limit)
	}
	if r != nil { // device rules stay: they are the host's and the guest's, and cannot be updated
		without := *r
		without.Devices, r = nil, &without
	}
	if err := cg.Set(r, extra); err != nil {
		return cgroupError(err)
	}
	return nil
}
