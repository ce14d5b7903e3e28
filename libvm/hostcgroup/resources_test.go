package hostcgroup

import (
	"math"
	"reflect"
	"testing"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/devices/config"
	"github.com/opencontainers/runtime-spec/specs-go"
)

func TestConvert(t *testing.T) {
	extra := Overhead{MemoryBytes: 1000, Pids: 50}
	memory := func(limit, swap, reservation *int64) *specs.LinuxResources {
		return &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: limit, Swap: swap, Reservation: reservation}}
	}
	pids := func(n *int64) *specs.LinuxResources {
		return &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: n}}
	}
	for name, tc := range map[string]struct {
		in   *specs.LinuxResources
		want cgroups.Resources
	}{
		"nothing":                 {nil, cgroups.Resources{}},
		"nothing set":             {&specs.LinuxResources{Memory: &specs.LinuxMemory{}, CPU: &specs.LinuxCPU{}, Pids: &specs.LinuxPids{}, BlockIO: &specs.LinuxBlockIO{}, Network: &specs.LinuxNetwork{}}, cgroups.Resources{}},
		"memory":                  {memory(new(int64(64)), nil, nil), cgroups.Resources{Memory: 1064}},
		"memory and as much swap": {memory(new(int64(64)), new(int64(128)), new(int64(32))), cgroups.Resources{Memory: 1064, MemorySwap: 1128, MemoryReservation: 1032}},
		"no swap at all":          {memory(new(int64(64)), new(int64(64)), nil), cgroups.Resources{Memory: 1064, MemorySwap: 1064}},
		"unlimited swap":          {memory(new(int64(64)), new(int64(-1)), nil), cgroups.Resources{Memory: 1064, MemorySwap: -1}},
		"unlimited memory":        {memory(new(int64(-1)), new(int64(-1)), nil), cgroups.Resources{Memory: -1, MemorySwap: -1}},
		"zeros, as docker sends":  {memory(new(int64(0)), new(int64(0)), new(int64(0))), cgroups.Resources{}},
		"the largest of numbers":  {memory(new(int64(math.MaxInt64-10)), nil, nil), cgroups.Resources{Memory: math.MaxInt64}},
		"pids":                    {pids(new(int64(10))), cgroups.Resources{PidsLimit: new(int64(60))}},
		"unlimited pids":          {pids(new(int64(-1))), cgroups.Resources{PidsLimit: new(int64(-1))}},
		"no pids limit":           {pids(new(int64(0))), cgroups.Resources{}},
		//lint:ignore SA1019 old callers still send it
		"kernel memory is ignored": {&specs.LinuxResources{Memory: &specs.LinuxMemory{Kernel: new(int64(5)), KernelTCP: new(int64(5))}}, cgroups.Resources{}},
		"rest of memory": {&specs.LinuxResources{Memory: &specs.LinuxMemory{
			Swappiness: new(uint64(0)), DisableOOMKiller: new(true), CheckBeforeUpdate: new(true),
		}}, cgroups.Resources{MemorySwappiness: new(uint64(0)), OomKillDisable: true, MemoryCheckBeforeUpdate: true}},
		"cpu": {&specs.LinuxResources{CPU: &specs.LinuxCPU{
			Shares: new(uint64(1024)), Quota: new(int64(150000)), Period: new(uint64(100000)), Burst: new(uint64(7)),
			RealtimeRuntime: new(int64(1)), RealtimePeriod: new(uint64(2)), Cpus: "0-1", Mems: "0", Idle: new(int64(1)),
		}}, cgroups.Resources{
			CpuShares: 1024, CpuWeight: cgroups.ConvertCPUSharesToCgroupV2Value(1024), CpuQuota: 150000, CpuPeriod: 100000, CpuBurst: new(uint64(7)),
			CpuRtRuntime: 1, CpuRtPeriod: 2, CpusetCpus: "0-1", CpusetMems: "0", CPUIdle: new(int64(1)),
		}},
		"block I/O": {&specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{
			Weight: new(uint16(500)), LeafWeight: new(uint16(300)),
			WeightDevice: []specs.LinuxWeightDevice{func() (d specs.LinuxWeightDevice) {
				d.Major, d.Minor, d.Weight = 8, 1, new(uint16(400))
				return d
			}()},
			ThrottleReadBpsDevice:   []specs.LinuxThrottleDevice{throttle(8, 0, 1)},
			ThrottleWriteBpsDevice:  []specs.LinuxThrottleDevice{throttle(8, 0, 2)},
			ThrottleReadIOPSDevice:  []specs.LinuxThrottleDevice{throttle(8, 0, 3)},
			ThrottleWriteIOPSDevice: []specs.LinuxThrottleDevice{throttle(8, 0, 4)},
		}}, cgroups.Resources{
			BlkioWeight: 500, BlkioLeafWeight: 300,
			BlkioWeightDevice:            []*cgroups.WeightDevice{cgroups.NewWeightDevice(8, 1, 400, 0)},
			BlkioThrottleReadBpsDevice:   []*cgroups.ThrottleDevice{cgroups.NewThrottleDevice(8, 0, 1)},
			BlkioThrottleWriteBpsDevice:  []*cgroups.ThrottleDevice{cgroups.NewThrottleDevice(8, 0, 2)},
			BlkioThrottleReadIOPSDevice:  []*cgroups.ThrottleDevice{cgroups.NewThrottleDevice(8, 0, 3)},
			BlkioThrottleWriteIOPSDevice: []*cgroups.ThrottleDevice{cgroups.NewThrottleDevice(8, 0, 4)},
		}},
		"hugetlb, rdma, network": {&specs.LinuxResources{
			HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 9}},
			Rdma:           map[string]specs.LinuxRdma{"mlx": {HcaHandles: new(uint32(3))}},
			Network:        &specs.LinuxNetwork{ClassID: new(uint32(0x100001)), Priorities: []specs.LinuxInterfacePriority{{Name: "eth0", Priority: 5}}},
		}, cgroups.Resources{
			HugetlbLimit:     []*cgroups.HugepageLimit{{Pagesize: "2MB", Limit: 9}},
			Rdma:             map[string]cgroups.LinuxRdma{"mlx": {HcaHandles: new(uint32(3))}},
			NetClsClassid:    0x100001,
			NetPrioIfpriomap: []*cgroups.IfPrioMap{{Interface: "eth0", Priority: 5}},
		}},
		"unified": {&specs.LinuxResources{Unified: map[string]string{
			"memory.max": "64", "memory.high": "max", "memory.low": "0", "pids.max": "10", "cpu.weight": "7", "memory.swap.max": "5",
		}}, cgroups.Resources{Unified: map[string]string{
			"memory.max": "1064", "memory.high": "max", "memory.low": "0", "pids.max": "60", "cpu.weight": "7", "memory.swap.max": "5",
		}}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := convert(tc.in, extra)
			if err != nil {
				t.Fatal(err)
			}
			got.Devices = nil // see TestConvertDevices
			if !reflect.DeepEqual(*got, tc.want) {
				t.Errorf("convert =\n%+v, want\n%+v", *got, tc.want)
			}
		})
	}
}

func throttle(major, minor int64, rate uint64) (d specs.LinuxThrottleDevice) {
	d.Major, d.Minor, d.Rate = major, minor, rate
	return d
}

func TestConvertLeavesSpecAlone(t *testing.T) {
	spec := &specs.LinuxResources{Unified: map[string]string{"memory.max": "64"}, Pids: &specs.LinuxPids{Limit: new(int64(9))}}
	if _, err := convert(spec, Overhead{MemoryBytes: 1, Pids: 1}); err != nil {
		t.Fatal(err)
	}
	if spec.Unified["memory.max"] != "64" || *spec.Pids.Limit != 9 {
		t.Errorf("convert changed its argument: %+v", spec)
	}
}

func TestConvertDevices(t *testing.T) {
	got, err := convert(&specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{
		{Allow: false, Access: "rwm"},
		{Allow: true, Type: "c", Major: new(int64(10)), Minor: new(int64(229)), Access: "rw"},
		{Allow: true, Type: "b", Major: new(int64(8)), Access: "r"},
		{Allow: false, Type: "c", Major: new(int64(10)), Minor: new(int64(232)), Access: "rwm"},
	}}, Overhead{})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"a *:* rwm false", "c 10:229 rw true", "b 8:* r true", "c 10:232 rwm false"}
	for i, w := range want {
		if g := describe(got.Devices[i]); g != w {
			t.Errorf("rule %d = %q, want %q", i, g, w)
		}
	}
	// The VMM's come last, so that no rule of the container's forbids them.
	rest := map[string]bool{}
	for _, d := range got.Devices[len(want):] {
		rest[describe(d)] = true
	}
	for _, w := range []string{"c 10:232 rwm true", "c 10:200 rwm true", "c 10:238 rwm true", "c 10:241 rwm true", "c 1:3 rwm true", "c 136:* rwm true"} {
		if !rest[w] {
			t.Errorf("no rule %q for the VMM", w)
		}
	}

	for _, bad := range []specs.LinuxDeviceCgroup{{Type: "x", Access: "r"}, {Type: "c"}, {Type: "c", Access: "rx"}} {
		if _, err := convert(&specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{bad}}, Overhead{}); err == nil {
			t.Errorf("device rule %+v is accepted", bad)
		}
	}
}

func describe(d *config.Rule) string {
	if d.Allow {
		return d.CgroupString() + " true"
	}
	return d.CgroupString() + " false"
}
