package hostcgroup

import (
	"fmt"
	"maps"
	"math"
	"strconv"
	"strings"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/devices/config"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// Overhead is what the VM takes beside the container. It is added to each limit
// that is set.
type Overhead struct {
	MemoryBytes int64
	Pids        int64
}

// vmmDevices are allowed after config.json's rules, which know the container's
// devices only: what runc allows everyone, and what a VMM opens.
var vmmDevices = []config.Rule{
	{Type: 'c', Major: -1, Minor: -1, Permissions: "m"},    // virtiofsd makes nodes
	{Type: 'b', Major: -1, Minor: -1, Permissions: "m"},    // for the guest
	{Type: 'c', Major: 1, Minor: 3, Permissions: "rwm"},    // null
	{Type: 'c', Major: 1, Minor: 5, Permissions: "rwm"},    // zero
	{Type: 'c', Major: 1, Minor: 7, Permissions: "rwm"},    // full
	{Type: 'c', Major: 1, Minor: 8, Permissions: "rwm"},    // random
	{Type: 'c', Major: 1, Minor: 9, Permissions: "rwm"},    // urandom
	{Type: 'c', Major: 5, Minor: 0, Permissions: "rwm"},    // tty
	{Type: 'c', Major: 5, Minor: 2, Permissions: "rwm"},    // ptmx
	{Type: 'c', Major: 136, Minor: -1, Permissions: "rwm"}, // pts/*
	{Type: 'c', Major: 10, Minor: 200, Permissions: "rwm"}, // net/tun
	{Type: 'c', Major: 10, Minor: 232, Permissions: "rwm"}, // kvm
	{Type: 'c', Major: 10, Minor: 238, Permissions: "rwm"}, // vhost-net
	{Type: 'c', Major: 10, Minor: 241, Permissions: "rwm"}, // vhost-vsock
}

// convert turns config.json's limits into the library's, with room for the VM.
// Kernel memory limits are ignored, as runc does.
func convert(r *specs.LinuxResources, extra Overhead) (*cgroups.Resources, error) {
	out := new(cgroups.Resources)
	if r == nil {
		r = new(specs.LinuxResources)
	}
	for i, d := range r.Devices {
		rule, err := convertDevice(d)
		if err != nil {
			return nil, fmt.Errorf("linux.resources.devices[%d]: %w", i, err)
		}
		out.Devices = append(out.Devices, rule)
	}
	for _, d := range vmmDevices {
		d.Allow = true
		out.Devices = append(out.Devices, &d)
	}

	setMemory(out, r.Memory, extra)
	if p := r.Pids; p != nil && p.Limit != nil && *p.Limit != 0 {
		limit := raise(*p.Limit, extra.Pids)
		out.PidsLimit = &limit
	}
	setCPU(out, r.CPU)
	setBlockIO(out, r.BlockIO)
	for _, h := range r.HugepageLimits {
		out.HugetlbLimit = append(out.HugetlbLimit, &cgroups.HugepageLimit{Pagesize: h.Pagesize, Limit: h.Limit})
	}
	for name, limit := range r.Rdma {
		if out.Rdma == nil {
			out.Rdma = map[string]cgroups.LinuxRdma{}
		}
		out.Rdma[name] = cgroups.LinuxRdma{HcaHandles: limit.HcaHandles, HcaObjects: limit.HcaObjects}
	}
	if n := r.Network; n != nil {
		out.NetClsClassid = value(n.ClassID)
		for _, p := range n.Priorities {
			out.NetPrioIfpriomap = append(out.NetPrioIfpriomap, &cgroups.IfPrioMap{Interface: p.Name, Priority: int64(p.Priority)})
		}
	}
	out.Unified = raiseUnified(r.Unified, extra)
	return out, nil
}

func setMemory(out *cgroups.Resources, m *specs.LinuxMemory, extra Overhead) {
	if m == nil {
		return
	}
	out.Memory = raise(value(m.Limit), extra.MemoryBytes)
	// Memory and swap in one number, so once is enough.
	out.MemorySwap = raise(value(m.Swap), extra.MemoryBytes)
	out.MemoryReservation = raise(value(m.Reservation), extra.MemoryBytes)
	out.MemorySwappiness = m.Swappiness
	out.OomKillDisable = value(m.DisableOOMKiller)
	out.MemoryCheckBeforeUpdate = value(m.CheckBeforeUpdate)
}

func setCPU(out *cgroups.Resources, c *specs.LinuxCPU) {
	if c == nil {
		return
	}
	out.CpuShares = value(c.Shares)
	out.CpuWeight = cgroups.ConvertCPUSharesToCgroupV2Value(out.CpuShares)
	out.CpuQuota = value(c.Quota)
	out.CpuBurst = c.Burst
	out.CpuPeriod = value(c.Period)
	out.CpuRtRuntime = value(c.RealtimeRuntime)
	out.CpuRtPeriod = value(c.RealtimePeriod)
	out.CpusetCpus, out.CpusetMems = c.Cpus, c.Mems
	out.CPUIdle = c.Idle
}

func setBlockIO(out *cgroups.Resources, b *specs.LinuxBlockIO) {
	if b == nil {
		return
	}
	out.BlkioWeight, out.BlkioLeafWeight = value(b.Weight), value(b.LeafWeight)
	for _, d := range b.WeightDevice {
		out.BlkioWeightDevice = append(out.BlkioWeightDevice, cgroups.NewWeightDevice(d.Major, d.Minor, value(d.Weight), value(d.LeafWeight)))
	}
	out.BlkioThrottleReadBpsDevice = throttles(b.ThrottleReadBpsDevice)
	out.BlkioThrottleWriteBpsDevice = throttles(b.ThrottleWriteBpsDevice)
	out.BlkioThrottleReadIOPSDevice = throttles(b.ThrottleReadIOPSDevice)
	out.BlkioThrottleWriteIOPSDevice = throttles(b.ThrottleWriteIOPSDevice)
}

// raiseUnified is a copy of files of cgroup v2 with the limits among them raised. It is
// nil if there are none.
func raiseUnified(files map[string]string, extra Overhead) map[string]string {
	if len(files) == 0 {
		return nil
	}
	raised := maps.Clone(files)
	for file, by := range map[string]int64{
		"memory.max": extra.MemoryBytes, "memory.high": extra.MemoryBytes,
		"memory.low": extra.MemoryBytes, "memory.min": extra.MemoryBytes,
		"pids.max": extra.Pids,
	} {
		// Anything but a number is the kernel's to judge: max, 0, or wrong.
		if n, err := strconv.ParseInt(strings.TrimSpace(raised[file]), 10, 64); err == nil && n > 0 {
			raised[file] = strconv.FormatInt(raise(n, by), 10)
		}
	}
	return raised
}

func convertDevice(d specs.LinuxDeviceCgroup) (*config.Rule, error) {
	rule := &config.Rule{
		Type:        config.WildcardDevice,
		Major:       config.Wildcard,
		Minor:       config.Wildcard,
		Permissions: config.Permissions(d.Access),
		Allow:       d.Allow,
	}
	switch d.Type {
	case "", "a":
	case "b":
		rule.Type = config.BlockDevice
	case "c", "u":
		rule.Type = config.CharDevice
	default:
		return nil, fmt.Errorf("invalid type %q", d.Type)
	}
	if d.Access == "" || strings.Trim(d.Access, "rwm") != "" {
		return nil, fmt.Errorf("invalid access %q", d.Access)
	}
	if d.Major != nil {
		rule.Major = *d.Major
	}
	if d.Minor != nil {
		rule.Minor = *d.Minor
	}
	return rule, nil
}

func throttles(devices []specs.LinuxThrottleDevice) []*cgroups.ThrottleDevice {
	var out []*cgroups.ThrottleDevice
	for _, d := range devices {
		out = append(out, cgroups.NewThrottleDevice(d.Major, d.Minor, d.Rate))
	}
	return out
}

// raise adds to a limit that limits: zero is unset and less is unlimited.
func raise(limit, by int64) int64 {
	if limit <= 0 {
		return limit
	}
	if limit > math.MaxInt64-by {
		return math.MaxInt64
	}
	return limit + by
}

// value is what p points to, or zero.
func value[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}
