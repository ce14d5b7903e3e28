package plan

import (
	"maps"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// MemoryLimit is the limit in bytes; zero if there is none, negative for no limit.
func MemoryLimit(r *specs.LinuxResources) int64 {
	if r == nil || r.Memory == nil {
		return 0
	}
	return value(r.Memory.Limit)
}

// NeededMiB is the memory of a VM whose container has the limits r. It is zero if r
// does not limit memory.
func NeededMiB(r *specs.LinuxResources) int {
	if limit := MemoryLimit(r); limits(limit) {
		return vmMemoryMiB(limit)
	}
	return 0
}

// MergeResources applies an update to limits. It returns all limits that hold after
// it, and the change: the limits that have to be set. A member that only counts
// together with others is in the change with them.
func MergeResources(old, update *specs.LinuxResources) (after, change *specs.LinuxResources) {
	after, change = new(specs.LinuxResources), new(specs.LinuxResources)
	if old != nil {
		*after = *old
	}
	mergeMemory(after, change, update.Memory)
	mergeCPU(after, change, update.CPU)
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

// mergeMemory is MergeResources for memory: its limits mean something together only.
func mergeMemory(after, change *specs.LinuxResources, m *specs.LinuxMemory) {
	if m == nil {
		return
	}
	merged := value(after.Memory)
	changed := take(&merged.Limit, m.Limit)
	if value(m.Limit) == -1 && value(m.Swap) == 0 && value(merged.Swap) != 0 {
		merged.Swap = m.Limit // a limit of memory and swap, but not of memory, is none that can be set
	}
	changed = take(&merged.Swap, m.Swap) || changed
	changed = take(&merged.Reservation, m.Reservation) || changed
	merged.CheckBeforeUpdate = m.CheckBeforeUpdate
	if changed {
		after.Memory, change.Memory = &merged, &specs.LinuxMemory{
			Limit: merged.Limit, Swap: merged.Swap, Reservation: merged.Reservation, CheckBeforeUpdate: m.CheckBeforeUpdate,
		}
	}
}

// mergeCPU is MergeResources for processors: a quota goes with its period.
func mergeCPU(after, change *specs.LinuxResources, c *specs.LinuxCPU) {
	if c == nil {
		return
	}
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

// GuestResources returns the limits that the guest enforces: r without what has a
// meaning on the host only. The guest numbers its processors from zero, as many as
// the host's cpuset has, and has one memory node. Block I/O limits of devices stay
// on the host, where virtiofsd is held to them.
func GuestResources(r *specs.LinuxResources, vcpus int) *specs.LinuxResources {
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
