package libvm

import (
	"os"
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

func TestCountDescriptors(t *testing.T) {
	dir, err := os.Open("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	count := func() int {
		t.Helper()
		n, err := countDescriptors(dir)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	before := count()
	const more = 50
	for range more {
		f, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
	}
	if after := count(); after != before+more {
		t.Errorf("%d descriptors, with %d more %d", before, more, after)
	}
}
