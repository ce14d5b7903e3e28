package libvm

import (
	"syscall"
	"testing"
)

func TestPickID(t *testing.T) {
	type ids = []syscall.SysProcIDMap
	for name, c := range map[string]struct {
		mapped ids
		want   int
	}{
		"the host's":            {ids{{ContainerID: 0, Size: 4294967295}}, firstQEMU + 77},
		"a range of its own":    {ids{{ContainerID: 0, Size: 1}, {ContainerID: firstQEMU, Size: 100}}, firstQEMU + 77},
		"a range that is short": {ids{{ContainerID: 0, Size: 1}, {ContainerID: firstQEMU, Size: 77}}, firstQEMU + 76},
		"podman's":              {ids{{ContainerID: 0, Size: 1}, {ContainerID: 1, Size: 65536}}, 65536},
		"in any order":          {ids{{ContainerID: 1000, Size: 10}, {ContainerID: 0, Size: 500}}, 1009},
		"the user alone":        {ids{{ContainerID: 0, Size: 1}}, 0},
		"nobody":                {nil, 0},
	} {
		if got := pickID(77, c.mapped); got != c.want {
			t.Errorf("%s: pickID(77, %v) = %d, want %d", name, c.mapped, got, c.want)
		}
	}
}
