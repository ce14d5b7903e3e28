package main

import (
	"fmt"
	"math"
	"slices"
	"strconv"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// A cgroupSetting is one write to a file of a cgroup. An optional one is left
// out if the kernel has no such file.
type cgroupSetting struct {
	file, value string
	optional    bool
}

// cgroupSettings turns linux.resources, whose words are those of cgroup v1,
// into settings for cgroup v2. Devices are not among them: the VM has none but
// the container's own.
func cgroupSettings(r *specs.LinuxResources) (settings []cgroupSetting, err error) {
	if r == nil {
		return nil, nil
	}
	add := func(file, value string) { settings = append(settings, cgroupSetting{file: file, value: value}) }
	if r.Memory != nil {
		if err := memorySettings(r.Memory, add); err != nil {
			return nil, err
		}
	}
	if r.CPU != nil {
		cpuSettings(r.CPU, add)
	}
	if r.Pids != nil && r.Pids.Limit != nil && *r.Pids.Limit != 0 {
		add("pids.max", orMax(*r.Pids.Limit))
	}
	if r.BlockIO != nil {
		settings = append(settings, ioSettings(r.BlockIO)...)
	}
	for _, h := range r.HugepageLimits {
		add("hugetlb."+h.Pagesize+".max", strconv.FormatUint(h.Limit, 10))
		settings = append(settings, cgroupSetting{"hugetlb." + h.Pagesize + ".rsvd.max", strconv.FormatUint(h.Limit, 10), true})
	}
	for _, file := range slices.Sorted(mapKeys(r.Unified)) {
		add(file, r.Unified[file])
	}
	return settings, nil
}

func mapKeys[V any](m map[string]V) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

// orMax is how cgroup v2 writes a limit; v1's -1 is "max".
func orMax(n int64) string {
	if n < 0 {
		return "max"
	}
	return strconv.FormatInt(n, 10)
}

func memorySettings(m *specs.LinuxMemory, add func(file, value string)) error {
	if m.Swap != nil && *m.Swap != 0 {
		// v1's limit is of memory and swap together.
		limit := int64(0)
		if m.Limit != nil {
			limit = *m.Limit
		}
		switch swap := *m.Swap; {
		case swap < 0:
			add("memory.swap.max", "max")
		case limit <= 0:
			return fmt.Errorf("swap limit %d without a memory limit", swap)
		case swap < limit:
			return fmt.Errorf("swap limit %d is below the memory limit %d", swap, limit)
		default:
			add("memory.swap.max", strconv.FormatInt(swap-limit, 10))
		}
	}
	if m.Limit != nil && *m.Limit != 0 {
		add("memory.max", orMax(*m.Limit))
	}
	if m.Reservation != nil && *m.Reservation != 0 {
		add("memory.low", orMax(*m.Reservation))
	}
	return nil
}

func cpuSettings(c *specs.LinuxCPU, add func(file, value string)) {
	if c.Idle != nil {
		add("cpu.idle", strconv.FormatInt(*c.Idle, 10))
	}
	// An idle cgroup has no weight.
	if c.Shares != nil && *c.Shares != 0 && (c.Idle == nil || *c.Idle == 0) {
		add("cpu.weight", strconv.FormatUint(cpuWeight(*c.Shares), 10))
	}
	if c.Quota != nil || c.Period != nil {
		quota, period := int64(-1), uint64(100000)
		if c.Quota != nil && *c.Quota != 0 {
			quota = *c.Quota
		}
		if c.Period != nil && *c.Period != 0 {
			period = *c.Period
		}
		add("cpu.max", orMax(quota)+" "+strconv.FormatUint(period, 10))
	}
	if c.Burst != nil {
		add("cpu.max.burst", strconv.FormatUint(*c.Burst, 10))
	}
	if c.Cpus != "" {
		add("cpuset.cpus", c.Cpus)
	}
	if c.Mems != "" {
		add("cpuset.mems", c.Mems)
	}
}

// cpuWeight turns v1's shares (2 to 262144, 1024 by default) into v2's weight
// (1 to 10000, 100 by default) by the curve of runc 1.3 and crun, a quadratic
// in the logarithm through (2, 1), (1024, 100) and (262144, 10000).
func cpuWeight(shares uint64) uint64 {
	switch {
	case shares <= 2:
		return 1
	case shares >= 262144:
		return 10000
	}
	l := math.Log2(float64(shares))
	return uint64(math.Ceil(math.Pow(10, (l*l+125*l)/612.0-7.0/34.0)))
}

func ioSettings(b *specs.LinuxBlockIO) (settings []cgroupSetting) {
	if b.Weight != nil && *b.Weight != 0 {
		// The file depends on the I/O scheduler; BFQ takes v1's range as it is.
		settings = append(settings,
			cgroupSetting{"io.bfq.weight", strconv.Itoa(int(*b.Weight)), true},
			cgroupSetting{"io.weight", strconv.FormatUint(ioWeight(*b.Weight), 10), true})
	}
	for _, d := range b.WeightDevice {
		if d.Weight != nil && *d.Weight != 0 {
			settings = append(settings, cgroupSetting{"io.bfq.weight", fmt.Sprintf("%d:%d %d", d.Major, d.Minor, *d.Weight), true})
		}
	}
	for _, limits := range []struct {
		key     string
		devices []specs.LinuxThrottleDevice
	}{
		{"rbps", b.ThrottleReadBpsDevice},
		{"wbps", b.ThrottleWriteBpsDevice},
		{"riops", b.ThrottleReadIOPSDevice},
		{"wiops", b.ThrottleWriteIOPSDevice},
	} {
		for _, d := range limits.devices {
			settings = append(settings, cgroupSetting{"io.max", fmt.Sprintf("%d:%d %s=%d", d.Major, d.Minor, limits.key, d.Rate), false})
		}
	}
	return settings
}

// ioWeight turns v1's weight (10 to 1000) into v2's (1 to 10000), linearly.
func ioWeight(weight uint16) uint64 {
	return 1 + (uint64(max(weight, 10))-10)*9999/990
}
