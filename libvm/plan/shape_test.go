package plan

import (
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// A limit above the host's memory is none, a VM that was asked for above it an error.
func TestMemoryOfTheHost(t *testing.T) {
	limit := int64(400 << 30)
	for _, tc := range []struct {
		limit *int64
		host  int
		over  int
		want  int
		err   string
	}{
		{nil, 24105, 0, DefaultMemoryMiB, ""},
		{nil, 1000, 0, 960, ""},
		{&limit, 24105, 0, 24064, ""},
		{&limit, 0, 0, 400<<10 + 128, ""},
		{&limit, 24105, 2048, 2048, ""},
		{nil, 24105, 24106, 0, "this machine has 24105"},
		{nil, 0, 24106, 24106, ""},
	} {
		spec := minimal()
		spec.Linux = &specs.Linux{Resources: &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: tc.limit}}}
		p, err := Rewrite(spec, "/r", &HostFacts{CPUs: 1, MemoryMiB: tc.host}, Overrides{MemoryMiB: tc.over})
		if tc.err != "" {
			if err == nil || !strings.Contains(err.Error(), tc.err) {
				t.Errorf("host of %d MiB, flag %d: %v, want %q", tc.host, tc.over, err, tc.err)
			}
			continue
		}
		if err != nil || p.Shape.MemoryMiB != tc.want {
			t.Errorf("host of %d MiB, limit %v, flag %d: VM of %d MiB, %v, want %d", tc.host, tc.limit, tc.over, p.Shape.MemoryMiB, err, tc.want)
		}
	}
}

// A pod's VM has no more processors than the pod may use.
func TestProcessorsOfALimitedPod(t *testing.T) {
	for _, tc := range []struct{ pod, over, want int }{{0, 0, 8}, {2, 0, 2}, {9, 0, 8}, {2, 4, 4}} {
		p, err := Rewrite(minimal(), "/r", &HostFacts{CPUs: 8, PodCPUs: tc.pod}, Overrides{VCPUs: tc.over})
		if err != nil || p.Shape.VCPUs != tc.want {
			t.Errorf("pod of %d processors, flag %d: VM of %d, %v, want %d", tc.pod, tc.over, p.Shape.VCPUs, err, tc.want)
		}
	}
}

// A pod whose cgroup is limited begins with what its VM needs without members, unless something says what it shall have.
func TestMemoryOfALimitedPod(t *testing.T) {
	for _, tc := range []struct {
		pod, limit int64
		over, want int
	}{
		{0, 0, 0, DefaultMemoryMiB},
		{noMemoryLimit, 0, 0, DefaultMemoryMiB},
		{512 << 20, 0, 0, minMemoryMiB},
		{512 << 20, 256 << 20, 0, 256 + GuestRoomMiB},
		{512 << 20, 0, 320, 320},
	} {
		spec := minimal()
		spec.Linux = &specs.Linux{Resources: &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &tc.limit}}}
		p, err := Rewrite(spec, "/r", &HostFacts{CPUs: 1, PodMemoryLimit: tc.pod}, Overrides{MemoryMiB: tc.over})
		if err != nil || p.Shape.MemoryMiB != tc.want {
			t.Errorf("pod of %d bytes, limit %d, flag %d: VM of %d MiB, %v, want %d", tc.pod, tc.limit, tc.over, p.Shape.MemoryMiB, err, tc.want)
		}
	}
}
