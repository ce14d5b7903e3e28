package vmm

import (
	"testing"

	"github.com/moby/sys/user"
)

func TestPickID(t *testing.T) {
	type ids = []user.IDMap
	for name, c := range map[string]struct {
		mapped ids
		want   int
	}{
		"the host's":            {ids{{ID: 0, Count: 4294967295}}, firstQEMU + 77},
		"a range of its own":    {ids{{ID: 0, Count: 1}, {ID: firstQEMU, Count: 100}}, firstQEMU + 77},
		"a range that is short": {ids{{ID: 0, Count: 1}, {ID: firstQEMU, Count: 77}}, firstQEMU + 76},
		"podman's":              {ids{{ID: 0, Count: 1}, {ID: 1, Count: 65536}}, 65536},
		"in any order":          {ids{{ID: 1000, Count: 10}, {ID: 0, Count: 500}}, 1009},
		"the user alone":        {ids{{ID: 0, Count: 1}}, 0},
		"nobody":                {nil, 0},
	} {
		if got := pickID(77, c.mapped); got != c.want {
			t.Errorf("%s: pickID(77, %v) = %d, want %d", name, c.mapped, got, c.want)
		}
	}
}
