package plan

import (
	"encoding/json"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/boxlite-oci/boxlite/internal/golden"
)

func TestMergeResources(t *testing.T) {
	for name, tc := range map[string]struct{ old, update, after, change string }{
		"nothing": {`{}`, `{}`, `{}`, `{}`},
		"docker's zeros": {
			`{"memory":{"limit":5}}`, `{"memory":{"limit":0,"swap":0},"cpu":{"shares":0,"quota":0,"period":0},"pids":{"limit":0},"blockIO":{"weight":0}}`,
			`{"memory":{"limit":5},"cpu":{}}`, `{"cpu":{}}`,
		},
		"what belongs together": {
			`{"memory":{"limit":5,"swap":9},"cpu":{"period":1000,"shares":7}}`, `{"memory":{"limit":6},"cpu":{"quota":500}}`,
			`{"memory":{"limit":6,"swap":9},"cpu":{"period":1000,"shares":7,"quota":500}}`,
			`{"memory":{"limit":6,"swap":9},"cpu":{"period":1000,"quota":500}}`,
		},
		"no limits": {
			`{"memory":{"limit":5},"pids":{"limit":5}}`, `{"memory":{"limit":-1,"swap":-1},"pids":{"limit":-1}}`,
			`{"memory":{"limit":-1,"swap":-1},"pids":{"limit":-1}}`, `{"memory":{"limit":-1,"swap":-1},"pids":{"limit":-1}}`,
		},
		"no limit of memory, of memory and swap neither": {
			`{"memory":{"limit":5,"swap":9}}`, `{"memory":{"limit":-1}}`,
			`{"memory":{"limit":-1,"swap":-1}}`, `{"memory":{"limit":-1,"swap":-1}}`,
		},
		"the rest": {
			`{"blockIO":{"leafWeight":3},"unified":{"a":"1"},"devices":[{"allow":true}]}`,
			`{"blockIO":{"weight":20},"unified":{"b":"2"},"devices":[],"cpu":{"cpus":"1","mems":"0","idle":0,"burst":0,"realtimePeriod":3}}`,
			`{"blockIO":{"leafWeight":3,"weight":20},"unified":{"a":"1","b":"2"},"devices":[{"allow":true}],"cpu":{"cpus":"1","mems":"0","idle":0,"burst":0,"realtimePeriod":3}}`,
			`{"blockIO":{"weight":20},"unified":{"b":"2"},"cpu":{"cpus":"1","mems":"0","idle":0,"burst":0,"realtimePeriod":3}}`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			old, before := resources(t, tc.old), resources(t, tc.old)
			after, change := MergeResources(old, resources(t, tc.update))
			golden.SameJSON(t, "after", after, resources(t, tc.after))
			golden.SameJSON(t, "change", change, resources(t, tc.change))
			golden.SameJSON(t, "the old ones, afterwards", old, before)
		})
	}
	if after, _ := MergeResources(nil, resources(t, `{"pids":{"limit":4}}`)); *after.Pids.Limit != 4 {
		t.Errorf("merged into nothing: %+v", after)
	}
}

func TestGuestResources(t *testing.T) {
	got := GuestResources(resources(t, `{
		"devices":[{"allow":false}], "network":{"classID":1}, "memory":{"limit":5},
		"cpu":{"quota":3,"cpus":"4-6","mems":"1","realtimePeriod":5},
		"blockIO":{"weight":10,"throttleReadBpsDevice":[{"major":8,"minor":0,"rate":1}]}}`), 2)
	golden.SameJSON(t, "guestResources", got, resources(t, `{"memory":{"limit":5},"cpu":{"quota":3,"cpus":"0-1"},"blockIO":{"weight":10}}`))
	if got := GuestResources(nil, 1); got != nil {
		t.Errorf("guestResources(nil) = %+v", got)
	}
}

func TestCountCPUs(t *testing.T) {
	for list, want := range map[string]int{"": 0, "0": 1, "3": 1, "0-3": 4, "0,2-3, 7": 4, "x": 0, "3-1": 0, "1-": 0} {
		if got := countCPUs(list); got != want {
			t.Errorf("countCPUs(%q) = %d, want %d", list, got, want)
		}
	}
}

// A VM has no more processors than the set of the host's that it may use.
func TestSizeOfWithCPUSet(t *testing.T) {
	for _, tc := range []struct {
		cpu  string
		want int
	}{{`{}`, 8}, {`{"cpus":"2-4"}`, 3}, {`{"cpus":"2-4","quota":150000}`, 2}, {`{"cpus":"1","quota":400000}`, 1}, {`{"cpus":"0-63"}`, 8}} {
		spec := &specs.Spec{Linux: &specs.Linux{Resources: resources(t, `{"cpu":`+tc.cpu+`}`)}}
		if _, got := sizeOf(spec, DefaultMemoryMiB, 8); got != tc.want {
			t.Errorf("processors with %s = %d, want %d", tc.cpu, got, tc.want)
		}
	}
}

func resources(t *testing.T, text string) *specs.LinuxResources {
	t.Helper()
	r := new(specs.LinuxResources)
	if err := json.Unmarshal([]byte(text), r); err != nil {
		t.Fatal(err)
	}
	return r
}
