package libvm

import (
	"testing"
	"time"
)

func TestAllowance(t *testing.T) {
	for _, c := range []struct{ kept, limit, want int }{
		{0, 20_000, 10_000},
		{500, 20_000, 10_250},
		{12_000, 20_000, 16_000},
		{19_000, 20_000, 19_500},
		{20_000, 20_000, 30_000},
		{50_000, 20_000, 60_000},
		{mostFiles, 20_000, mostFiles + 10_000},
	} {
		if got := allowance(c.kept, c.limit); got != c.want {
			t.Errorf("allowance(%d, %d) = %d, want %d", c.kept, c.limit, got, c.want)
		}
	}
}

func TestUntilNextLook(t *testing.T) {
	for _, c := range []struct {
		open, limit int
		want        time.Duration
	}{
		{500, 20_000, 390 * time.Millisecond},
		{500, 1_000_000, 10 * time.Second},
		{19_500, 20_000, lookSoonest},
		{25_000, 20_000, lookSoonest},
	} {
		if got := untilNextLook(c.open, c.limit); got != c.want {
			t.Errorf("untilNextLook(%d, %d) = %v, want %v", c.open, c.limit, got, c.want)
		}
	}
}
