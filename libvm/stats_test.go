package libvm

import (
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/boxlite-oci/boxlite/internal/golden"
	"github.com/boxlite-oci/boxlite/internal/guestproto"
)

func TestStatsOf(t *testing.T) {
	got := statsOf(&guestproto.StatsReply{
		CPU: guestproto.CPUStats{UsageMicros: 7, UserMicros: 4, SystemMicros: 3, Periods: 2, ThrottledPeriods: 1, ThrottledMicros: math.MaxUint64},
		Memory: guestproto.MemoryStats{
			Usage: 10, Peak: 12, Limit: 100, AtLimit: 5, Swap: 1, SwapLimit: guestproto.NoLimit, Kernel: 2, Detail: map[string]uint64{"file": 6},
		},
		Pids: guestproto.PidsStats{Current: 3, Limit: guestproto.NoLimit},
	})
	want := `{"cpu":{"usage":{"total":7000,"kernel":3000,"user":4000},` +
		`"throttling":{"periods":2,"throttledPeriods":1,"throttledTime":18446744073709551615}},"cpuset":{},` +
		`"memory":{"cache":6,"usage":{"limit":100,"usage":10,"max":12,"failcnt":5},"swap":{"limit":18446744073709551615,"usage":11,"failcnt":0},` +
		`"kernel":{"limit":18446744073709551615,"usage":2,"failcnt":0},"kernelTCP":{"limit":18446744073709551615,"failcnt":0},"raw":{"file":6}},` +
		`"pids":{"current":3},"blkio":{},"hugetlb":{},"intel_rdt":{},"network_interfaces":null}`
	golden.SameJSON(t, "statsOf", got, rawJSON(want))
}

type rawJSON string

func (r rawJSON) MarshalJSON() ([]byte, error) { return []byte(r), nil }

// The guest may say anything.
func TestCheckStats(t *testing.T) {
	many := map[string]uint64{}
	for i := range maxDetails + 1 {
		many[fmt.Sprint("d", i)] = 1
	}
	for name, tc := range map[string]struct {
		detail map[string]uint64
		ok     bool
	}{
		"nothing":         {nil, true},
		"a kernel's":      {map[string]uint64{"workingset_refault_anon": 1}, true},
		"too many":        {many, false},
		"too long":        {map[string]uint64{strings.Repeat("a", maxDetailName+1): 1}, false},
		"control bytes":   {map[string]uint64{"a\nb": 1}, false},
		"without a name":  {map[string]uint64{"": 1}, false},
		"other alphabets": {map[string]uint64{"é": 1}, false},
	} {
		if err := checkStats(&guestproto.StatsReply{Memory: guestproto.MemoryStats{Detail: tc.detail}}); (err == nil) != tc.ok {
			t.Errorf("%s: checkStats = %v", name, err)
		}
	}
}

func TestOOMCount(t *testing.T) {
	var o oomCount
	kills, changed := o.read()
	o.raise(0)
	select {
	case <-changed:
		t.Error("the count changed from 0 to 0")
	default:
	}
	o.raise(2)
	<-changed
	if o.raise(1); kills != 0 || o.kills != 2 {
		t.Errorf("count = %d after %d, want 2 after 0", o.kills, kills)
	}
}
