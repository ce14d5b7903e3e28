package vmm

import (
	"math"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/boxlite-oci/boxlite/libvm/parts"
)

func TestMaxFiles(t *testing.T) {
	for _, c := range []struct {
		limit   uint64
		dialect parts.Dialect
		want    int
	}{
		{1000, parts.DialectC, 1000},
		{1000, parts.DialectRust, 390},
		{600, parts.DialectRust, 1},
		{unix.RLIM_INFINITY, parts.DialectC, math.MaxInt32},
		{unix.RLIM_INFINITY, parts.DialectRust, math.MaxInt32 - 610},
	} {
		if got := maxFiles(c.limit, c.dialect); got != c.want {
			t.Errorf("maxFiles(%d, %s) = %d, want %d", c.limit, c.dialect, got, c.want)
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
	p := &FileServer{status: status, stat: stat}
	defer p.Close()
	const many = 700
	for range many {
		f, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
	}
	if size, err := p.TableSize(); err != nil || size < many || size > 8*many {
		t.Errorf("tableSize = %d, %v with %d descriptors", size, err, many)
	}
	before, err := p.Work()
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(30 * time.Second); ; {
		now, err := p.Work() // which is work
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
