package libvm

import (
	"errors"
	"fmt"
	"maps"
	"strconv"
	"strings"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/runtime-spec/specs-go"

	"boxlite/internal/guestproto"
	"boxlite/libvm/hostcgroup"
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
		after, change := mergeResources(before, r)
		vmMiB := max(c.MemoryMiB, neededMiB(after))
		// The host first: room that the guest will use has to be there.
		if err := c.limitHost(change, vmMiB); err != nil {
			return err
		}
		if m := change.Memory; m != nil && !cgroups.IsCgroup2UnifiedMode() {
			m.CheckBeforeUpdate = new(true) // version 1 refuses what the guest's version 2 kills for
		}
		params := &updateParams{Resources: guestResources(change, c.VCPUs), MemoryMiB: vmMiB}
		if err := c.request(controlRequest{Op: controlUpdate, Update: params}); err != nil {
			return errors.Join(c.afterVMLost(err), c.limitHost(before, c.MemoryMiB))
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
	return resourcesOf(c.Spec)
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
	extra := hostcgroup.Overhead{MemoryBytes: int64(guestRoomMiB+overheadMiB) << 20, Pids: overheadPids}
	if limit := memoryLimit(r); limit > 0 {
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

func memoryLimit(r *specs.LinuxResources) int64 {
	if r == nil || r.Memory == nil {
		return 0
	}
	return value(r.Memory.Limit)
}

// neededMiB is the size of a VM for r, and zero where r does not limit memory.
func neededMiB(r *specs.LinuxResources) int {
	if limit := memoryLimit(r); limits(limit) {
		return vmMemoryMiB(limit)
	}
	return 0
}

// mergeResources applies an update. It returns the limits that hold then, and
// those of them that have to be set: each member that changes together with
// those that it means nothing without.
func mergeResources(old, update *specs.LinuxResources) (after, change *specs.LinuxResources) {
	after, change = new(specs.LinuxResources), new(specs.LinuxResources)
	if old != nil {
		*after = *old
	}
	if m := update.Memory; m != nil {
		merged := value(after.Memory)
		changed := take(&merged.Limit, m.Limit)
		changed = take(&merged.Swap, m.Swap) || changed
		changed = take(&merged.Reservation, m.Reservation) || changed
		merged.CheckBeforeUpdate = m.CheckBeforeUpdate
		if changed {
			after.Memory, change.Memory = &merged, &specs.LinuxMemory{
				Limit: merged.Limit, Swap: merged.Swap, Reservation: merged.Reservation, CheckBeforeUpdate: m.CheckBeforeUpdate,
			}
		}
	}
	if c := update.CPU; c != nil {
		merged, set := value(after.CPU), new(specs.LinuxCPU)
		if take(&merged.Shares, c.Shares) {
			set.Shares = merged.Shares
		}
		bandwidth := take(&merged.Quota, c.Quota)
		bandwidth = take(&merged.Period, c.Period) || bandwidth
		if c.Burst != nil { // zero is a value here
			merged.Burst, bandwidth = c.Burst, true
		}
		if bandwidth {
			set.Quota, set.Period, set.Burst = merged.Quota, merged.Period, merged.Burst
		}
		realtime := take(&merged.RealtimeRuntime, c.RealtimeRuntime)
		realtime = take(&merged.RealtimePeriod, c.RealtimePeriod) || realtime
		if realtime {
			set.RealtimeRuntime, set.RealtimePeriod = merged.RealtimeRuntime, merged.RealtimePeriod
		}
		if c.Idle != nil {
			merged.Idle, set.Idle = c.Idle, c.Idle
		}
		if c.Cpus != "" {
			merged.Cpus, set.Cpus = c.Cpus, c.Cpus
		}
		if c.Mems != "" {
			merged.Mems, set.Mems = c.Mems, c.Mems
		}
		after.CPU, change.CPU = &merged, set
	}
	if p := update.Pids; p != nil {
		merged := value(after.Pids)
		if take(&merged.Limit, p.Limit) {
			after.Pids, change.Pids = &merged, &merged
		}
	}
	if b := update.BlockIO; b != nil && value(b.Weight) != 0 {
		merged := value(after.BlockIO)
		merged.Weight = b.Weight
		after.BlockIO, change.BlockIO = &merged, &specs.LinuxBlockIO{Weight: b.Weight}
	}
	if len(update.Unified) > 0 {
		merged := maps.Clone(after.Unified)
		if merged == nil {
			merged = map[string]string{}
		}
		maps.Copy(merged, update.Unified)
		after.Unified, change.Unified = merged, update.Unified
	}
	return after, change
}

// take replaces a member by one that is there and not zero, and says whether
// there is one.
func take[T int64 | uint64](to **T, from *T) bool {
	if value(from) == 0 {
		return false
	}
	*to = from
	return true
}

// value is what p points to, or zero.
func value[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

// guestResources are the limits that the guest enforces: r without what means
// something on the host only. Its processors are numbered from zero, as many as
// the set of the host's has, and its one memory node is its own; the devices of
// block I/O limits are the host's, where virtiofsd is held to them.
func guestResources(r *specs.LinuxResources, vcpus int) *specs.LinuxResources {
	if r == nil {
		return nil
	}
	g := *r
	g.Devices, g.Network, g.Rdma = nil, nil, nil
	if r.CPU != nil {
		cpu := *r.CPU
		cpu.Mems, cpu.RealtimeRuntime, cpu.RealtimePeriod = "", nil, nil
		if cpu.Cpus != "" {
			cpu.Cpus = "0-" + strconv.Itoa(min(max(countCPUs(cpu.Cpus), 1), vcpus)-1)
		}
		g.CPU = &cpu
	}
	if r.BlockIO != nil {
		g.BlockIO = &specs.LinuxBlockIO{Weight: r.BlockIO.Weight}
	}
	return &g
}

// countCPUs is the number of processors in a list such as 0-2,5, and zero for
// what is none: the kernel will say so.
func countCPUs(list string) int {
	n := 0
	for part := range strings.SplitSeq(list, ",") {
		first, last, isRange := strings.Cut(strings.TrimSpace(part), "-")
		from, err := strconv.Atoi(first)
		if err != nil {
			return 0
		}
		to := from
		if isRange {
			if to, err = strconv.Atoi(last); err != nil || to < from {
				return 0
			}
		}
		n += to - from + 1
	}
	return n
}

// updateParams are the monitor's part of an update.
type updateParams struct {
	Resources *specs.LinuxResources `json:"resources"`
	// MemoryMiB is what the VM has to have.
	MemoryMiB int `json:"memoryMiB"`
}

// update makes room and has the guest set its limits. Nobody else updates: the
// command holds the container's lock.
func (m *monitor) update(p *updateParams) error {
	if p == nil || p.Resources == nil {
		return errors.New("update: malformed request")
	}
	if err := m.growMemory(p.MemoryMiB); err != nil {
		return fmt.Errorf("memory: %w", err)
	}
	return m.ask(guestproto.OpUpdate, guestproto.UpdateRequest{Resources: p.Resources}, nil)
}
