package tsc

import (
	"math"
	"testing"
	"time"
)

// Two measurements agree with each other and with the clock over a longer time.
func TestMeasure(t *testing.T) {
	first, err := Now()
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	var rates []float64
	for range 5 {
		khz, err := Measure()
		if err != nil {
			t.Fatal(err)
		}
		rates = append(rates, float64(khz))
	}
	t.Logf("%v, %v each", rates, time.Since(began)/time.Duration(len(rates)))
	last, err := Now()
	if err != nil {
		t.Fatal(err)
	}
	want, uncertain, err := first.KHz(last)
	if err != nil {
		t.Fatal(err)
	}
	for _, got := range rates {
		if off := math.Abs(got/want - 1); off > goodEnough+uncertain {
			t.Errorf("Measure() = %.0f, want %.0f", got, want)
		}
	}
}

func TestKHz(t *testing.T) {
	begin := Moment{begin: 1000, end: 3000, nanos: 5}
	khz, uncertain, err := begin.KHz(Moment{begin: 2_001_000, end: 2_003_000, nanos: 1_000_005})
	if err != nil || khz != 2_000_000 || uncertain != 0.001 {
		t.Errorf("KHz = %v, %v, %v, want 2000000, 0.001", khz, uncertain, err)
	}
	for name, later := range map[string]Moment{
		"a clock that stands":   {begin: 5000, end: 6000, nanos: 5},
		"a counter that stands": {begin: 1000, end: 3000, nanos: 1_000_005},
	} {
		if _, _, err := begin.KHz(later); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
