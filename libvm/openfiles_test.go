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

// The table of a process is as large as it must be for its descriptors, and its
// work shows when it has done some.
func TestFileServer(t *testing.T) {
	status, err := os.Open("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	stat, err := os.Open("/proc/self/stat")
	if err != nil {
		t.Fatal(err)
	}
	p := &fileServer{status, stat}
	defer p.close()
	const many = 700
	for range many {
		f, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
	}
	if size, err := p.tableSize(); err != nil || size < many || size > 8*many {
		t.Errorf("tableSize = %d, %v with %d descriptors", size, err, many)
	}
	before, err := p.work()
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(30 * time.Second); ; {
		now, err := p.work() // which is work
		if err != nil {
			t.Fatal(err)
		}
		if now != before {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("work = %q still", now)
		}
	}
}
