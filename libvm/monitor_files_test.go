package libvm

import (
	"testing"
	"time"
)

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
